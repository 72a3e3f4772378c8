"""Train the autoencoder (``AutoencoderKL``) whose latents the diffusion model works on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from multisc.training.data import CaptionData, CaptionedImage
from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit
from multisc.training.photographs import Photograph, load_photographs

CELL = 8  # pixels of a latent on each side
LONG_SIDES = (112, 208)  # of the photographs that crops are cut from
TEST_SIDE = 144
LATENT_CHANNELS = 6


@dataclass(frozen=True)
class VaeTraining:
    """How the autoencoder is trained.

    Args:
        steps: optimiser steps.
        batch: crops per step.
        crop: side of a crop in pixels, a multiple of 8.
        rate: peak learning rate.
        kl: weight of the mean divergence per latent value from a unit normal.
        lead: weight of the latents' distance from ``block_spectrum`` at the start; it falls to a tenth half-way. Left
            to itself, so small a network fills its latents with luma and forgets the colours.
        edges: weight of the L1 distance between the gradients of the pictures' luma.
        seed: of weights, order and augmentation.
    """

    steps: int = 1500
    batch: int = 8
    crop: int = 64
    rate: float = 1.5e-3
    kl: float = 3e-4
    lead: float = 1.0
    edges: float = 0.5
    seed: int = 2


def make_vae() -> AutoencoderKL:
    """An untrained autoencoder: 8 times smaller on each side, 6 channels; convolutions only, so any size goes."""
    widths = (12, 24, 48, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,  # more would even out the channels' means, and with them the colours
        sample_size=128,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Bring uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1.0


TOO_SMALL = "flickr900"  # its photographs have 200 pixels on their longer side: enlarged, they would teach blur


def training_pictures(data: CaptionData) -> list[CaptionedImage]:
    """All photographs that are large enough and not held out."""
    everything = (*data.train, *data.named, *data.unlabelled)
    return [image for image in everything if not image.path.startswith(TOO_SMALL)]


def random_crop(picture: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a square of ``side`` pixels from the photograph at a random scale, place and mirroring."""
    long_side = np.exp(rng.uniform(*np.log(LONG_SIDES)))
    height, width = picture.shape[:2]
    cut = min(height, width, round(side * max(height, width) / long_side))
    top, left = int(rng.integers(height - cut + 1)), int(rng.integers(width - cut + 1))
    box = (left, top, left + cut, top + cut)
    crop = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def to_luma_chroma(pictures: Tensor) -> Tensor:
    """Turn RGB (B, 3, H, W) into luma, red minus luma and blue minus luma."""
    luma = torch.tensor([0.299, 0.587, 0.114])
    rows = torch.stack([luma, torch.tensor([1.0, 0.0, 0.0]) - luma, torch.tensor([0.0, 0.0, 1.0]) - luma])
    return functional.conv2d(pictures, rows.view(3, 3, 1, 1).to(pictures.device))


def block_spectrum(pictures: Tensor) -> Tensor:
    """What the latents are first led to: a block's mean luma and chroma and its three slowest luma variations.

    Returns:
        (B, 6, H/8, W/8), each channel of about unit deviation over photographs.
    """
    wave = torch.cos(torch.pi * (torch.arange(8) + 0.5) / 8)
    flat = torch.ones(8)
    pairs = ((flat, flat), (flat, wave), (wave, flat), (wave, wave))
    kernels = torch.stack([torch.outer(a, b) / 64 for a, b in pairs])[:, None].to(pictures.device)
    opponent = to_luma_chroma(pictures)
    luma = functional.conv2d(opponent[:, :1], kernels, stride=8)
    chroma = functional.avg_pool2d(opponent[:, 1:], 8)
    return torch.cat([luma[:, :1] / 0.5, chroma / 0.15, luma[:, 1:3] / 0.09, luma[:, 3:] / 0.04], 1)


def distortion(output: Tensor, target: Tensor, edges: float) -> Tensor:
    """L1 distance in luma and chroma at full, half and quarter size, and of the luma's gradients."""
    error = to_luma_chroma(output - target)
    luma = error[:, :1]
    total = edges * (luma.diff(dim=2).abs().mean() + luma.diff(dim=3).abs().mean())
    for _ in range(3):
        total = total + error.abs().mean()
        error = functional.avg_pool2d(error, 2)
    return total


def train(
    data: Path, work: Path, output: Path, setup: VaeTraining = VaeTraining(), place: Device = CPU
) -> dict[str, float]:
    """Train, set the scaling factor from the data, save, and measure on the held-out photographs.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoint.
        output: folder the model is written to.
        setup: steps, batch, rate, weights, seed.
        place: to train on.

    Returns:
        What ``measure`` found.
    """
    torch.manual_seed(setup.seed)
    photographs = load_photographs(data)
    pictures = [p.load(256) for p in photographs if not p.held_out]
    model = make_vae()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([setup.seed, step])
        picks = rng.integers(len(pictures), size=setup.batch)
        target = to_tensor(np.stack([random_crop(pictures[k], setup.crop, rng) for k in picks])).to(place.device)
        with place.autocast():
            posterior = model.encode(target).latent_dist
            decoded = model.decode(posterior.sample(torch.default_generator)).sample  # drawn on the CPU
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        lead = setup.lead * max(0.1, 1.0 - 1.8 * step / setup.steps)
        away = functional.mse_loss(posterior.mean.float(), block_spectrum(target))
        return distortion(decoded.float(), target, setup.edges) + lead * away + setup.kl * divergence

    schedule = Schedule(setup.steps, setup.rate, warm_up=50, weight_decay=0.0)
    log = fit("vae", model, loss, schedule, work, seed=setup.seed, place=place)
    model.cpu()
    with torch.inference_mode():
        spread = [model.encode(to_tensor(fit_size(picture)[None])).latent_dist.mean for picture in pictures[::20]]
    deviation = torch.cat([latents.flatten() for latents in spread]).std().item()
    model.register_to_config(scaling_factor=round(1.0 / deviation, 5))
    model.half().save_pretrained(output)
    quality = measure(model.float(), photographs)
    record = {"setup": asdict(setup), "photographs": len(pictures), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def fit_size(picture: NDArray[np.uint8], multiple: int = 16) -> NDArray[np.uint8]:
    """Reduce a picture to a long side of about ``TEST_SIDE``, both sides multiples of ``multiple``."""
    height, width = picture.shape[:2]
    scale = TEST_SIDE / max(height, width)
    columns, rows = (max(1, round(side * scale / multiple)) * multiple for side in (width, height))
    return np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.LANCZOS))


def measure(model: AutoencoderKL, photographs: list[Photograph]) -> dict[str, float]:
    """Mean PSNR in dB of held-out photographs at about 144 pixels, through the latents' means and back."""
    values = []
    for photograph in photographs:
        if photograph.held_out:
            target = to_tensor(fit_size(photograph.load(256))[None])
            with torch.inference_mode():
                decoded = model.decode(model.encode(target).latent_dist.mean).sample.clamp(-1, 1)
            values.append(10 * np.log10(4 / functional.mse_loss(decoded, target).item()))
    return {"pictures": len(values), "psnr_db": round(float(np.mean(values)), 2)}
