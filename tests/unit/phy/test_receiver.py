"""The receiver against physics and against misfortune."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from multisc.channel.clock import ClockOffset
from multisc.phy import modulation
from multisc.phy.assembly import Assembler
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.header import pack_description
from multisc.phy.receiver import BurstReceiver, IdealSync, ReceivedBurst
from multisc.phy.transport import modulate
from multisc.streams import Stream
from tests.support.phy import (
    AT_1E3,
    error_ratio,
    make_streams,
    mean_error,
    noisy,
    one_burst,
    receive,
    silence,
    theory,
)

CONFIG = PhyConfig()
SHORT = PhyConfig(max_payload_symbols=16)


def test_bursts_are_found_with_right_header_at_0_db() -> None:
    """At least 99 % with 99 % confidence: 600 bursts may fail at most once."""
    rng = np.random.default_rng(10)
    streams = make_streams(rng, [20] * 5)
    receiver = BurstReceiver(SHORT)
    good = 0
    for image_id in range(600):
        burst = one_burst(SHORT, streams, image_id)
        padded = np.concatenate([silence(int(rng.integers(0, 1500))), burst])
        got = receiver.push(noisy(rng, padded, 0.0, cfo=rng.uniform(-1.5, 1.5)))
        good += sum(b.header.system == "multi-sc" and b.header.side_info == b"side" for b in got)
    good += len(receiver.flush())
    assert binom.cdf(600 - good, 600, 0.01) < 0.02 or good == 600, f"{good} of 600"


def test_long_headers_are_read_at_minus_5_db() -> None:
    """Preamble and header of five streams: less than 1 % lost, 99 % sure: at most 1 of 660."""
    rng = np.random.default_rng(11)
    streams = [
        modulate(Stream(f"caption-{i}", rng.standard_normal(40).astype(np.float32), "analog")) for i in range(5)
    ]
    burst = one_burst(SHORT, streams)
    receiver = BurstReceiver(SHORT)
    got: list[ReceivedBurst] = []
    for _ in range(660):
        padded = np.concatenate([silence(int(rng.integers(0, 1500))), burst])
        got += receiver.push(noisy(rng, padded, -5.0, cfo=rng.uniform(-1.5, 1.5)))
    got += receiver.flush()
    size = len(pack_description(got[0].header)) + 3
    assert 125 <= size <= 135, size
    lost = 660 - sum(b.header.side_info == b"side" and len(b.segments) == 5 for b in got)
    assert binom.cdf(lost, 660, 0.01) < 0.0105, f"{lost} lost"


def test_analog_features_at_minus_5_db_are_as_good_as_the_channel() -> None:
    """Wiener estimates of Gaussian features of unit power err by N0 / (1 + N0); up to 1 dB more may be lost."""
    rng = np.random.default_rng(12)
    features = rng.standard_normal(20000).astype(np.float32)
    stream = modulate(Stream("features", features, "analog"))
    assembler = Assembler()
    images = []
    for image_id in range(4):
        padded = np.concatenate([silence(500), one_burst(CONFIG, [stream], image_id), silence(300)])
        (burst,), _ = receive(noisy(rng, padded, -5.0, rng.uniform(-1.5, 1.5)), CONFIG)
        assert burst.snr_db == pytest.approx(-5.0, abs=1.0)
        # What is stated as noise holds what channel and phase estimates add to it.
        assert error_ratio(burst, [stream]) == pytest.approx(1.0, abs=0.06)
        images += assembler.add(burst)
    assert len(images) == 4
    n0 = 10.0**0.5
    for image in images:
        (received,) = image.receive().streams
        heard = received.data.astype(np.float64)
        raw = np.mean((heard - features) ** 2)
        wiener = np.mean((heard / (1.0 + n0) - features) ** 2)
        assert 10 * np.log10(raw / n0) == pytest.approx(0.0, abs=1.0)
        assert 10 * np.log10(wiener / (n0 / (1.0 + n0))) == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize("snr_db", [0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
def test_snr_estimate(snr_db: float) -> None:
    rng = np.random.default_rng(int(snr_db))
    burst = one_burst(SHORT, make_streams(rng, [2000]))
    bursts, _ = receive(noisy(rng, np.concatenate([silence(400), *[burst] * 20]), snr_db, 0.6), SHORT)
    assert len(bursts) == 20
    estimates = np.array([b.snr_db for b in bursts])
    assert abs(estimates.mean() - snr_db) < 0.3
    assert np.abs(estimates - snr_db).max() < 0.75
    assert np.mean(np.abs(estimates - snr_db) < 0.5) >= 0.95


def errors_of(name: str, snr_db: float, ideal: bool, bursts: int) -> tuple[int, int]:
    rng = np.random.default_rng(21)
    (stream,) = streams = make_streams(rng, [22000], name)
    burst = one_burst(CONFIG, streams)
    period = burst.size + 300
    known = IdealSync(range(300, bursts * period, period), 10 ** (-snr_db / 10)) if ideal else None
    receiver = BurstReceiver(CONFIG, known)
    sent = modulation.demap(stream.symbols, np.float32(0.1), name, "maxlog") < 0
    wrong = total = 0
    for n in range(bursts + 1):
        piece = np.concatenate([silence(300), burst])
        cfo = 0.0 if ideal else rng.uniform(-1.5, 1.5)
        samples = noisy(rng, piece, snr_db, cfo) if not ideal else noisy_still(rng, piece, snr_db)
        for got in receiver.push(samples) if n < bursts else receiver.flush():
            segment = got.segments[0]
            heard = modulation.demap(segment.symbols, segment.noise_variance, name, "maxlog") < 0
            wrong += int((heard != sent).sum())
            total += sent.size
    assert total == bursts * sent.size
    return wrong, total


def noisy_still(rng: np.random.Generator, samples: np.ndarray, snr_db: float) -> np.ndarray:
    noise = rng.standard_normal(samples.size) + 1j * rng.standard_normal(samples.size)
    return (samples + np.sqrt(0.5 * 10.0 ** (-snr_db / 10.0)) * noise).astype(np.complex64)


@pytest.mark.parametrize("name", AT_1E3)
@pytest.mark.parametrize(("ideal", "within_db"), [(True, 0.3), (False, 0.7)])
def test_uncoded_error_rate_is_near_theory(name: str, ideal: bool, within_db: float) -> None:
    """At 1e-3 the error rate lies between theory and theory at an SNR less by the allowance (99.9 % bounds)."""
    snr_db = AT_1E3[name]
    assert theory(name, snr_db) == pytest.approx(1e-3, rel=0.02)
    wrong, total = errors_of(name, snr_db, ideal, 6)
    deviation = 3.3 / np.sqrt(max(wrong, 1))
    rate = wrong / total
    assert rate * (1 + deviation) > theory(name, snr_db) * 0.999
    assert rate * (1 - deviation) < theory(name, snr_db - within_db)
    assert rate < theory(name, snr_db - within_db)


@pytest.mark.parametrize("ppm", [-20.0, 20.0])
@pytest.mark.parametrize("symbols", [128, 512])
def test_clock_offset_over_the_longest_burst(ppm: float, symbols: int) -> None:
    config = PhyConfig(max_payload_symbols=symbols)
    rng = np.random.default_rng(31)
    streams = make_streams(rng, [symbols * 176])
    clean = np.concatenate([silence(700), one_burst(config, streams), silence(200)])
    offset = ClockOffset(ppm)
    shifted = np.concatenate([offset.process(clean), offset.finish()])
    (got,), _ = receive(noisy(rng, shifted, 22.0, 0.5), config)
    assert got.clock_ppm == pytest.approx(ppm, abs=0.5)
    assert -10 * np.log10(mean_error(got, streams)) > 21.5
    assert error_ratio(got, streams) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("delays", [(0, 1), (0, 17), (0, 30), (0, 40), (3, 20, 43)])
def test_echoes_within_the_prefix_are_equalised(delays: tuple[int, ...]) -> None:
    rng = np.random.default_rng(41)
    streams = make_streams(rng, [10000])
    taps = np.zeros(50, complex)
    taps[list(delays)] = [1.0, 0.6j, -0.4][: len(delays)]
    taps /= np.linalg.norm(taps)
    sent = np.concatenate([silence(500), one_burst(CONFIG, streams), silence(100)])
    (got,), _ = receive(noisy(rng, np.convolve(sent, taps)[: sent.size], 22.0, -0.8), CONFIG)
    assert got.snr_db == pytest.approx(22.0, abs=0.5)
    # What the receiver states as noise of each symbol, weak subcarriers included, is what there is.
    assert error_ratio(got, streams) == pytest.approx(1.0, abs=0.06)


def test_a_path_that_begins_weakly_is_inside_the_window() -> None:
    rng = np.random.default_rng(42)
    streams = make_streams(rng, [10000])
    taps = np.zeros(25, complex)
    taps[0], taps[20] = 0.25, 0.97
    sent = np.concatenate([silence(500), one_burst(CONFIG, streams), silence(100)])
    (got,), _ = receive(noisy(rng, np.convolve(sent, taps)[: sent.size], 22.0), CONFIG)
    assert got.snr_db == pytest.approx(22.0, abs=0.5)


def test_fading_within_a_burst_is_followed() -> None:
    """A gain that turns at up to 67 Hz (at 2 Msample/s) and fades by 9.5 dB costs little more than its fades."""
    rng = np.random.default_rng(43)
    streams = make_streams(rng, [20000])
    sent = np.concatenate([silence(500), one_burst(CONFIG, streams), silence(100)])
    n = np.arange(sent.size)
    gain = (1.0 + 0.5 * np.exp(2j * np.pi * n / 30000)) / np.sqrt(1.25)
    (got,), _ = receive(noisy(rng, sent * gain, 22.0), CONFIG)
    assert 0.9 < error_ratio(got, streams) < 1.3
    assert -10 * np.log10(mean_error(got, streams)) > 18.0


def test_phase_noise_is_tracked() -> None:
    rng = np.random.default_rng(44)
    streams = make_streams(rng, [20000])
    sent = np.concatenate([silence(500), one_burst(CONFIG, streams), silence(100)])
    walk = np.exp(1j * np.cumsum(0.002 * rng.standard_normal(sent.size)))
    (got,), _ = receive(noisy(rng, sent * walk, 20.0), CONFIG)
    assert -10 * np.log10(mean_error(got, streams)) > 19.3


def same(one: ReceivedBurst, two: ReceivedBurst) -> bool:
    plain = (one.header, one.snr_db, one.cfo, one.clock_ppm, one.start, one.truncated) == (
        two.header, two.snr_db, two.cfo, two.clock_ppm, two.start, two.truncated,
    )  # fmt: skip
    pairs = zip(one.segments, two.segments, strict=True)
    return plain and all(
        np.array_equal(a.symbols, b.symbols) and np.array_equal(a.noise_variance, b.noise_variance) for a, b in pairs
    )


@pytest.fixture(scope="module")
def recording() -> tuple[np.ndarray, list[ReceivedBurst]]:
    rng = np.random.default_rng(51)
    parts = [silence(333)]
    for image_id in range(6):
        parts += [one_burst(SHORT, make_streams(rng, [700, 900]), image_id), silence(int(rng.integers(0, 2) * 2000))]
    samples = noisy(rng, np.concatenate(parts), 14.0, 0.9)
    samples[5000] = np.nan
    samples = samples[:-1800]  # the last one is cut short
    bursts, _ = receive(samples, SHORT)
    assert len(bursts) == 6
    return samples, bursts


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_chopping_changes_nothing(recording: tuple[np.ndarray, list[ReceivedBurst]], data: st.DataObject) -> None:
    samples, whole = recording
    size = data.draw(st.sampled_from([1, 7, 500, 8192, 30000]))
    cuts = sorted(data.draw(st.lists(st.integers(0, samples.size), max_size=30)))
    if size > 7:
        cuts = sorted({*cuts, *range(0, samples.size, size)})
    receiver = BurstReceiver(SHORT)
    edges = [0, *cuts, samples.size]
    got = [b for a, e in pairwise(edges) for b in receiver.push(samples[a:e])] + receiver.flush()
    assert len(got) == len(whole)
    assert all(same(a, b) for a, b in zip(got, whole, strict=True))


def test_single_samples_change_nothing(recording: tuple[np.ndarray, list[ReceivedBurst]]) -> None:
    samples, whole = recording
    receiver = BurstReceiver(SHORT)
    got = [b for i in range(samples.size) for b in receiver.push(samples[i : i + 1])] + receiver.flush()
    assert all(same(a, b) for a, b in zip(got, whole, strict=True))


@pytest.mark.parametrize("snr_db", [10.0, 300.0])
def test_back_to_back_bursts_are_all_received(snr_db: float) -> None:
    rng = np.random.default_rng(61)
    transmitter = BurstTransmitter(SHORT)
    parts = [transmitter.transmit(i, make_streams(rng, [int(rng.integers(1, 2500))]))[0] for i in range(100)]
    bursts, receiver = receive(noisy(rng, np.concatenate(parts), snr_db, 0.3), SHORT)
    assert [b.header.image_id for b in bursts] == list(range(100))
    assert receiver.counters.header_failures == 0
    starts = np.cumsum([0] + [p.size for p in parts[:-1]])
    assert np.abs(np.array([b.start for b in bursts]) - starts).max() <= 1


def test_two_bursts_on_top_of_each_other() -> None:
    rng = np.random.default_rng(62)
    one, two = (one_burst(SHORT, make_streams(rng, [2500]), i) for i in (1, 2))
    both = 0
    places = range(300, one.size, 600)
    for place in places:
        samples = np.zeros(one.size + two.size + 2000, complex)
        samples[500 : 500 + one.size] += one
        samples[500 + place : 500 + place + two.size] += two * np.exp(1j)
        bursts, receiver = receive(noisy(rng, samples, 25.0), SHORT)
        counters = receiver.counters
        assert 1 <= len(bursts) <= 2
        assert counters.detections == counters.bursts + counters.header_failures + counters.refused
        both += len(bursts) == 2
    assert both >= 0.7 * len(places)  # the header is strong enough for a burst as loud as another


def test_bursts_cut_short_at_every_place() -> None:
    rng = np.random.default_rng(63)
    streams = make_streams(rng, [2500])
    burst = noisy(rng, one_burst(SHORT, streams), 20.0)
    for cut in range(0, burst.size + 1, 150):
        bursts, receiver = receive(burst[:cut], SHORT)
        c = receiver.counters
        assert c.detections == c.bursts + c.header_failures + (c.truncated - sum(b.truncated for b in bursts))
        for got in bursts:
            there = np.isfinite(got.segments[0].noise_variance)
            assert got.truncated == (not there.all())
            if there.any():
                error = np.abs(got.segments[0].symbols - streams[0].symbols)[there] ** 2
                assert error.mean() < 0.02
    (whole,), receiver = receive(burst, SHORT)
    assert not whole.truncated
    assert receiver.counters.truncated == 0


def test_bad_samples_are_counted_and_zeroed() -> None:
    rng = np.random.default_rng(64)
    streams = make_streams(rng, [2500])
    samples = noisy(rng, np.concatenate([silence(500), one_burst(SHORT, streams), silence(500)]), 25.0)
    samples[[4000, 4100]] = np.nan
    samples[4200] = np.inf + 1j
    samples[4300] = 1e20
    (got,), receiver = receive(samples, SHORT)
    assert receiver.counters.bad_samples == 4
    assert np.isfinite(got.segments[0].symbols).all()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_next_to_nothing(count: int) -> None:
    bursts, receiver = receive(np.ones(count), SHORT)
    assert bursts == []
    assert receiver.counters.samples == count


def test_a_burst_longer_than_the_receiver_allows_is_refused() -> None:
    rng = np.random.default_rng(65)
    bursts, receiver = receive(np.concatenate([silence(99), one_burst(CONFIG, make_streams(rng, [9000]))]), SHORT)
    assert bursts == []
    assert receiver.counters.refused == 1


def test_headers_that_claim_the_air_many_times_over_are_refused() -> None:
    """Preamble and header of a long burst, again and again: only so many claims are followed at once."""
    rng = np.random.default_rng(66)
    burst = one_burst(CONFIG, make_streams(rng, [22000]))
    head = burst[: 1168 + 20 * 296]
    bursts, receiver = receive(np.tile(head, 30), CONFIG)
    assert receiver.counters.refused > 0
    assert len(bursts) + receiver.counters.refused == 30


def test_memory_stays_bounded_over_a_long_stream() -> None:
    rng = np.random.default_rng(67)
    burst = noisy(rng, one_burst(SHORT, make_streams(rng, [2500])), 15.0)
    receiver = BurstReceiver(SHORT)
    count = 0
    for _ in range(300):
        count += len(receiver.push(burst))
    assert count + len(receiver.flush()) == 300
    assert receiver._buffer.capacity <= 1 << 18


def test_other_numerologies_work() -> None:
    rng = np.random.default_rng(68)
    for config in (
        PhyConfig(fft_size=512, cyclic_prefix=64, occupied=384),
        PhyConfig(fft_size=128, cyclic_prefix=16, occupied=96, orthogonal="tdm"),
        PhyConfig(fft_size=1024, cyclic_prefix=128, occupied=768, orthogonal="cdm"),
    ):
        streams = make_streams(rng, [1500, 700])
        sent = np.concatenate([silence(1000), one_burst(config, streams), silence(1000)])
        (got,), _ = receive(noisy(rng, sent, 18.0, 1.4, config.fft_size), config)
        assert error_ratio(got, streams) == pytest.approx(1.0, abs=0.15)
        assert got.cfo == pytest.approx(1.4, abs=0.01)


def test_constellation_is_unchanged_by_amplitude() -> None:
    rng = np.random.default_rng(69)
    config = PhyConfig(amplitude=0.2)
    streams = make_streams(rng, [3000])
    (got,), _ = receive(np.concatenate([silence(500), one_burst(config, streams)]), config)
    assert mean_error(got, streams) < 1e-4
