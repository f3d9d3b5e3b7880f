"""The rounds: every subject under the same load, in turns, so that what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable, Sequence

from bench.peers.load import Load, Question, Taken
from bench.peers.rows import Round, medians, percentile
from bench.peers.subjects import Subject

WHOLE = Question("fast", 20)
FIRST = Question("paced", 10, stream=True)
STREAM = Question("paced", 100, stream=True)
TOKEN_SECONDS = 0.005
STREAMS = 100
SOME, MANY = 16, 64
PER_SECOND = "per second"
STARTS = 3
SETTLE_SECONDS = 2.0
"""After which whatever a start still had to do in the background is done."""
WARM_SECONDS = 1.0
IDEAL_PER_SECOND = STREAMS / (STREAM.tokens * TOKEN_SECONDS)
"""Whole streams, if nothing came between their tokens."""
STREAM_SHARE = f"{STREAMS} streams of {STREAM.tokens} tokens at {TOKEN_SECONDS * 1000:g} ms: of the ideal rate"
STREAM_CPU = f"CPU of a stream of {STREAM.tokens} tokens"
UNITS = {
    "latency p50, 1 connection": "ms",
    "latency p99, 1 connection": "ms",
    "first token p50, 1 stream": "ms",
    "answers, 1 connection": PER_SECOND,
    f"answers, {SOME} connections": PER_SECOND,
    f"answers, {MANY} connections": PER_SECOND,
    STREAM_SHARE: "%",
    "failed answers": "%",
    f"CPU of an answer, {SOME} connections": "ms",
    STREAM_CPU: "ms",
    "memory, idle": "MB",
    "memory, after the load": "MB",
    "start to first answer": "s",
}
"""Of every figure, in the order of the table."""
MORE_IS_BETTER = frozenset({STREAM_SHARE, *(name for name, unit in UNITS.items() if unit == PER_SECOND)})
Say = Callable[[str], None]


def start_all(subjects: Sequence[Subject], say: Say) -> dict[str, Round]:
    """Start them one after the other, several times; the best counts. They run on; the caller stops them."""
    figures: dict[str, Round] = {}
    for subject in subjects:
        seconds: list[float] = []
        for number in range(STARTS):
            say(f"start {number + 1} of {STARTS}: {subject.name}")
            seconds.append(subject.start())
            if number < STARTS - 1:
                subject.stop()
        time.sleep(SETTLE_SECONDS)
        memory = subject.running.memory_bytes() / 1e6
        figures[subject.name] = {"start to first answer": min(seconds), "memory, idle": memory}
    return figures


class Course:
    """One round at one subject."""

    def __init__(self, subject: Subject, seconds: float, say: Say) -> None:
        self._subject = subject
        self._seconds = seconds
        self._say = say
        self._asked = self._failed = 0

    def _drive(self, question: Question, connections: int) -> tuple[Taken, float]:
        """What was taken, and the CPU milliseconds of an answer.

        Raises:
            RuntimeError: most answers are wrong, so that the rest says nothing.
        """
        before = self._subject.running.cpu_seconds()
        taken = Load(self._subject.url, self._subject.key, question).drive(connections, self._seconds)
        used = self._subject.running.cpu_seconds() - before
        right, failed = len(taken.latencies), len(taken.failures)
        self._asked += right + failed
        self._failed += failed
        if failed:
            self._say(f"{self._subject.name}: {failed} of {right + failed} failed, as: {taken.failures[0]}")
        if failed >= right:
            raise RuntimeError(f"{self._subject.name} fails:\n{self._subject.running.said[-3000:]}")
        return taken, used / right * 1000

    def run(self) -> Round:
        """The whole load."""
        single, _ = self._drive(WHOLE, 1)
        first, _ = self._drive(FIRST, 1)
        some, some_cpu = self._drive(WHOLE, SOME)
        many, _ = self._drive(WHOLE, MANY)
        streams, streams_cpu = self._drive(STREAM, STREAMS)
        return {
            "latency p50, 1 connection": percentile(single.latencies, 0.5) * 1000,
            "latency p99, 1 connection": percentile(single.latencies, 0.99) * 1000,
            "first token p50, 1 stream": percentile(first.firsts, 0.5) * 1000,
            "answers, 1 connection": _rate(single),
            f"answers, {SOME} connections": _rate(some),
            f"answers, {MANY} connections": _rate(many),
            STREAM_SHARE: _rate(streams) / IDEAL_PER_SECOND * 100,
            "failed answers": self._failed / self._asked * 100,
            f"CPU of an answer, {SOME} connections": some_cpu,
            STREAM_CPU: streams_cpu,
        }


def _rate(taken: Taken) -> float:
    return len(taken.latencies) / taken.seconds


def measure(subjects: Sequence[Subject], *, seconds: float, rounds: int, say: Say) -> dict[str, Round]:
    """By subject, the medians of the rounds. The subjects run on; the caller stops them.

    Args:
        seconds: for each load at each subject in each round.

    Raises:
        RuntimeError: one does not start, or most of its answers are wrong.
    """
    figures = start_all(subjects, say)
    for subject in subjects:
        Course(subject, WARM_SECONDS, say).run()
    taken: dict[str, list[Round]] = {subject.name: [] for subject in subjects}
    for number in range(rounds):
        for offset in range(len(subjects)):
            subject = subjects[(number + offset) % len(subjects)]
            say(f"round {number + 1} of {rounds}: {subject.name}")
            taken[subject.name].append(Course(subject, seconds, say).run())
    for subject in subjects:
        # A failure counts in whichever round it was: the median could hide it.
        failed = statistics.mean(one["failed answers"] for one in taken[subject.name])
        after = {"failed answers": failed, "memory, after the load": subject.running.memory_bytes() / 1e6}
        figures[subject.name] |= {**medians(taken[subject.name]), **after}
    return figures
