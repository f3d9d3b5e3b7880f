"""One connection that speaks HTTP/2 (RFC 9113): h2 on a wire of ours, each request an `Exchange` as in HTTP/1.1.

h2 has no input or output, and is what Hypercorn's own HTTP/2 stands on; that one is not used, since what is mended in
`covey.http.connection` would have to be mended there, too, inside of it. What holds here:

1. Windows are what bounds bodies: a client is given back what the application has read, and no more than
   `BODY_BYTES_MAX` of a stream wait for it. The reading loop never waits for an application.
2. An answer waits for its client's window as long as a write may, and its stream is reset then; the others go on.
3. A stream that its client resets is told to its application at once. Its task counts against `STREAMS_MAX` until it
   has ended, so that resetting buys no further ones.
4. Frames that ask for nothing have a budget (`covey.http.frame_budget`), and headers a size.
"""

import contextlib
import logging
from functools import partial

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from covey.http.asgi import Headers, Scope, header
from covey.http.frame_budget import ANSWER_EARNS, DATA_EARNS, FrameBudget
from covey.http.http2_stream import Stream, refusal, request_scope
from covey.http.parser import HEADER_BYTES_MAX
from covey.http.terms import Terms
from covey.http.wire import BROKEN, Wire
from covey.http.writing import Writer

log = logging.getLogger(__name__)

STREAMS_MAX = 100
BODY_BYTES_MAX = 256 * 1024
"""How much of one request's body waits for its application; of all of a connection's, twice that."""
INITIAL_WINDOW_BYTES = 65_535


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = 1_000
    """How many streams that are over h2 remembers; its own 65,536 are some megabytes for each connection."""


class Http2Connection:
    """One client. `run` returns when it is closed."""

    def __init__(self, terms: Terms, wire: Wire) -> None:
        self.write_seconds_max = terms.write_seconds_max
        self._terms = terms
        self._wire = wire
        self._writer = Writer(wire, terms.write_seconds_max, self._failed)
        self._h2 = _H2(H2Configuration(client_side=False, header_encoding=None))
        self._budget = FrameBudget(trio.current_time())
        self._streams: dict[int, Stream] = {}
        self._running = 0
        self._window_changed = trio.lowlevel.ParkingLot()
        self._is_flush_due = False
        self._is_leaving = False
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        """Serve until either side closes."""
        self._terms.is_idle(self)
        try:
            self._client = self._wire.socket.getpeername()[:2]
            self._server = self._wire.socket.getsockname()[:2]
            async with trio.open_nursery() as self._nursery:
                self._begin()
                await self._read()
        except OSError:
            pass  # the client was gone before it was known
        finally:
            self._terms.is_busy(self)
            await self._wire.close()

    def close_if_idle(self) -> None:
        """Close between requests; during some, let them end and take no more.

        GOAWAY goes out after the last of them: clients that use h2 drop at that word what they still wait for.
        """
        self._is_leaving = True
        if not self._running:
            self._reading.cancel()

    def expire(self) -> None:
        """Close: it has been idle for too long."""
        self._reading.cancel()

    def cut(self) -> None:
        """Give up the write under way, and those to come."""
        self._writer.cut()

    def _begin(self) -> None:
        # What we offer holds from the first: as an update, it would hold for some streams and not for others.
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
                SettingCodes.INITIAL_WINDOW_SIZE: BODY_BYTES_MAX,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_BYTES_MAX,
                SettingCodes.ENABLE_PUSH: 0,
            },
        )
        self._h2.decoder.max_header_list_size = HEADER_BYTES_MAX
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(2 * BODY_BYTES_MAX - INITIAL_WINDOW_BYTES)
        self._flush_soon()

    async def _read(self) -> None:
        error = ErrorCodes.NO_ERROR
        with self._reading, contextlib.suppress(*BROKEN):
            while data := await self._wire.receive():
                if not self._budget.receive(data, trio.current_time()):
                    error = ErrorCodes.ENHANCE_YOUR_CALM
                    break
                try:
                    events = self._h2.receive_data(data)
                except ProtocolError as wrong:
                    log.debug("A client broke HTTP/2's rules: %s", wrong)
                    error = wrong.error_code
                    break
                for event in events:
                    await self._handle(event)
                await self.flush()
        await self._failed()
        with contextlib.suppress(ProtocolError):
            self._h2.close_connection(error)
        await self.flush()

    async def _handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._open(event)
        elif isinstance(event, DataReceived):
            stream = self._streams.get(event.stream_id or 0)
            padding = event.flow_controlled_length - len(event.data)
            if stream is None:
                self.give_window(event.stream_id or 0, event.flow_controlled_length)
            else:
                stream.received(event.data)
                self.give_window(stream.number, padding)
        elif isinstance(event, StreamEnded):
            if stream := self._streams.get(event.stream_id or 0):
                stream.exchange.put_at_once(b"", more_body=False)
        elif isinstance(event, StreamReset):
            if stream := self._streams.get(event.stream_id or 0):
                await self._forget(stream)
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            self._window_changed.unpark_all()
        elif isinstance(event, ConnectionTerminated):
            await self._failed()  # h2 sends nothing after that word, and who says it is about to close

    def _open(self, event: RequestReceived) -> None:
        number = event.stream_id
        if self._running >= STREAMS_MAX or self._is_leaving or self._terms.closing:
            self._reset(number, ErrorCodes.REFUSED_STREAM)
            return
        scope = request_scope(event.headers, self._client, self._server)
        if scope is None or (event.stream_ended is not None and header(scope, b"content-length") not in (None, "0")):
            self._reset(number, ErrorCodes.PROTOCOL_ERROR)
            return
        if status := refusal(scope):
            with contextlib.suppress(ProtocolError):  # it is over already: what ended it came in the same piece
                self.send_head(number, status, [(b"content-length", b"0")], end=True)
            if event.stream_ended is None:
                self._reset(number, ErrorCodes.NO_ERROR)
            return
        if event.stream_ended is None and (b"expect", b"100-continue") in scope["headers"]:
            with contextlib.suppress(ProtocolError):  # likewise, and its application is told in a moment
                self._h2.send_headers(number, [(b":status", b"100")])
        self._terms.settle(scope)
        self._start(number, scope)

    def _start(self, number: int, scope: Scope) -> None:
        stream = self._streams[number] = Stream(number, scope, self)
        self._running += 1
        if self._running == 1:
            self._terms.is_busy(self)
        self._nursery.start_soon(partial(self._serve, stream))

    async def _serve(self, stream: Stream) -> None:
        try:
            await stream.exchange.run(self._terms.app)
        finally:
            self._running -= 1
            if not self._running:
                self._terms.is_idle(self)
                if self._is_leaving or self._terms.closing:
                    self._reading.cancel()

    def send_head(self, number: int, status: int, headers: Headers, *, end: bool = False) -> None:
        """Keep an answer's head for the next write."""
        fields = [(b":status", b"%d" % status), *headers, *self._terms.own_headers()]
        self._h2.send_headers(number, fields, end_stream=end)

    def send_data(self, number: int, data: bytes, *, end: bool) -> None:
        """Keep a piece of an answer, which fits the window, for the next write."""
        self._budget.earn(DATA_EARNS)
        self._h2.send_data(number, data, end_stream=end)

    async def window(self, number: int) -> int:
        """How much of an answer can go in one frame; waits until that is something, or the stream is over."""
        while number in self._streams:
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            if room > 0:
                return room
            await self.flush()
            await self._window_changed.park()
        return 0

    def give_window(self, number: int, count: int) -> None:
        """So much of a request was read, and as much more may come."""
        if count:
            with contextlib.suppress(ProtocolError):  # the connection is ending
                self._h2.acknowledge_received_data(count, number)
            self._flush_soon()

    async def answered(self, stream: Stream) -> None:
        """The last of an answer was written; what still comes of its request is not wanted (RFC 9113, 8.1)."""
        self._budget.earn(ANSWER_EARNS)
        if self._streams.pop(stream.number, None) is None:
            return
        self.give_window(stream.number, stream.unread_bytes)
        if stream.exchange.expects_more:
            self._reset(stream.number, ErrorCodes.NO_ERROR)
            await self.flush()

    async def reset(self, stream: Stream, code: ErrorCodes) -> None:
        """End a stream whose answer cannot be ended in order."""
        if stream.number in self._streams:
            self._reset(stream.number, code)
            await self._forget(stream)
            await self.flush()

    def _reset(self, number: int, code: ErrorCodes) -> None:
        with contextlib.suppress(ProtocolError):  # it is over already
            self._h2.reset_stream(number, code)

    async def _forget(self, stream: Stream) -> None:
        del self._streams[stream.number]
        self.give_window(stream.number, stream.unread_bytes)
        self._window_changed.unpark_all()
        await stream.gone()

    async def _failed(self) -> None:
        """The client has gone: so have its requests."""
        for stream in list(self._streams.values()):
            await self._forget(stream)
        self._reading.cancel()

    def hold(self) -> None:
        """What is sent is kept by h2 until `flush`."""

    async def flush(self) -> None:
        """Write what was kept."""
        self._is_flush_due = False
        if data := self._h2.data_to_send():
            await self._writer.write(data)

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._nursery.start_soon(self.flush)
