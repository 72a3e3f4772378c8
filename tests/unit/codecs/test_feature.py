"""The feature's coefficients: what arrives of y through noise, and what may not come in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from multisc.codecs.feature import FeatureCodec, FeatureStatistics
from multisc.errors import BadInputError

TOKENS, WIDTH = 4, 24


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    """Features with a mean, a few strong axes and many weak ones."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * np.exp(-np.arange(WIDTH) / 4.0)[:, None]
    drawn = rng.standard_normal((600, TOKENS, WIDTH)) @ axes + rng.standard_normal((TOKENS, WIDTH))
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def statistics(features: NDArray[np.float32]) -> FeatureStatistics:
    return FeatureStatistics.measure(features[:400])


def explained(
    statistics: FeatureStatistics,
    features: NDArray[np.float32],
    snr_db: float,
    dimensions: int = WIDTH,
    told_db: float | None = None,
) -> float:
    """Share of the features' variance that the receiver knows after analog transmission."""
    rng = np.random.default_rng(1)
    codec = FeatureCodec(statistics, TOKENS, dimensions)
    error = total = 0.0
    for feature in features[400:]:
        sent = codec.coefficients(feature)
        noise = rng.standard_normal(sent.size) * np.sqrt(np.mean(sent**2) * 10 ** (-snr_db / 10))
        received = statistics.restore(codec.whitened(sent + noise, snr_db if told_db is None else told_db))
        error += float(np.sum((received - feature) ** 2))
        total += float(np.sum((feature - statistics.mean) ** 2))
    return 1.0 - error / total


def test_axes_are_sorted_and_white(statistics: FeatureStatistics, features: NDArray[np.float32]) -> None:
    assert (statistics.tokens, statistics.width) == (TOKENS, WIDTH)
    power = np.mean(statistics.deviation**2, axis=0)
    assert np.all(np.diff(power) <= 1e-6)
    white = statistics.whiten(features[:400])
    np.testing.assert_allclose(white.std(axis=0), 1.0, atol=1e-3)
    np.testing.assert_allclose(statistics.restore(white), features[:400], atol=1e-4)


def test_all_that_is_sent_arrives_without_noise(statistics: FeatureStatistics, features: NDArray[np.float32]) -> None:
    assert explained(statistics, features, 80.0) > 0.9999


def test_estimate_degrades_gracefully_and_never_below_the_mean(
    statistics: FeatureStatistics, features: NDArray[np.float32]
) -> None:
    found = [explained(statistics, features, snr) for snr in (-20, -10, 0, 10, 20)]
    assert found == sorted(found)
    assert found[0] > 0.0
    # Without the receiver's knowledge of the noise the same symbols are worse than nothing.
    assert explained(statistics, features, -10, told_db=np.nan) < 0.0 < found[1]


def test_strong_dimensions_come_first(statistics: FeatureStatistics, features: NDArray[np.float32]) -> None:
    half = explained(statistics, features, 40, WIDTH // 2)
    assert half > 0.95
    assert explained(statistics, features, 40, WIDTH // 4) < half
    # At the same power, dimensions that are left out leave more of it for the others.
    assert explained(statistics, features, 0, WIDTH // 4) > 0.5


@pytest.mark.parametrize("bits", [1, 2, 6])
def test_quantised_coefficients_come_back(
    statistics: FeatureStatistics, features: NDArray[np.float32], bits: int
) -> None:
    codec = FeatureCodec(statistics, TOKENS, WIDTH, "digital", bits)
    assert codec.quantiser is not None
    white = statistics.whiten(features[500])
    coefficients = codec.coefficients(features[500])
    found = codec.whitened(codec.quantiser.dequantise(codec.quantiser.quantise(coefficients)))
    error = np.mean((found - white) ** 2) / np.mean(white**2)
    assert error < {1: 0.45, 2: 0.16, 6: 0.01}[bits]


def test_tokens_that_are_not_sent_stay_at_the_mean(
    statistics: FeatureStatistics, features: NDArray[np.float32]
) -> None:
    codec = FeatureCodec(statistics, 2, WIDTH)
    restored = statistics.restore(codec.whitened(codec.coefficients(features[0])))
    np.testing.assert_allclose(restored[2:], statistics.mean[2:], atol=1e-6)
    np.testing.assert_allclose(restored[:2], features[0, :2], atol=1e-3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((0, 4), "tokens of the feature: must be 1 to 4"),
        ((5, 4), "tokens of the feature: must be 1 to 4"),
        ((4, 0), "dimensions of the feature: must be 1 to 24"),
        ((4, 25), "dimensions of the feature: must be 1 to 24"),
        ((4, 4, "pigeon"), "must be one of analog, digital"),
        ((4, 4, "digital", 9), "bits"),
    ],
)
def test_parameters_outside_their_range(statistics: FeatureStatistics, parameters: tuple, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        FeatureCodec(statistics, *parameters)


def test_what_is_no_feature(statistics: FeatureStatistics) -> None:
    codec = FeatureCodec(statistics, 4, 4)
    with pytest.raises(BadInputError, match="15 coefficients received: 16 make"):
        codec.whitened(np.zeros(15, np.float32))
    with pytest.raises(BadInputError, match="not finite"):
        codec.whitened(np.full(16, np.nan, np.float32))
    with pytest.raises(BadInputError, match="shape"):
        codec.coefficients(np.zeros((4, 4), np.float32))
    with pytest.raises(BadInputError, match="do not fit"):
        FeatureStatistics(statistics.mean, statistics.basis[:3], statistics.deviation)
