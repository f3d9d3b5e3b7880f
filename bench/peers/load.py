"""The load: so many connections, each asking again as soon as it has its answer, from one thread that costs little.

Every answer is kept and compared, word by word, once the clock has stopped: none counts that is not right.
"""

import selectors
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from bench.peers.answers import Answer, words

RECEIVE_BYTES = 262_144
SILENCE_SECONDS_MAX = 60.0
PROMPT = "What does one request cost, on its way through a gateway?"


@dataclass(frozen=True)
class Question:
    """What is asked, again and again."""

    model: str
    tokens: int
    stream: bool = False

    def request(self, url: str, key: str) -> bytes:
        """Its bytes."""
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": self.tokens,
            "stream": self.stream,
        }
        body = msgspec.json.encode(asked)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Taken:
    """What was measured: seconds to the end and to the first token of each answer, and of it all."""

    latencies: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Client:
    """One connection. The caller closes it."""

    def __init__(self, url: str, request: bytes) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname or "", address.port or 80), SILENCE_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self.answer = Answer()
        self.asked_at = self.first_at = 0.0

    def ask(self) -> None:
        """Once more."""
        self.answer, self.first_at = Answer(), 0.0
        self.asked_at = time.perf_counter()
        self.socket.sendall(self._request)

    def take(self) -> bool:
        """What is there; whether the answer is complete.

        Raises:
            ConnectionError: it ends within an answer.
        """
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError(f"closed within an answer: {bytes(self.answer.body)[-200:]!r}")
        complete = self.answer.receive(data)
        if self.answer.begun and not self.first_at:
            self.first_at = time.perf_counter()
        return complete


def drive(url: str, key: str, question: Question, *, connections: int, seconds: float) -> Taken:
    """Ask for so long; what was asked by then is waited for.

    Raises:
        RuntimeError: an answer is wrong, or there is none for a minute.
    """
    taken, answers, request = Taken(), list[Answer](), question.request(url, key)
    clients: list[Client] = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(connections):
                clients.append(Client(url, request))
                selector.register(clients[-1].socket, selectors.EVENT_READ, clients[-1])
            began = time.perf_counter()
            for client in clients:
                client.ask()
            asking = connections
            while asking:
                ready = selector.select(SILENCE_SECONDS_MAX)
                if not ready:
                    raise RuntimeError(f"no answer for {SILENCE_SECONDS_MAX:g} s")
                asking -= sum(_turn(key.data, taken, answers, began + seconds) for key, _ in ready)
            taken.seconds = time.perf_counter() - began
        finally:
            for client in clients:
                client.socket.close()
    _check(answers, question)
    return taken


def _turn(client: Client, taken: Taken, answers: list[Answer], until: float) -> bool:
    """One client has something to read; whether it has asked for the last time."""
    if not client.take():
        return False
    now = time.perf_counter()
    taken.latencies.append(now - client.asked_at)
    taken.firsts.append(client.first_at - client.asked_at)
    answers.append(client.answer)
    if now >= until:
        return True
    client.ask()
    return False


def _check(answers: list[Answer], question: Question) -> None:
    expected = "".join(words(question.tokens)).strip()
    for answer in answers:
        try:
            said = answer.text().strip()
        except ValueError as error:
            raise RuntimeError(f"a wrong answer: {error}") from error
        if said != expected:
            raise RuntimeError(f"a wrong answer: {said[:200]!r} instead of {expected[:200]!r}")
