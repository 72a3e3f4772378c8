"""Soft slices: the posterior of a pixel's bits, and what the denoiser makes of its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data, transform

from multisc.codecs.quantise import MAX_BITS, Quantiser
from multisc.errors import BadInputError, ModelError
from multisc.models.profile import EMBEDDED_DIRECTORY
from multisc.models.slice_denoiser import COLOURS, DenoiserNetwork, SliceDenoiser, inputs, save_pretrained
from multisc.training.slice_denoiser import soft_bits

PICTURE = (transform.resize(data.chelsea()[40:240, 100:340], (53, 64), anti_aliasing=True) * 255).astype(np.uint8)
SIZE = (64, 53)


@pytest.fixture(scope="module")
def denoiser() -> SliceDenoiser:
    return SliceDenoiser.load(EMBEDDED_DIRECTORY / "slice-denoiser")


def received(snr_db: float, bits: int = 6) -> np.ndarray:
    llrs = soft_bits(PICTURE[None], bits, np.array([snr_db]), np.array([False]), [int(snr_db) + 50])
    return llrs[0].permute(2, 3, 1, 0).reshape(-1).numpy()


def psnr(picture: np.ndarray) -> float:
    return float(10 * np.log10(255.0**2 / np.mean((picture.astype(float) - PICTURE) ** 2)))


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(1, MAX_BITS), seed=st.integers(0, 2**32 - 1))
def test_mean_and_deviation_are_those_over_all_levels(bits: int, seed: int) -> None:
    llrs = np.random.default_rng(seed).normal(0, 3, bits)
    given_bits = torch.from_numpy(llrs.astype(np.float32)).view(1, bits, 1, 1, 1).expand(1, bits, COLOURS, 1, 1)
    mean, deviation = inputs(given_bits)[0, -2 * COLOURS :: COLOURS, 0, 0].tolist()
    # Of an 8-bit sample whose last bits were not received every value is as likely.
    quantiser = Quantiser(MAX_BITS, 1.0)
    score = (1.0 - 2.0 * quantiser._labels()[:, :bits].astype(float)) @ llrs / 2.0
    weight = np.exp(score - score.max())
    weight /= weight.sum()
    levels = quantiser.levels.astype(float)
    assert mean == pytest.approx(weight @ levels, abs=1e-5)
    assert deviation == pytest.approx(np.sqrt(weight @ levels**2 - (weight @ levels) ** 2), abs=1e-3)


def test_noisy_slice_is_at_least_three_decibels_better_than_by_hard_decision(denoiser: SliceDenoiser) -> None:
    for snr_db in (-5.0, 0.0, 5.0):
        llrs = received(snr_db)
        hard = Quantiser(6, 1.0).dequantise((llrs < 0).astype(np.uint8))
        by_hard = psnr(((hard + 1.0) * 128.0 - 0.5).round().clip(0, 255).reshape(PICTURE.shape))
        assert psnr(denoiser.restore(llrs, 6, SIZE)[0]) > by_hard + 3.0


def test_clear_slice_stays_as_it_is(denoiser: SliceDenoiser) -> None:
    picture, error = denoiser.restore(received(30.0, bits=8), 8, SIZE)
    np.testing.assert_array_equal(picture, PICTURE)
    assert error < 0.02


def test_expected_error_follows_the_noise(denoiser: SliceDenoiser) -> None:
    found = []
    for snr_db in (-5.0, 0.0, 5.0, 10.0):
        picture, expected = denoiser.restore(received(snr_db), 6, SIZE)
        real = 10 ** (-psnr(picture) / 20)
        assert 0.4 * real < expected < 2.5 * real
        found.append(expected)
    assert found == sorted(found, reverse=True)


def test_nothing_received_is_no_error(denoiser: SliceDenoiser) -> None:
    picture, error = denoiser.restore(np.zeros(64 * 53 * 3 * 6, np.float32), 6, SIZE)
    assert picture.shape == PICTURE.shape
    assert error > 0.1


def test_slice_of_another_length_is_refused(denoiser: SliceDenoiser) -> None:
    with pytest.raises(BadInputError, match="soft bits"):
        denoiser.restore(np.zeros(100, np.float32), 6, SIZE)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    save_pretrained(DenoiserNetwork(8), 8, tmp_path)
    SliceDenoiser.load(tmp_path)
    (tmp_path / damage).write_bytes(b'{"width": 100000}')
    with pytest.raises(ModelError, match=r"slice denoiser|safetensors"):
        SliceDenoiser.load(tmp_path)
