"""The quantiser: round trips, error bounds and the least-squares dequantiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError


@given(bits=st.integers(1, 8), limit=st.floats(0.01, 1e4), seed=st.integers(0, 2**32 - 1))
def test_error_is_at_most_half_a_step(bits: int, limit: float, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-limit, limit, 200)
    quantiser = Quantiser(bits, limit)
    restored = quantiser.dequantise(quantiser.quantise(values))
    half_step = limit / 2**bits
    assert np.abs(restored - values).max() <= half_step * (1 + 1e-5)


def test_uniform_noise_has_the_textbook_power() -> None:
    quantiser = Quantiser(6, 1.0)
    values = np.random.default_rng(1).uniform(-1, 1, 200_000)
    error = quantiser.dequantise(quantiser.quantise(values)) - values
    step = 2 / 2**6
    assert np.mean(error**2) == pytest.approx(step**2 / 12, rel=0.01)


def test_neighbouring_levels_differ_in_one_bit() -> None:
    quantiser = Quantiser(5, 1.0)
    labels = quantiser.quantise(quantiser.levels).reshape(-1, 5).astype(int)
    assert (np.abs(np.diff(labels, axis=0)).sum(axis=1) == 1).all()
    assert len({tuple(label) for label in labels}) == 32


@given(bits=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_certain_soft_bits_give_the_level(bits: int, seed: int) -> None:
    quantiser = Quantiser(bits, 3.0)
    labels = np.random.default_rng(seed).integers(0, 2, bits * 50).astype(np.uint8)
    llrs = 60.0 * (1.0 - 2.0 * labels)
    np.testing.assert_allclose(quantiser.expect(llrs), quantiser.dequantise(labels), atol=1e-5)


def test_no_knowledge_gives_the_mean() -> None:
    assert np.abs(Quantiser(4, 1.0).expect(np.zeros(40))).max() < 1e-6


def test_soft_dequantising_beats_hard_decisions() -> None:
    rng = np.random.default_rng(2)
    quantiser = Quantiser(4, 1.0)
    values = rng.uniform(-1, 1, 20_000)
    sent = 1.0 - 2.0 * quantiser.quantise(values)
    received = sent + rng.normal(0, 1, sent.size)
    llrs = 2 * received
    soft = np.mean((quantiser.expect(llrs) - values) ** 2)
    hard = np.mean((quantiser.dequantise((llrs < 0).astype(np.uint8)) - values) ** 2)
    assert soft < 0.8 * hard


@pytest.mark.parametrize(("bits", "limit"), [(0, 1.0), (9, 1.0), (4, 0.0), (4, -1.0), (4, float("nan"))])
def test_impossible_parameters_are_refused(bits: int, limit: float) -> None:
    with pytest.raises(BadInputError, match="quantiser"):
        Quantiser(bits, limit)


def test_coefficients_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BadInputError, match="finite"):
        Quantiser(4, 1.0).quantise(np.array([0.0, np.nan]))


def test_a_number_of_bits_that_does_not_divide_is_refused() -> None:
    with pytest.raises(BadInputError, match="divide"):
        Quantiser(3, 1.0).dequantise(np.zeros(4, np.uint8))
