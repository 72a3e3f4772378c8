"""Every impairment against theory, and against itself when the samples are chopped differently."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from multisc import channel
from multisc.errors import BadInputError
from multisc.phy import modulation, units

RATE = 2e6


def tone(frequency, count):
    return np.exp(2j * np.pi * frequency * np.arange(count)).astype(np.complex64)


def run(stage, samples):
    return np.concatenate([stage.process(samples), stage.finish()])


def db_power(x):
    return 10 * np.log10(np.mean(np.abs(x.astype(complex)) ** 2))


CONFIGS = {
    "awgn": {"kind": "awgn"},
    "rayleigh-block": {"kind": "rayleigh", "fading_block": 37},
    "rayleigh-doppler": {"kind": "rayleigh", "doppler_hz": 900.0},
    "rician-fast": {"kind": "rician", "doppler_hz": 40e3},
    "tdl": {"kind": "tdl", "doppler_hz": 30e3, "delay_spread_s": 2e-6},
    "tdl-d": {"kind": "tdl", "profile": "D"},
    "all": {
        "kind": "tdl",
        "doppler_hz": 900.0,
        "gain_db": -3.0,
        "delay": 55,
        "cfo_hz": 12345.6,
        "clock_ppm": 900.0,
        "linewidth_hz": 50.0,
        "iq_gain_db": 1.0,
        "iq_phase_deg": 2.0,
        "dc_offset": 0.05,
        "clip": 1.5,
        "adc_bits": 8,
    },
    "slow-clock": {"kind": "awgn", "clock_ppm": -1000.0},
}


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1700), min_size=1, max_size=12))
def test_chopping_changes_no_bit(name, sizes):
    rng = np.random.default_rng(3)
    samples = rng.standard_normal(2 * 6000, np.float32).view(np.complex64)
    make = channel.ChannelConfig(noise_variance=0.1, seed=5, **CONFIGS[name]).build
    whole = run(make(), samples)
    stage = make()
    edges = [0, *[int(e) for e in np.cumsum(sizes) if e < samples.size], samples.size]
    parts = [stage.process(samples[a:b]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate([*parts, stage.finish()]).view(np.uint32), whole.view(np.uint32))


@pytest.mark.parametrize("name", CONFIGS)
def test_same_seed_same_samples_and_other_seed_others(name):
    samples = tone(0.03, 5000)
    first, again, other = (
        run(channel.ChannelConfig(noise_variance=0.1, seed=s, **CONFIGS[name]).build(), samples) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_does_not_depend_on_the_other_impairments():
    silence = np.zeros(1000, np.complex64)
    plain = channel.make_channel("awgn", 1.0, 9).process(silence)
    turned = channel.make_channel("rayleigh", 1.0, 9, cfo_hz=100.0, linewidth_hz=3.0).process(silence)
    np.testing.assert_array_equal(plain, turned)


@pytest.mark.parametrize("variance", [1e-4, 1.0, 50.0])
def test_noise_has_its_variance_is_circular_gaussian_and_white(variance):
    count = 400_000
    noise = channel.Awgn(variance, seed=11).process(np.zeros(count, np.complex64)).astype(complex)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], 2 * count) * variance / 2
    assert low < np.sum(np.abs(noise) ** 2) < high
    bound = 4.5 / np.sqrt(count)
    assert abs(np.mean(noise)) < 1.5 * bound * np.sqrt(variance)
    assert (
        abs(np.mean(noise**2)) < 2.5 * bound * variance
    )  # circular: real and imaginary parts are alike, uncorrelated
    for lag in (1, 2, 7):
        assert abs(np.mean(noise[lag:] * np.conj(noise[:-lag]))) < 1.5 * bound * variance
    assert stats.kstest(noise.real / np.sqrt(variance / 2), "norm").pvalue > 1e-4


def block_gains(k_factor, count, seed):
    return (
        channel.FlatFading(RATE, k_factor, block=1, seed=seed).process(np.ones(count, np.complex64)).astype(complex)
    )


def test_rayleigh_envelope_and_unit_mean_power():
    h = block_gains(0.0, 40_000, 21)
    assert stats.kstest(np.abs(h), stats.rayleigh(scale=np.sqrt(0.5)).cdf).pvalue > 1e-4
    assert stats.kstest(np.angle(h), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-4
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], 2 * h.size) / (2 * h.size)
    assert low < np.mean(np.abs(h) ** 2) < high


@pytest.mark.parametrize("k_db", [0.0, 6.0, 12.0])
def test_rician_envelope_has_its_k_factor(k_db):
    k = units.linear(k_db)
    h = block_gains(k, 40_000, 22)
    envelope = stats.rice(b=np.sqrt(2 * k), scale=np.sqrt(0.5 / (1 + k)))
    assert stats.kstest(np.abs(h), envelope.cdf).pvalue > 1e-4
    other = stats.rice(b=np.sqrt(2 * k * 1.2), scale=np.sqrt(0.5 / (1 + 1.2 * k)))
    assert stats.kstest(np.abs(h), other.cdf).pvalue < 1e-4  # the test can tell 0.8 dB apart


def test_blocks_are_constant_and_independent():
    h = channel.FlatFading(RATE, block=100, seed=4).process(np.ones(300_000, np.complex64)).astype(complex)
    blocks = h.reshape(-1, 100)
    assert (blocks == blocks[:, :1]).all()
    g = blocks[:, 0]
    assert abs(np.mean(g[1:] * np.conj(g[:-1]))) < 4.5 / np.sqrt(g.size)
    static = channel.FlatFading(RATE, seed=4).process(np.ones(1000, np.complex64))
    assert (static == static[0]).all()


def test_doppler_envelope_is_rayleigh_over_realisations():
    samples = np.ones(1, np.complex64)
    h = np.array([channel.FlatFading(RATE, doppler_hz=50.0, seed=s).process(samples)[0] for s in range(3000)])
    assert stats.kstest(np.abs(h), stats.rayleigh(scale=np.sqrt(0.5)).cdf).pvalue > 1e-4
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], 2 * h.size) / (2 * h.size)
    assert low < np.mean(np.abs(h) ** 2) < high


def test_doppler_autocorrelation_is_j0():
    from scipy.special import j0

    doppler = 20e3  # 100 samples per Doppler cycle
    h = channel.FlatFading(RATE, doppler_hz=doppler, seed=6).process(np.ones(4_000_000, np.complex64)).astype(complex)
    assert np.mean(np.abs(h) ** 2) == pytest.approx(1.0, abs=0.02)
    for lag in (0, 10, 25, 38, 60, 87, 120, 200, 300):
        measured = np.mean(h[lag:] * np.conj(h[: h.size - lag]))
        assert abs(measured - j0(2 * np.pi * doppler * lag / RATE)) < 0.02, lag


def test_doppler_grid_is_fine_enough():
    """Interpolated gains against sinusoids computed sample by sample: errors 80 dB down."""
    stage = channel.FlatFading(RATE, doppler_hz=300.0, seed=8)
    process = stage._process
    assert process.step > 1
    h = stage.process(np.ones(50_000, np.complex64)).astype(complex)
    n = np.arange(h.size)[:, None]
    exact = (process._levels[0] * np.exp(1j * (process._rates[0] / process.step * n + process._phases[0]))).sum(1)
    assert db_power(h - exact) < -80


@pytest.mark.parametrize("name", channel.PROFILES)
def test_tdl_profile_has_unit_power_and_unit_delay_spread(name):
    from multisc.channel.tdl import profile

    delays, powers, k_factors = profile(name)
    assert powers.sum() == pytest.approx(1.0)
    mean = (powers * delays).sum()
    assert np.sqrt((powers * delays**2).sum() - mean**2) == pytest.approx(1.0, abs=0.01)  # as TR 38.901 normalises
    wanted = {"D": 13.3, "E": 22.0}
    assert k_factors[0] == pytest.approx(units.linear(wanted[name]) if name in wanted else 0.0, rel=1e-3)


@pytest.mark.parametrize(("name", "spread_s"), [("A", 4e-6), ("B", 6e-6), ("C", 5e-6), ("D", 5e-6), ("E", 3e-6)])
def test_tdl_impulse_responses_have_the_delay_power_profile(name, spread_s):
    """Mean power by delay, over many draws of the channel, against the table put on the sample grid."""
    from multisc.channel.tdl import _spread, profile

    length, draws = 300, 1500
    pulse = np.zeros(length * draws, np.complex64)
    pulse[::length] = 1
    stage = channel.TappedDelayLine(RATE, name, spread_s, block=length, seed=12)
    responses = stage.process(pulse).reshape(draws, length).astype(complex)
    measured = np.mean(np.abs(responses) ** 2, axis=0)
    delays, powers, _ = profile(name)
    shape = _spread(delays * spread_s * RATE)
    expected = np.zeros(length)
    expected[: shape.shape[1]] = powers @ shape**2
    # Sums of exponentials have a relative deviation of at most 1 / sqrt(draws).
    np.testing.assert_array_less(np.abs(measured - expected), 5 * expected / np.sqrt(draws) + 1e-9)
    assert measured.sum() == pytest.approx((powers @ shape**2).sum(), rel=5 / np.sqrt(draws))
    mean = (measured * np.arange(length)).sum() / measured.sum()
    assert mean - stage.lead == pytest.approx((powers * delays).sum() * spread_s * RATE, rel=0.1)


def test_tdl_has_unit_mean_gain_across_the_occupied_band():
    """White input of unit power comes out at unit power at every frequency inside 0.44 of the sample rate."""
    length, draws = 256, 3000
    pulse = np.zeros(length * draws, np.complex64)
    pulse[::length] = 1
    stage = channel.TappedDelayLine(RATE, "C", 1e-6, block=length, seed=13)
    spectrum = np.fft.fft(stage.process(pulse).reshape(draws, length), axis=1)
    gain = np.mean(np.abs(spectrum) ** 2, axis=0)
    band = np.abs(np.fft.fftfreq(length)) < 0.44
    assert np.abs(gain[band] - 1).max() < 5 / np.sqrt(draws)
    for subcarrier in (1, 40, -96):  # and each is Rayleigh distributed
        assert stats.kstest(np.abs(spectrum[:, subcarrier]) ** 2, "expon").pvalue > 1e-4


@pytest.mark.parametrize("esn0_db", [0.0, 10.0, 20.0])
def test_uncoded_ber_on_rayleigh_is_the_closed_form(esn0_db):
    """BPSK, coherent, known gain: (1 - sqrt(g / (1 + g))) / 2; every symbol has a gain of its own."""
    count = 300_000
    bits = np.random.default_rng(14).integers(0, 2, count, dtype=np.uint8)
    samples = modulation.map_bits(bits, "bpsk")
    variance = units.noise_variance(esn0_db)
    chain = channel.make_channel("rayleigh", variance, 15, RATE, fading_block=1)
    gains = channel.make_channel("rayleigh", 0.0, 15, RATE, fading_block=1).process(np.ones_like(samples))
    received = chain.process(samples) / gains
    ratios = modulation.demap(received, variance / np.abs(gains) ** 2, "bpsk")
    errors = int(((ratios < 0) != bits).sum())
    snr = units.linear(esn0_db)
    expected = 0.5 * (1 - np.sqrt(snr / (1 + snr)))
    low = stats.beta.ppf(5e-5, errors, count - errors + 1)
    high = stats.beta.ppf(1 - 5e-5, errors + 1, count - errors)
    assert low < expected < high


def measured_frequency(samples):
    """Frequency of a noiseless tone in cycles per sample, by a line through its phase."""
    phase = np.unwrap(np.angle(samples.astype(complex)))
    return np.polyfit(np.arange(samples.size), phase, 1)[0] / (2 * np.pi)


@pytest.mark.parametrize("cfo_hz", [-900e3, -1.5, 77.7, 123456.7])
def test_carrier_offset_moves_a_tone_by_its_frequency_for_ever(cfo_hz):
    stage = channel.CarrierOffset(cfo_hz, RATE)
    skip = 50_000_000
    stage._position = skip  # as if 25 s had passed
    out = stage.process(np.ones(5000, np.complex64))
    assert measured_frequency(out) * RATE == pytest.approx(cfo_hz, abs=0.05)
    exact = np.exp(2j * np.pi * np.remainder((skip + np.arange(5000)) * (cfo_hz / RATE), 1.0))
    assert np.abs(out - exact).max() < 1e-5


@pytest.mark.parametrize("ppm", [-200.0, -20.0, 20.0, 350.0])
@pytest.mark.parametrize("frequency", [0.03, -0.21, 0.44])
def test_clock_offset_scales_frequencies_and_length_without_droop(ppm, frequency):
    samples = tone(frequency, 100_000)
    out = run(channel.ClockOffset(ppm), samples)
    assert abs(out.size - samples.size * (1 + ppm * 1e-6)) <= 2
    inner = out[100:-100]
    assert measured_frequency(inner) == pytest.approx(frequency / (1 + ppm * 1e-6), abs=2e-9)
    assert np.abs(np.abs(inner) - 1).max() < 2e-3
    n = np.arange(out.size)[100:-100]
    assert db_power(inner - np.exp(2j * np.pi * frequency * n / (1 + ppm * 1e-6))) < (
        -75 if abs(frequency) < 0.4 else -55
    )


def test_clock_offset_starts_at_the_first_sample_and_zero_offset_is_a_wire():
    samples = np.random.default_rng(1).standard_normal(2000, np.float32).view(np.complex64)
    np.testing.assert_allclose(run(channel.ClockOffset(0.0), samples), samples, atol=1e-6)
    assert channel.ClockOffset(5.0).finish().size == 0


def test_phase_noise_is_a_random_walk_of_the_given_linewidth():
    linewidth, count = 400.0, 1_000_000
    out = channel.PhaseNoise(linewidth, RATE, seed=3).process(np.ones(count, np.complex64))
    np.testing.assert_allclose(np.abs(out), 1.0, atol=1e-5)
    steps = np.diff(np.unwrap(np.angle(out.astype(complex))))
    expected = 2 * np.pi * linewidth / RATE
    assert np.var(steps) == pytest.approx(expected, rel=4.5 * np.sqrt(2 / count) + 1e-3)
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 4.5 / np.sqrt(count)


def test_iq_imbalance_makes_an_image_at_its_rejection_and_keeps_the_power():
    stage = channel.IqImbalance(0.5, 3.0)
    count = 4096
    spectrum = np.fft.fft(stage.process(tone(100 / count, count))) / count
    # (1 + g^2 + 2 g cos) / (1 + g^2 - 2 g cos), the textbook's rejection
    g, phi = 10 ** (0.5 / 20), np.deg2rad(3.0)
    expected = 10 * np.log10((1 + g**2 + 2 * g * np.cos(phi)) / (1 + g**2 - 2 * g * np.cos(phi)))
    measured = 20 * np.log10(abs(spectrum[100]) / abs(spectrum[-100]))
    assert measured == pytest.approx(expected, abs=0.01)
    assert stage.image_rejection_db == pytest.approx(expected, abs=1e-3)
    assert np.sum(np.abs(spectrum) ** 2) == pytest.approx(1.0, abs=1e-4)
    assert channel.IqImbalance(0.0, 0.0).image_rejection_db == float("inf")


def test_offset_gain_delay_and_clipping():
    samples = np.array([0, 3 + 4j, 0.6 - 0.8j], np.complex64)
    np.testing.assert_allclose(channel.DcOffset(0.1 - 0.2j).process(samples), samples + (0.1 - 0.2j), rtol=1e-6)
    np.testing.assert_allclose(channel.Gain(-20.0).process(samples), samples / 10, rtol=1e-6)
    np.testing.assert_allclose(channel.Clipping(2.0).process(samples), [0, 1.2 + 1.6j, 0.6 - 0.8j], rtol=1e-6)
    np.testing.assert_array_equal(run(channel.Delay(2), samples), np.r_[0, 0, samples].astype(np.complex64))
    delay = channel.Delay(5)
    np.testing.assert_array_equal(delay.process(samples), np.zeros(3))
    np.testing.assert_array_equal(delay.finish(), np.r_[0, 0, samples].astype(np.complex64))


def test_converter_rounds_saturates_and_adds_the_textbook_noise():
    stage = channel.Quantisation(8, 1.27)
    out = stage.process(np.array([0.014 - 0.016j, 9 - 9j, complex(np.nan, np.inf)], np.complex64))
    np.testing.assert_allclose(out, [0.01 - 0.02j, 1.27 - 1.27j, 1.27j], atol=1e-6)
    samples = 0.2 * np.random.default_rng(2).standard_normal(400_000, np.float32).view(np.complex64)
    error = stage.process(samples) - samples
    assert np.mean(np.abs(error) ** 2) == pytest.approx(2 * 0.01**2 / 12, rel=0.01)


def test_nothing_in_nothing_out():
    for config in CONFIGS.values():
        stage = channel.ChannelConfig(noise_variance=1.0, **config).build()
        assert stage.process(np.zeros(0, np.complex64)).size == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "nakagami"},
        {"noise_variance": -1.0},
        {"noise_variance": float("nan")},
        {"seed": -1},
        {"sample_rate": 0.0},
        {"kind": "awgn", "doppler_hz": 5.0},
        {"kind": "rayleigh", "doppler_hz": -5.0},
        {"kind": "rayleigh", "doppler_hz": 5.0, "fading_block": 10},
        {"kind": "rayleigh", "fading_block": 0},
        {"kind": "rician", "k_factor_db": float("inf")},
        {"kind": "tdl", "profile": "F"},
        {"kind": "tdl", "delay_spread_s": 1.0},
        {"gain_db": float("nan")},
        {"delay": -1},
        {"cfo_hz": 1.1e6},
        {"clock_ppm": 2000.0},
        {"linewidth_hz": -1.0},
        {"iq_phase_deg": 90.0},
        {"clip": 0.0},
        {"adc_bits": 1},
        {"adc_bits": 8, "adc_full_scale": -1.0},
    ],
)
def test_values_outside_the_range_are_refused(bad):
    with pytest.raises(BadInputError):
        channel.ChannelConfig(**bad)


def test_samples_must_be_a_line():
    with pytest.raises(BadInputError):
        channel.make_channel("awgn", 0.1).process(np.zeros((2, 2), np.complex64))
