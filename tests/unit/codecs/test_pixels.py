"""The slice as pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multisc.codecs import pixels
from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_pixels_survive_the_way_to_coefficients_and_back(width: int, height: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    restored = pixels.from_coefficients(pixels.to_coefficients(picture), (width, height))
    np.testing.assert_array_equal(restored, picture)


def test_eight_bits_lose_nothing_and_six_bits_keep_46_db() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for bits, floor in ((8, np.inf), (6, 46.0)):
        quantiser = Quantiser(bits, 1.0)
        coefficients = quantiser.dequantise(quantiser.quantise(pixels.to_coefficients(picture)))
        restored = pixels.from_coefficients(coefficients, (64, 64))
        error = np.mean((restored.astype(float) - picture) ** 2)
        assert (np.inf if error == 0 else 10 * np.log10(255**2 / error)) >= floor


def test_missing_coefficients_are_mid_grey() -> None:
    picture = pixels.from_coefficients(np.full(3, 1.0, np.float32), (2, 1))
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert np.abs(picture[0, 1].astype(int) - 127).max() <= 1


def test_a_slice_keeps_its_proportions(photograph) -> None:
    piece = pixels.crop(photograph, (10, 20, 200, 100), 64)
    assert piece.shape == (32, 64, 3)
    assert pixels.crop(photograph, (0, 0, 5, 3), 64).shape == (3, 5, 3)


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 5, 5), (449, 0, 5, 5), (0, 298, 5, 5)])
def test_a_box_outside_the_picture_is_refused(photograph, box) -> None:
    with pytest.raises(BadInputError, match="box"):
        pixels.crop(photograph, box, 64)
