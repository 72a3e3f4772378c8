"""Train the denoiser of slices of quantised pixels on photographs and simulated soft bits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from multisc.codecs.quantise import Quantiser
from multisc.models.slice_denoiser import DenoiserNetwork, inputs, save_pretrained
from multisc.training.data import CaptionedImage, load_caption_data, load_pixels
from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit
from multisc.training.vae import training_pictures

TEST_PICTURES = 100
TEST_SNRS_DB = (-5, 0, 5, 10, 15)


@dataclass(frozen=True)
class DenoiserTraining:
    """How the denoiser is trained.

    Args:
        width: of the network.
        steps: optimiser steps.
        batch: crops per step.
        crop: side of a crop, in pixels of the slice.
        rate: peak learning rate.
        snr_db: lowest and highest Es/N0 of a QPSK symbol.
        fading: share of crops whose symbols fade (Rayleigh), each by itself.
        scale: weight of the expected error's likelihood.
        seed: of weights, order and noise.
    """

    width: int = 32
    steps: int = 1000
    batch: int = 16
    crop: int = 32
    rate: float = 2e-3
    snr_db: tuple[float, float] = (-7.0, 16.0)
    fading: float = 0.25
    scale: float = 0.02
    seed: int = 8


def slice_crop(picture: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square of a slice: part of a photograph, reduced as slices are."""
    height, width = picture.shape[:2]
    cut = round(np.exp(rng.uniform(np.log(side), np.log(min(height, width)))))
    cut = min(max(cut, side), height, width)
    top, left = int(rng.integers(height - cut + 1)), int(rng.integers(width - cut + 1))
    box = (left, top, left + cut, top + cut)
    crop = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def soft_bits(
    pictures: NDArray[np.uint8], bits: int, snr_db: NDArray[np.floating], fading: NDArray[np.bool_], seed: list[int]
) -> Tensor:
    """Log-likelihood ratios of pictures' bits behind QPSK and white noise.

    Args:
        pictures: uint8 (B, H, W, 3).
        bits: of a colour sample.
        snr_db: Es/N0, (B,).
        fading: whether each symbol fades by itself, (B,).
        seed: of the noise.

    Returns:
        float32 (B, bits, 3, H, W).
    """
    rng = np.random.default_rng(seed)
    coefficients = (pictures.astype(np.float32) + 0.5) / 128.0 - 1.0
    sent = Quantiser(bits, 1.0).quantise(coefficients).reshape(*pictures.shape, bits)
    power = np.where(fading[:, None, None, None, None], rng.exponential(1.0, sent.shape), 1.0)
    mean = 2.0 * 10.0 ** (snr_db / 10.0)[:, None, None, None, None] * power
    llrs = (1.0 - 2.0 * sent) * mean + np.sqrt(2.0 * mean) * rng.standard_normal(sent.shape)
    return torch.from_numpy(llrs.transpose(0, 4, 3, 1, 2).astype(np.float32))


def train(
    data: Path, work: Path, output: Path, setup: DenoiserTraining = DenoiserTraining(), place: Device = CPU
) -> dict[str, float]:
    """Train, save, and measure on held-out photographs.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoint.
        output: folder the model is written to.
        setup: width, steps, batch, rate, seed.
        place: to train on.

    Returns:
        What ``measure`` found.
    """
    torch.manual_seed(setup.seed)
    found = load_caption_data(data)
    pictures = training_pictures(found)
    network = DenoiserNetwork(setup.width)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([setup.seed, step])
        picks = [pictures[k] for k in rng.integers(len(pictures), size=setup.batch)]
        crops = np.stack([slice_crop(load_pixels(data, image.path, 512), setup.crop, rng) for image in picks])
        bits = 6 if rng.random() < 0.5 else int(rng.integers(1, 9))
        snr_db = rng.uniform(*setup.snr_db, setup.batch)
        llrs = soft_bits(crops, bits, snr_db, rng.random(setup.batch) < setup.fading, [setup.seed, step, 1])
        target = coefficients(crops).to(place.device)
        with place.autocast():
            made, spread = network(inputs(llrs.to(place.device)))
        error = (made.float() - target).square()
        spread = spread.float().clamp(-12.0, 2.0)
        likelihood = (error.detach().mean(1, keepdim=True) * (-spread).exp() + spread).mean()
        # Relative to what is usual at that noise, so that the quiet crops count as well.
        weight = 1.0 / (0.003 + error.detach().mean((1, 2, 3), keepdim=True).sqrt())
        return (error * weight).mean() + setup.scale * likelihood

    schedule = Schedule(setup.steps, setup.rate, warm_up=50, weight_decay=0.0)
    log = fit("slice-denoiser", network, loss, schedule, work, seed=setup.seed, place=place)
    network.cpu().eval()
    save_pretrained(network, setup.width, output)
    quality = measure(network, data, found.held_out[:TEST_PICTURES])
    record = {"setup": asdict(setup), "photographs": len(pictures), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def coefficients(pictures: NDArray[np.uint8]) -> Tensor:
    """Pixels uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(((pictures.astype(np.float32) + 0.5) / 128.0 - 1.0).transpose(0, 3, 1, 2).copy())


@torch.inference_mode()
def measure(network: DenoiserNetwork, data: Path, images: tuple[CaptionedImage, ...]) -> dict[str, float]:
    """PSNR in dB of slices of 6 bits a sample, 64 pixels a side: hard decisions, each pixel's mean, the denoiser."""
    pictures = [
        Image.fromarray(load_pixels(data, image.path)).resize((64, 64), Image.Resampling.LANCZOS) for image in images
    ]
    stack = np.stack([np.asarray(picture) for picture in pictures])
    target = coefficients(stack)
    found = {}
    for snr_db in TEST_SNRS_DB:
        level, still = np.full(len(stack), float(snr_db)), np.zeros(len(stack), bool)
        llrs = soft_bits(stack, 6, level, still, [9, snr_db + 100])
        hard, soft = inputs(llrs.sign() * 80.0)[:, -6:-3], inputs(llrs)
        for name, made in (("hard", hard), ("mean", soft[:, -6:-3]), ("denoised", network(soft)[0].clamp(-1, 1))):
            found[f"{name}_{snr_db}_db"] = round(10 * np.log10(4 / functional.mse_loss(made, target).item()), 2)
    return found
