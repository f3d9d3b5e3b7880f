"""What is measured beside the requests: the loop, the store's files, a back end's attempts."""

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from covey.contracts.inference import Usage
from covey.errors import CallError
from covey.roles.inference.attempt import Attempt
from covey.store.files import size_of
from covey.telemetry.collectors import StoreSample
from covey.telemetry.loop_lag import measure_loop_lag
from covey.telemetry.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_a_loop_that_is_held_is_late() -> None:
    clock = MockClock()  # by hand: jumps as if something had held the loop

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(measure_loop_lag, metrics.loop_lag)
            for held in (0.5, 0.8):
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(held)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    metrics = Metrics()
    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))
    assert value(metrics, "covey_event_loop_lag_seconds_count") == 2
    assert value(metrics, "covey_event_loop_lag_seconds_sum") == pytest.approx(0.3)


def test_the_size_of_a_store(tmp_path: Path) -> None:
    assert size_of(tmp_path / "none") == (0, 0)
    (tmp_path / "below").mkdir()
    (tmp_path / "one").write_bytes(b"x" * 10)
    (tmp_path / "below" / "two").write_bytes(b"x" * 5)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert size_of(tmp_path) == (2, 15)
    metrics = Metrics()
    metrics.store.read = lambda: StoreSample(*size_of(tmp_path))
    assert value(metrics, "covey_store_bytes") == 15
    assert value(metrics, "covey_store_files") == 2


def test_models_are_counted_by_back_end_and_state() -> None:
    metrics = Metrics()
    metrics.models.read = lambda: {("embedded", "loaded"): 1, ("embedded", "on_disk"): 2}
    assert value(metrics, "covey_models", backend="embedded", state="on_disk") == 2


async def test_an_attempt_is_counted_timed_and_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.DEBUG, "covey"), Attempt(metrics, "echo", "tiny") as attempt:
        assert attempt.waits
        await trio.sleep(2)
        attempt.answers()
        assert not attempt.waits
        attempt.usage = Usage(12, 1, 8)
    assert value(metrics, "covey_backend_requests_total", backend="echo", outcome="ok") == 1
    assert value(metrics, "covey_backend_first_token_seconds_sum", backend="echo") == 2
    assert value(metrics, "covey_backend_first_token_seconds_count", backend="echo") == 1
    assert [record.getMessage() for record in caplog.records] == [
        "The back end echo begins to answer with tiny.",
        "The back end echo has ended (ok) after 2.000 s: 1 tokens, on a prompt of 12 of which 8 were cached.",
    ]


async def test_attempts_that_fail_or_are_left(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.DEBUG, "covey"):
        with pytest.raises(CallError), Attempt(metrics, "echo", "tiny"):
            raise CallError("upstream", "Broken.")
        with trio.CancelScope() as scope, Attempt(metrics, "echo", "tiny"):
            scope.cancel()
            await trio.sleep_forever()
    assert value(metrics, "covey_backend_requests_total", backend="echo", outcome="upstream") == 1
    assert value(metrics, "covey_backend_requests_total", backend="echo", outcome="cancelled") == 1
    assert "has ended (upstream)" in caplog.messages[1]


async def test_embedded_tokens_are_counted() -> None:
    metrics = Metrics()
    with Attempt(metrics, "embedder", "e5") as attempt:
        attempt.embedded(7)
        attempt.embedded(4)
    assert value(metrics, "covey_backend_first_token_seconds_count", backend="embedder") == 1
    assert value(metrics, "covey_embedding_tokens_total", model="e5") == 11
