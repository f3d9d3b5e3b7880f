"""The rounds: every subject under the same load, in turns, so that what disturbs the machine disturbs all of them."""

import time
from collections.abc import Callable, Sequence

from bench.peers.load import Question, drive
from bench.peers.rows import Round, medians, percentile
from bench.peers.subjects import Subject

WHOLE = Question("fast", 20)
FIRST = Question("paced", 10, stream=True)
STREAM = Question("paced", 100, stream=True)
TOKEN_SECONDS = 0.005
STREAMS = 100
CONNECTIONS = (1, 16, 64)
STARTS = 3
SETTLE_SECONDS = 2.0
"""After which whatever a start still had to do in the background is done."""
WARM_SECONDS = 1.0
IDEAL_PER_SECOND = STREAMS / (STREAM.tokens * TOKEN_SECONDS)
"""Whole streams, if nothing came between their tokens."""
UNITS = {
    "latency p50, 1 connection": "ms",
    "latency p99, 1 connection": "ms",
    "first token p50, 1 stream": "ms",
    **{f"answers, {count} connection{'s' if count > 1 else ''}": "/s" for count in CONNECTIONS},
    f"{STREAMS} streams of {STREAM.tokens} tokens at {TOKEN_SECONDS * 1000:g} ms: of the ideal rate": "%",
    "CPU of an answer, 16 connections": "ms",
    f"CPU of a stream of {STREAM.tokens} tokens": "ms",
    "memory, idle": "MB",
    "memory, after the load": "MB",
    "start to first answer": "s",
}
STREAM_SHARE, STREAM_CPU = (name for name in UNITS if f"of {STREAM.tokens} tokens" in name)
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


def one_round(subject: Subject, seconds: float) -> Round:
    """The whole load at one subject."""
    single = drive(subject.url, subject.key, WHOLE, connections=1, seconds=seconds)
    first = drive(subject.url, subject.key, FIRST, connections=1, seconds=seconds)
    figures = {
        "latency p50, 1 connection": percentile(single.latencies, 0.5) * 1000,
        "latency p99, 1 connection": percentile(single.latencies, 0.99) * 1000,
        "first token p50, 1 stream": percentile(first.firsts, 0.5) * 1000,
        "answers, 1 connection": len(single.latencies) / single.seconds,
    }
    for connections in CONNECTIONS[1:]:
        before = subject.running.cpu_seconds()
        many = drive(subject.url, subject.key, WHOLE, connections=connections, seconds=seconds)
        figures[f"answers, {connections} connections"] = len(many.latencies) / many.seconds
        if connections == 16:
            used = subject.running.cpu_seconds() - before
            figures["CPU of an answer, 16 connections"] = used / len(many.latencies) * 1000
    before = subject.running.cpu_seconds()
    streams = drive(subject.url, subject.key, STREAM, connections=STREAMS, seconds=seconds)
    used, count = subject.running.cpu_seconds() - before, len(streams.latencies)
    figures[STREAM_SHARE] = count / streams.seconds / IDEAL_PER_SECOND * 100
    figures[STREAM_CPU] = used / count * 1000
    return figures


def measure(subjects: Sequence[Subject], *, seconds: float, rounds: int, say: Say) -> dict[str, Round]:
    """By subject, the medians of the rounds. The subjects run on; the caller stops them.

    Args:
        seconds: for each load at each subject in each round.

    Raises:
        RuntimeError: one does not start, or answers wrongly.
    """
    figures = start_all(subjects, say)
    for subject in subjects:
        one_round(subject, WARM_SECONDS)
    taken: dict[str, list[Round]] = {subject.name: [] for subject in subjects}
    for number in range(rounds):
        for offset in range(len(subjects)):
            subject = subjects[(number + offset) % len(subjects)]
            say(f"round {number + 1} of {rounds}: {subject.name}")
            taken[subject.name].append(one_round(subject, seconds))
    for subject in subjects:
        after = {"memory, after the load": subject.running.memory_bytes() / 1e6}
        figures[subject.name] |= {**medians(taken[subject.name]), **after}
    return figures
