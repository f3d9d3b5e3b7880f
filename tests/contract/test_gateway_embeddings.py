"""Embeddings as large as they may be, through a whole gateway."""

import json
import struct
import threading
from typing import Any

import pytest
from gateway_harness import gateway

from covey.bus.replies import Emit
from covey.contracts.inference import Embeddings, EmbedRequest
from covey.dialects import openai_embeddings
from covey.roles.gateway.chats import RENDERED_BYTES_MAX

DIMENSIONS = 4_096
VECTOR = struct.pack(f"<{DIMENSIONS}f", *[0.5] * DIMENSIONS)


async def wide(request: EmbedRequest, emit: Emit[Embeddings]) -> None:
    """A vector of a large model for each input."""
    for _ in request.inputs:
        await emit(Embeddings((VECTOR,), 1))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"encoding_format": "float"}),
        ("/v1/embeddings", {"encoding_format": "base64"}),
        ("/api/embed", {}),
    ],
)
async def test_vectors_by_the_megabyte_are_written_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any]
) -> None:
    """2,048 such vectors, as many as one may ask for, hold whoever writes them for most of a second."""
    threads: list[int] = []
    floats = openai_embeddings.floats

    def watched(vector: bytes) -> tuple[float, ...]:
        threads.append(threading.get_ident())
        return floats(vector)

    monkeypatch.setattr(openai_embeddings, "floats", watched)
    many = RENDERED_BYTES_MAX // len(VECTOR) + 1
    async with gateway() as node:
        monkeypatch.setattr(node.inference.echo, "embed", wide)
        for count, is_here in ((1, True), (many, False)):
            threads.clear()
            answer = await node.ask(path, {"model": "echo", "input": ["x"] * count, **fields})
            assert answer.status == 200
            told = json.loads(answer.body)
            assert len(told["data"] if "data" in told else told["embeddings"]) == len(threads) == count
            assert (set(threads) == {threading.get_ident()}) is is_here
            if path == "/api/embed":
                assert told["embeddings"][-1][:2] == [0.5, 0.5]
                assert told["total_duration"] > 0
