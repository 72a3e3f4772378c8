"""Modulation against TS 38.211 5.1, closed-form bit error rates and the meaning of a log-likelihood ratio."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from multisc.errors import BadInputError
from multisc.phy import modulation, units
from multisc.streams import DIGITAL_MODULATIONS

SQUARE = DIGITAL_MODULATIONS[1:]


def transmit(name, count, esn0_db, seed=1):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, count * modulation.bits_per_symbol(name), dtype=np.uint8)
    variance = units.noise_variance(esn0_db)
    noise = rng.standard_normal((count, 2)).view(complex)[:, 0] * np.sqrt(variance / 2)
    return bits, (modulation.map_bits(bits, name) + noise).astype(np.complex64), variance


def brute_force(symbols, variance, name, reduce):
    """Ratios from the distances to all points."""
    points = modulation.constellation(name).astype(complex)
    bits = modulation.bits_per_symbol(name)
    metric = -(np.abs(symbols[:, None].astype(complex) - points) ** 2) / np.reshape(variance, (-1, 1))
    labels = (np.arange(points.size)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.stack(
        [reduce(metric[:, labels[:, b] == 0]) - reduce(metric[:, labels[:, b] == 1]) for b in range(bits)], axis=1
    ).ravel()


def bit_error_rate(name, esn0_db):
    """Exact BER of Gray square QAM on AWGN, from the decision regions of each bit in one dimension."""
    esn0 = units.linear(esn0_db)
    if name == "bpsk":
        return stats.norm.sf(np.sqrt(2 * esn0))
    half = modulation.bits_per_symbol(name) // 2
    points = modulation.constellation(name)
    labels = (np.arange(points.size)[:, None] >> np.arange(2 * half - 1, -1, -1)) & 1
    one_dimension = {round(float(p.real), 6): tuple(label[0::2]) for p, label in zip(points, labels, strict=True)}
    levels = sorted(one_dimension)
    edges = np.r_[-np.inf, (np.array(levels[1:]) + levels[:-1]) / 2, np.inf]
    deviation = np.sqrt(0.5 / esn0)
    errors = 0.0
    for sent in levels:
        probability = np.diff(stats.norm.cdf((edges - sent) / deviation))
        for decided, p in zip(levels, probability, strict=True):
            errors += p * np.mean(np.not_equal(one_dimension[sent], one_dimension[decided]))
    return errors / len(levels)


def test_labels_are_those_of_ts_38_211():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        modulation.map_bits(np.array([0, 1], np.uint8), "bpsk"), [half + 1j * half, -half - 1j * half], rtol=1e-6
    )
    np.testing.assert_allclose(
        modulation.map_bits(np.array([0, 1, 1, 0], np.uint8), "qpsk"),
        [half - 1j * half, -half + 1j * half],
        rtol=1e-6,
    )
    for bits, name, power, point in (
        ([0, 0, 0, 0], "16qam", 10, 1 + 1j),
        ([1, 0, 1, 1], "16qam", 10, -3 + 3j),
        ([0, 1, 1, 1, 1, 0], "64qam", 42, 7 - 5j),
        ([0, 0, 0, 0, 0, 0], "64qam", 42, 3 + 3j),
        ([1, 0, 1, 1, 1, 1, 1, 1], "256qam", 170, -15 + 15j),
        ([0, 0, 0, 0, 0, 0, 0, 0], "256qam", 170, 5 + 5j),
    ):
        np.testing.assert_allclose(
            modulation.map_bits(np.array(bits, np.uint8), name), [point / np.sqrt(power)], rtol=1e-6
        )


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
def test_mean_power_is_one_and_points_are_distinct(name):
    points = modulation.constellation(name)
    assert np.mean(np.abs(points.astype(complex)) ** 2) == pytest.approx(1.0, abs=1e-6)
    assert np.unique(np.round(points, 5)).size == points.size == 2 ** modulation.bits_per_symbol(name)


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
def test_neighbours_differ_in_one_bit(name):
    points = modulation.constellation(name).astype(complex)
    distance = np.abs(points[:, None] - points)
    closest = distance[distance > 1e-6].min()
    for a, b in np.argwhere(np.abs(distance - closest) < 1e-4):
        assert (int(a) ^ int(b)).bit_count() == 1


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
@pytest.mark.parametrize("target", [1e-1, 1e-2, 1e-3])
def test_bit_error_rate_is_the_closed_form(name, target):
    esn0_db = min(np.arange(-4, 32, 0.5), key=lambda snr: abs(np.log(max(bit_error_rate(name, snr), 1e-30) / target)))
    count = 400_000 // modulation.bits_per_symbol(name)
    bits, received, variance = transmit(name, count, esn0_db)
    wrong = (modulation.demap(received, variance, name) < 0) != bits
    errors, trials = int(wrong.sum()), wrong.size
    low = stats.beta.ppf(5e-5, errors, trials - errors + 1)
    high = stats.beta.ppf(1 - 5e-5, errors + 1, trials - errors)
    assert low < bit_error_rate(name, esn0_db) < high


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
@pytest.mark.parametrize("esn0_db", [-10.0, 3.0, 12.0, 25.0, 45.0])
def test_ratios_match_brute_force(name, esn0_db):
    _, received, variance = transmit(name, 3000, esn0_db)
    received[:4] = [3 + 0.1j, -9 - 9j, 0, 1e-8]
    exact = modulation.demap(received, variance, name, "exact")
    wanted = brute_force(received, variance, name, lambda m: logsumexp(m, axis=1))
    usual = np.abs(wanted) < 75
    np.testing.assert_allclose(exact[usual], wanted[usual], rtol=1e-4, atol=2e-4 + 2e-6 / variance)
    np.testing.assert_allclose(exact[~usual], wanted[~usual], rtol=1e-4, atol=0.7 + 2e-6 / variance)
    maxlog = modulation.demap(received, variance, name, "maxlog")
    wanted = brute_force(received, variance, name, lambda m: m.max(axis=1))
    np.testing.assert_allclose(maxlog, wanted, rtol=1e-4, atol=2e-4 + 2e-6 / variance)


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
def test_exact_ratio_is_calibrated(name):
    """Among bits with ratio near L, the share of zeros is 1 / (1 + exp(-L))."""
    esn0_db = {"bpsk": 0.0, "qpsk": 3.0, "16qam": 8.0, "64qam": 13.0, "256qam": 18.0}[name]
    bits, received, variance = transmit(name, 600_000 // modulation.bits_per_symbol(name), esn0_db, seed=5)
    ratios = modulation.demap(received, variance, name)
    bins = np.digitize(ratios, np.linspace(-5, 5, 21))
    for b in range(1, 21):
        inside = bins == b
        zeros, trials = int((bits[inside] == 0).sum()), int(inside.sum())
        expected = np.mean(1 / (1 + np.exp(-ratios[inside].astype(float))))
        deviation = np.sqrt(expected * (1 - expected) / trials)
        assert abs(zeros / trials - expected) < 4.5 * deviation


@pytest.mark.parametrize("name", SQUARE)
def test_maxlog_has_the_sign_of_exact_where_it_matters(name):
    _, received, variance = transmit(name, 20_000, 20.0)
    exact = modulation.demap(received, variance, name, "exact")
    maxlog = modulation.demap(received, variance, name, "maxlog")
    sure = np.abs(exact) > 1.0
    assert (np.sign(exact[sure]) == np.sign(maxlog[sure])).all()
    assert np.abs(exact - maxlog).max() < np.log(modulation.constellation(name).size)


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
@pytest.mark.parametrize("method", modulation.METHODS)
def test_one_variance_per_symbol_and_erasures(name, method):
    bits = modulation.bits_per_symbol(name)
    _, received, _ = transmit(name, 2000, 10.0)
    variance = np.random.default_rng(2).uniform(0.01, 1.0, received.size).astype(np.float32)
    together = modulation.demap(received, variance, name, method).reshape(-1, bits)
    for i in range(0, 2000, 199):
        alone = modulation.demap(received[i : i + 1], float(variance[i]), name, method)
        np.testing.assert_array_equal(together[i], alone)
    variance[[0, 5]] = np.inf, np.nan
    received[7] = complex(np.nan, np.inf)
    erased = modulation.demap(received, variance, name, method).reshape(-1, bits)
    assert (erased[[0, 5, 7]] == 0).all()
    np.testing.assert_array_equal(np.delete(erased, [0, 5, 7], 0), np.delete(together, [0, 5, 7], 0))


@pytest.mark.parametrize("name", DIGITAL_MODULATIONS)
@pytest.mark.parametrize("method", modulation.METHODS)
def test_noiseless_symbols_give_finite_ratios_of_the_right_sign(name, method):
    bits = np.random.default_rng(3).integers(0, 2, 960, dtype=np.uint8)
    ratios = modulation.demap(modulation.map_bits(bits, name), 0.0, name, method)
    assert np.isfinite(ratios).all()
    np.testing.assert_array_equal(ratios < 0, bits)


def test_bad_arguments_are_refused():
    symbols = np.ones(4, np.complex64)
    for call in (
        lambda: modulation.bits_per_symbol("8psk"),
        lambda: modulation.map_bits(np.zeros(5, np.uint8), "16qam"),
        lambda: modulation.demap(symbols, -1.0, "qpsk"),
        lambda: modulation.demap(symbols, np.ones(3, np.float32), "qpsk"),
        lambda: modulation.demap(symbols, 1.0, "qpsk", "soft"),
        lambda: modulation.map_features(np.array([1.0, np.nan])),
        lambda: modulation.map_features(np.array([1e300])),
        lambda: modulation.demap_features(symbols, np.nan, 2),
        lambda: modulation.demap_features(symbols, 1.0, 9),
    ):
        with pytest.raises(BadInputError):
            call()


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1.2e-38, 1e-37])
def test_the_smallest_features_are_carried_or_silent(value):
    symbols, gain = modulation.map_features(np.array([value, -value], np.float32))
    returned = modulation.demap_features(symbols, gain, 2)
    assert np.isfinite(symbols).all()
    np.testing.assert_allclose(returned, [value, -value] if gain else [0, 0], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@example([1.401298464324817e-45])
@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=33))
def test_features_come_back(values):
    features = np.array(values, np.float32)
    symbols, gain = modulation.map_features(features)
    assert symbols.size == (features.size + 1) // 2
    assert gain == np.float32(gain)
    if gain > 0:
        assert np.mean(np.abs(symbols.astype(complex)) ** 2) == pytest.approx(1.0, rel=1e-4)
    returned = modulation.demap_features(symbols, gain, features.size)
    np.testing.assert_allclose(returned, features, rtol=1e-5, atol=1e-6 * max(gain, 1e-30))


def test_feature_noise_has_the_variance_of_the_channel_over_two():
    """One feature is one real dimension: its error variance is gain^2 N0 / 2."""
    rng = np.random.default_rng(4)
    features = rng.laplace(0, 3.0, 200_001).astype(np.float32)
    symbols, gain = modulation.map_features(features)
    variance = units.noise_variance(5.0)
    noise = rng.standard_normal((symbols.size, 2)).view(complex)[:, 0] * np.sqrt(variance / 2)
    error = modulation.demap_features((symbols + noise).astype(np.complex64), gain, features.size) - features
    expected = gain**2 * variance / 2
    assert abs(np.var(error) / expected - 1) < 4.5 * np.sqrt(2 / error.size)


def test_erased_features_are_zero():
    symbols, gain = modulation.map_features(np.array([1, 2, 3, 4], np.float32))
    symbols[1] = complex(np.nan, np.inf)
    np.testing.assert_allclose(modulation.demap_features(symbols, gain, 4), [1, 2, 0, 0], rtol=1e-6)
