"""What a client's HTTP/2 frames may cost beside its requests: a bucket that floods empty, and use does not.

Pure. Every frame costs work, and some ask for nothing: PING and SETTINGS want answers, RST_STREAM takes back what was
begun (CVE-2023-44487), empty DATA and CONTINUATION only arrive (CVE-2019-9512 to 9518, CVE-2024-27316). Frames are
counted by their headers, before anything is done about them.

Source: RFC 9113, 4.1 (frames), 10.5 (denial of service).
"""

from enum import IntEnum

PREFACE_BYTES = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEADER_BYTES = 9
COSTS_MAX = 1_000.0
COSTS_PER_SECOND = 100.0
SMALL_BYTES = 256
"""DATA below this costs something, unless it is the last of its stream."""
_END_STREAM = 0x1


class _Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    WINDOW_UPDATE = 8


_COSTS: dict[int, float] = {
    _Kind.HEADERS: 1.0,
    _Kind.RST_STREAM: 4.0,
    _Kind.SETTINGS: 10.0,
    _Kind.PING: 4.0,
    _Kind.WINDOW_UPDATE: 0.5,
}
_OTHER_COST = 4.0
ANSWER_EARNS = 5.0
DATA_EARNS = 1.0
"""A client answers DATA with up to two WINDOW_UPDATEs."""


class FrameBudget:
    """Of one connection. `now` is seconds of any clock that only goes forward."""

    __slots__ = ("_at", "_left", "_partial", "_skip")

    def __init__(self, now: float) -> None:
        self._at = now
        self._left = COSTS_MAX
        self._skip = PREFACE_BYTES
        self._partial = b""

    def earn(self, amount: float) -> None:
        """Something was sent that a client rightly answers with frames."""
        self._left = min(COSTS_MAX, self._left + amount)

    def receive(self, data: bytes, now: float) -> bool:
        """Count the frames that begin in `data`, in whatever pieces they come; false once they cost too much."""
        self.earn((now - self._at) * COSTS_PER_SECOND)
        self._at = now
        at = min(self._skip, len(data))
        self._skip -= at
        while at < len(data):
            head = self._partial + data[at : at + _HEADER_BYTES - len(self._partial)]
            at += len(head) - len(self._partial)
            if len(head) < _HEADER_BYTES:
                self._partial = head
                break
            self._partial = b""
            length = int.from_bytes(head[:3], "big")
            self._left -= _cost(head[3], head[4], length)
            passed = min(length, len(data) - at)
            self._skip = length - passed
            at += passed
        return self._left > 0


def _cost(kind: int, flags: int, length: int) -> float:
    if kind == _Kind.DATA:
        return 0.0 if length >= SMALL_BYTES or flags & _END_STREAM else 1.0
    return _COSTS.get(kind, _OTHER_COST)
