"""Detection and fine timing: what is found, what is not, and how exactly."""

import numpy as np
import pytest

from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver
from tests.support.phy import make_streams, noisy, one_burst, receive, silence

CONFIG = PhyConfig()
N = np.arange(400_000)
RNG = np.random.default_rng(17)

NO_BURSTS = {
    "zeros": np.zeros(N.size),
    "dc": np.full(N.size, 0.7 - 0.2j),
    "full scale": np.full(N.size, 127 + 127j),
    "tone": np.exp(2j * np.pi * 0.0123 * N),
    "keyed tone": np.exp(2j * np.pi * 0.0123 * N) * (N // 3000 % 2),
    "keyed dc": (N // 2500 % 2).astype(float),
    "period of a short block": np.exp(2j * np.pi * N / 64) * (N // 700 % 2),
    "clipped noise": np.sign(RNG.standard_normal(N.size)) + 1j * np.sign(RNG.standard_normal(N.size)),
    "impulses": (N % 977 == 0).astype(float),
    "chirp": np.exp(1j * np.pi * 1e-7 * N.astype(float) ** 2),
    "repeated noise": np.tile(RNG.standard_normal(64) + 1j * RNG.standard_normal(64), N.size // 64),
}


@pytest.mark.parametrize("name", NO_BURSTS)
def test_what_is_no_burst_gives_no_burst(name: str) -> None:
    bursts, _ = receive(NO_BURSTS[name], CONFIG)
    assert bursts == []


def test_steady_signals_do_not_even_trigger() -> None:
    for name in ("zeros", "dc", "full scale", "tone", "impulses", "chirp", "repeated noise"):
        receiver = BurstReceiver(CONFIG)
        receiver.push(NO_BURSTS[name].astype(np.complex64))  # no flush: the end of a tone is not steady
        assert receiver.counters.detections == 0, name


def test_ten_million_samples_of_noise_give_no_header() -> None:
    rng = np.random.default_rng(1)
    receiver = BurstReceiver(CONFIG)
    for _ in range(10):
        assert receiver.push(rng.standard_normal(2_000_000, dtype=np.float32).view(np.complex64)) == []
    assert receiver.flush() == []
    # The threshold is one that noise exceeds about once in 1e9 windows.
    assert receiver.counters.detections == 0


@pytest.mark.parametrize("snr_db", [0.0, 25.0])
def test_timing_and_carrier_offset(snr_db: float) -> None:
    rng = np.random.default_rng(5)
    streams = make_streams(rng, [500])
    burst = one_burst(CONFIG, streams)
    for cfo in (-1.9, -1.5, -1.0, -0.5, 0.0, 0.3, 1.0, 1.5, 1.9):
        gap = int(rng.integers(600, 3000))
        (got,), _ = receive(noisy(rng, np.concatenate([silence(gap), burst, silence(500)]), snr_db, cfo), CONFIG)
        assert abs(got.start - gap) <= 2
        assert got.cfo == pytest.approx(cfo, abs=0.03 if snr_db == 0.0 else 2e-3)


@pytest.mark.parametrize("level", [1e-9, 1e-3, 1.0, 1e5, 1e11])
def test_level_does_not_matter(level: float) -> None:
    rng = np.random.default_rng(6)
    burst = one_burst(CONFIG, make_streams(rng, [500]))
    samples = noisy(rng, np.concatenate([silence(1000), burst, burst, silence(500)]), 15.0, 0.4)
    bursts, _ = receive(samples * np.float32(level), CONFIG)
    assert len(bursts) == 2
    assert all(b.snr_db == pytest.approx(15.0, abs=0.6) for b in bursts)


@pytest.mark.parametrize("cfo", [0.0, 0.4, -1.2])
def test_a_constant_twenty_decibels_above_the_signal_is_taken_out(cfo: float) -> None:
    rng = np.random.default_rng(7)
    burst = one_burst(CONFIG, make_streams(rng, [4000]))
    samples = noisy(rng, np.concatenate([silence(9000), burst, silence(9000)]), 20.0, cfo) + np.complex64(6 + 8j)
    (got,), _ = receive(samples, CONFIG)
    assert got.snr_db == pytest.approx(20.0, abs=0.5)


def test_a_weaker_signal_under_the_detection_threshold_is_left_alone() -> None:
    rng = np.random.default_rng(8)
    burst = one_burst(CONFIG, make_streams(rng, [500]))
    bursts, receiver = receive(noisy(rng, np.concatenate([silence(1000), burst] * 5), -15.0), CONFIG)
    assert bursts == []
    assert receiver.counters.header_failures == receiver.counters.detections
