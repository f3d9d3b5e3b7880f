"""The load: so many connections, each asking again as soon as it has its answer, from one thread that costs little.

Every answer is kept and compared, word by word, once the clock has stopped: one that is not right counts as failed.
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
    """What was measured: seconds to the end and to the first token of each right answer, and of it all.

    `failures`: what was wrong with each other one.
    """

    latencies: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Client:
    """A connection, and a new one where it fails. The caller closes it."""

    def __init__(self, url: str, request: bytes) -> None:
        self._url = urlsplit(url)
        self._request = request
        self.socket = self._connected()
        self.answer = Answer()
        self.asked_at = self.first_at = self.ended_at = 0.0

    def _connected(self) -> socket.socket:
        address = (self._url.hostname or "", self._url.port or 80)
        connection = socket.create_connection(address, SILENCE_SECONDS_MAX)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def again(self) -> None:
        """Connect anew."""
        self.socket.close()
        self.socket = self._connected()

    def ask(self) -> None:
        """Once more."""
        self.answer, self.first_at = Answer(), 0.0
        self.asked_at = time.perf_counter()
        self.socket.sendall(self._request)

    def take(self) -> bool:
        """What is there; whether the answer is complete.

        Raises:
            OSError: the connection ends within an answer.
        """
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError(f"closed within an answer, after {bytes(self.answer.body)[-60:]!r}")
        complete = self.answer.receive(data)
        self.ended_at = time.perf_counter()
        if self.answer.begun and not self.first_at:
            self.first_at = self.ended_at
        return complete


class Load:
    """One load at one server. Used once."""

    def __init__(self, url: str, key: str, question: Question) -> None:
        self._url = url
        self._question = question
        self._request = question.request(url, key)
        self._complete: list[tuple[float, float, Answer]] = []
        self._taken = Taken()

    def drive(self, connections: int, seconds: float) -> Taken:
        """Ask for so long; what was asked by then is waited for.

        Raises:
            OSError: it takes no connections.
            RuntimeError: it is silent for a minute.
        """
        clients: list[Client] = []
        with selectors.DefaultSelector() as selector:
            try:
                for _ in range(connections):
                    clients.append(Client(self._url, self._request))
                    selector.register(clients[-1].socket, selectors.EVENT_READ, clients[-1])
                began = time.perf_counter()
                for client in clients:
                    client.ask()
                asking = connections
                while asking:
                    ready = selector.select(SILENCE_SECONDS_MAX)
                    if not ready:
                        raise RuntimeError(f"no answer for {SILENCE_SECONDS_MAX:g} s")
                    asking -= sum(self._turn(key.data, selector, began + seconds) for key, _ in ready)
                self._taken.seconds = time.perf_counter() - began
            finally:
                for client in clients:
                    client.socket.close()
        self._judge()
        return self._taken

    def _turn(self, client: Client, selector: selectors.BaseSelector, until: float) -> bool:
        """One client has something to read; whether it has asked for the last time."""
        try:
            if not client.take():
                return False
            self._complete.append((client.ended_at - client.asked_at, client.first_at - client.asked_at, client.answer))
        except (OSError, ValueError) as error:
            self._taken.failures.append(str(error))
            selector.unregister(client.socket)
            client.again()
            selector.register(client.socket, selectors.EVENT_READ, client)
        if time.perf_counter() >= until:
            # It may stay open for longer than its server waits for more: that end is none of an answer.
            selector.unregister(client.socket)
            return True
        client.ask()
        return False

    def _judge(self) -> None:
        expected = "".join(words(self._question.tokens)).strip()
        for latency, first, answer in self._complete:
            try:
                said = answer.text().strip()
            except ValueError as error:
                self._taken.failures.append(str(error))
                continue
            if said != expected:
                self._taken.failures.append(f"said {said[:100]!r}")
                continue
            self._taken.latencies.append(latency)
            self._taken.firsts.append(first)
