"""Files that a page gives: whole ones, and one that is written while it is sent."""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import msgspec
from quart import Response
from quart.wrappers.response import ResponseBody

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.usage import USAGE_RECORDS, AskUsage, UsageRecords
from covey.contracts.usage_table import RECORD_COLUMNS, Fields, Names, as_csv, line_of_record

TYPES = {"csv": "text/csv; charset=utf-8; header=present", "json": "application/json"}


def as_file(body: str | ResponseBody, name: str, ending: str) -> Response:
    """An answer that browsers save. `ending`: one of `TYPES`."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.{ending}"'}
    response = Response(body, content_type=TYPES[ending], headers=headers)
    response.timeout = None  # Quart would cut a long file silently after a minute
    return response


def in_json(lines: Iterable[Fields]) -> str:
    """An array of objects, a line each."""
    return "[\n" + ",\n".join(msgspec.json.encode(line).decode() for line in lines) + "\n]\n"


class RecordsBody(ResponseBody):
    """Every request of a time, as they come over the bus: there may be more than fit into memory.

    The stream is open exactly as long as the body is being sent, as `covey.roles.web.completion` has it. What fails on
    the way breaks the connection off, so that the browser does not take half a file for a whole one.

    Args:
        bus: where the gateway is asked.
        ask: for what.
        names: of people and keys.
        csv: else JSON.
    """

    def __init__(self, bus: BusHandle, ask: AskUsage, names: Names, *, csv: bool) -> None:
        self._bus = bus
        self._ask = ask
        self._names = names
        self._csv = csv
        self._stream: AbstractAsyncContextManager[Replies[UsageRecords]] | None = None
        self._replies: Replies[UsageRecords] | None = None
        self._begun = self._ended = False

    async def __aenter__(self) -> Self:
        stream = self._bus.stream(USAGE_RECORDS, self._ask)
        self._replies = await stream.__aenter__()
        self._stream = stream
        return self

    # It may swallow, as the stream's own exit may: `async with` heeds that, though Quart's signature forgot it.
    async def __aexit__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._stream is None:
            return None
        return await self._stream.__aexit__(kind, error, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ended or self._replies is None:
            raise StopAsyncIteration
        replies = await self._replies.batch()
        lines = [line_of_record(one, self._names) for reply in replies or () for one in reply.records]
        self._ended = not replies
        return self._part(lines).encode()

    def _part(self, lines: list[Fields]) -> str:
        is_first, self._begun = not self._begun, self._begun or bool(lines) or self._csv
        if self._csv:
            return as_csv(lines, RECORD_COLUMNS if is_first else ())
        text = ",\n".join(msgspec.json.encode(line).decode() for line in lines)
        before = "" if not lines else "[\n" if is_first else ",\n"
        after = "" if not self._ended else "\n]\n" if self._begun else "[]\n"
        return before + text + after
