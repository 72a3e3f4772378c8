"""The stages of a receiver in threads of their own: the same bursts, whatever fails."""

import threading

import numpy as np
import pytest

from multisc.phy.config import PhyConfig
from multisc.phy.pipeline import DEPTH, ReceiverPipeline
from multisc.phy.receiver import PIECE, BurstReceiver, ReceivedBurst
from tests.support.phy import make_streams, noisy, one_burst, receive, silence

SHORT = PhyConfig(max_payload_symbols=16)


def recording(bursts: int) -> np.ndarray:
    rng = np.random.default_rng(71)
    parts = [silence(700)]
    for image_id in range(bursts):
        parts += [one_burst(SHORT, make_streams(rng, [700, 900]), image_id), silence(int(rng.integers(0, 2) * 2500))]
    samples = noisy(rng, np.concatenate(parts), 14.0, 0.9)
    samples[5000] = np.nan
    return samples[:-1800]  # the last one is cut short


def facts(burst: ReceivedBurst) -> tuple:
    return burst.header, burst.snr_db, burst.cfo, burst.start, burst.truncated, burst.grid.symbols.tobytes()


@pytest.mark.parametrize("size", [1000, 30_000, 400_000])
def test_bursts_and_counters_are_those_of_one_thread(size: int) -> None:
    samples = recording(40)
    expected, receiver = receive(samples, SHORT)
    received: list[ReceivedBurst] = []
    with ReceiverPipeline(BurstReceiver(SHORT), received.extend) as pipeline:
        for _ in range(2):  # a stream may follow another
            received.clear()
            for first in range(0, samples.size, size):
                pipeline.push(samples[first : first + size])
            pipeline.flush()
            assert len(received) == 40
            if not pipeline.receiver.counters.samples > samples.size:
                assert [facts(b) for b in received] == [facts(b) for b in expected]
                assert pipeline.receiver.counters == receiver.counters


def test_all_threads_end() -> None:
    before = threading.active_count()
    with ReceiverPipeline(BurstReceiver(SHORT), lambda bursts: None) as pipeline:
        pipeline.push(recording(2))
        pipeline.flush()
        assert threading.active_count() == before + 2
    assert threading.active_count() == before


def test_a_slow_listener_holds_the_samples_up() -> None:
    """What waits is bounded: the caller waits instead."""
    go_on, delivered = threading.Event(), []

    def deliver(bursts: list[ReceivedBurst]) -> None:
        go_on.wait(60.0)
        delivered.append(bursts)

    with ReceiverPipeline(BurstReceiver(SHORT), deliver) as pipeline:
        pieces = 3 * DEPTH
        pusher = threading.Thread(target=lambda: [pipeline.push(silence(PIECE)) for _ in range(pieces)])
        pusher.start()
        pusher.join(0.5)
        assert pusher.is_alive()
        assert pipeline.receiver.counters.samples < pieces * PIECE
        go_on.set()
        pusher.join(60.0)
        pipeline.flush()
    assert len(delivered) == pieces + 1


def test_what_a_thread_raises_is_raised_by_every_later_call() -> None:
    def broken(bursts: list[ReceivedBurst]) -> None:
        raise ZeroDivisionError("in the listener")

    with ReceiverPipeline(BurstReceiver(SHORT), broken) as pipeline:
        pipeline.push(silence(1000))
        with pytest.raises(ZeroDivisionError, match="in the listener"):
            pipeline.flush()
        with pytest.raises(ZeroDivisionError, match="in the listener"):
            pipeline.push(silence(1000))


def test_a_listener_for_failures_is_told_once() -> None:
    failures: list[Exception] = []

    def broken(bursts: list[ReceivedBurst]) -> None:
        raise ZeroDivisionError("in the listener")

    with ReceiverPipeline(BurstReceiver(SHORT), broken, failures.append) as pipeline:
        for _ in range(3 * DEPTH):
            pipeline.push(silence(1000))
        pipeline.flush()
    assert [str(failure) for failure in failures] == ["in the listener"]
