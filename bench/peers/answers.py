"""One HTTP answer, read from bytes as they come; and whether it says what the upstream said. Pure."""

from collections.abc import Iterator

import msgspec

FIRST_TOKEN = b'"w0 '
"""How the first token stands in an event, whoever passes it on and however many tokens it puts into one."""
LINE_END = b"\r\n"
HEAD_END = b"\r\n\r\n"


class Delta(msgspec.Struct):
    """What an event adds."""

    content: str | None = None


class Choice(msgspec.Struct):
    """Of an answer, or of one event of it."""

    delta: Delta = msgspec.field(default_factory=Delta)
    message: Delta = msgspec.field(default_factory=Delta)


class Body(msgspec.Struct):
    """An answer, or one event of it."""

    choices: list[Choice]


BODIES = msgspec.json.Decoder(Body)


def words(tokens: int) -> list[str]:
    """What the upstream says, token by token: each its own, so that none can be lost or change places unseen."""
    return [f"w{number} " for number in range(tokens)]


class Answer:
    """One answer (RFC 9112), from its first byte on.

    `body` is complete once `receive` has said so.
    """

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.begun = False
        """The first token is there."""
        self._data = bytearray()
        self._left: int | None = None
        """Bytes of the body or of the chunk that are still to come; `None`: the size of a chunk is next."""
        self._chunked = False

    def receive(self, data: bytes) -> bool:
        """Take what has come; whether the answer is complete.

        Raises:
            ValueError: it has neither a length nor chunks.
        """
        self._data += data
        if not self.status and not self._read_head():
            return False
        complete = self._read_chunks() if self._chunked else self._read_rest()
        self.begun = self.begun or FIRST_TOKEN in self.body
        return complete

    def _read_head(self) -> bool:
        head, found, rest = self._data.partition(HEAD_END)
        if not found:
            return False
        first, *lines = bytes(head).split(LINE_END)
        headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(b":") for one in lines)}
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if not self._chunked and b"content-length" not in headers:
            raise ValueError("An answer has neither a length nor chunks.")
        self._left = None if self._chunked else int(headers[b"content-length"])
        self._data = rest
        self.status = int(first.split(b" ")[1])
        return True

    def _read_rest(self) -> bool:
        self.body += self._data
        self._data.clear()
        return len(self.body) >= (self._left or 0)

    def _read_chunks(self) -> bool:
        while True:
            if self._left is None:
                size, found, rest = self._data.partition(LINE_END)
                if not found:
                    return False
                self._left, self._data = int(size.partition(b";")[0], 16), rest
            if len(self._data) < self._left + len(LINE_END):
                return False
            if self._left == 0:
                return True
            self.body += self._data[: self._left]
            del self._data[: self._left + len(LINE_END)]
            self._left = None

    def text(self) -> str:
        """What was said, of a complete answer, whole or streamed.

        Raises:
            ValueError: it is no answer to a chat, or a stream without its end.
        """
        if self.status != 200:
            raise ValueError(f"HTTP {self.status}: {self.body.decode(errors='replace')[:500]}")
        if not self.body.startswith((b"data:", b":", b"event:")):
            return "".join(choice.message.content or "" for choice in BODIES.decode(self.body).choices)
        events = list(self._events())
        if not events or events[-1] != b"[DONE]":
            raise ValueError("A stream ended before its end.")
        bodies = (BODIES.decode(event) for event in events[:-1])
        return "".join(choice.delta.content or "" for body in bodies for choice in body.choices)

    def _events(self) -> Iterator[bytes]:
        for line in bytes(self.body).splitlines():
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
