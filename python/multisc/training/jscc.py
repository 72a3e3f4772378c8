"""Train deep joint source-channel coding: least distortion over additive noise and Rayleigh fading, 0 to 20 dB."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multisc.errors import BadInputError
from multisc.models.jscc import Jscc, JsccConfig, save_pretrained
from multisc.models.jscc_network import CHANNELS, STRIDE, JsccNetwork, JsccWidths
from multisc.training.device import CPU, Device
from multisc.training.ema import ExponentialMovingAverage
from multisc.training.loop import Schedule, fit
from multisc.training.photographs import Photograph, load_photographs

FOLDERS = ("bsds300", "coco160", "objects1000")  # the others are too small to look like photographs of today
PATCHES = 150  # blocks of each photograph that the transform is made from
ROUNDING = 1.0 / 12.0 / 255.0**2  # variance that rounding to 8 bits adds to every coefficient
USUAL_CHANNELS = (64, 128, 256)  # CBR 1/24, 1/12, 1/6
MAX_FADES = 64
DECAY = 0.998  # of the moving average of the weights, which is what is saved


@dataclass(frozen=True)
class JsccTraining:
    """How the network is trained.

    Args:
        steps: optimiser steps on photographs as they are.
        rate: their peak learning rate; one cosine after a short warm-up.
        later_steps, later_rate: the same for a second stage, in which one crop in five is recoloured, so that flat,
            white and black parts keep their level.
        batch: crops per step.
        crop: side of a crop in pixels, a multiple of 16.
        seed: of weights, crops and channels.
    """

    steps: int = 4000
    rate: float = 6e-4
    later_steps: int = 1000
    later_rate: float = 2e-4
    batch: int = 8
    crop: int = 160
    seed: int = 1


@dataclass(frozen=True)
class Draw:
    """A batch and its channels.

    Args:
        pictures: float32 (B, 3, crop, crop) in [0, 1].
        sent: float32 (B, 256, crop/16, crop/16), which features are sent.
        expected_db, snr_db: float32 (B,), Es/N0 as the transmitter expects it and as it is on average.
        noise: float32 of the shape of ``sent``: what to add to features of unit mean power.
        measured_db: float32 (B,), what the receiver makes of the channel.
    """

    pictures: Tensor
    sent: Tensor
    expected_db: Tensor
    snr_db: Tensor
    noise: Tensor
    measured_db: Tensor

    def to(self, device: str) -> Draw:
        """Return the same on a device."""
        return Draw(*(getattr(self, part.name).to(device) for part in fields(self)))


def block_transform(pictures: list[NDArray[np.uint8]], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Karhunen-Loeve transform of the pictures' 16x16 blocks.

    Args:
        pictures: uint8 (H, W, 3), at least 16 pixels a side.
        rng: draws the blocks.

    Returns:
        Mean colour (3,), the 256 strongest vectors (256, 768), the deviation of their coefficients (256,); float32.
    """
    size = STRIDE * STRIDE * 3
    total, products, count = np.zeros(size), np.zeros((size, size)), 0
    for picture in pictures:
        tops = rng.integers(picture.shape[0] - STRIDE + 1, size=PATCHES)
        lefts = rng.integers(picture.shape[1] - STRIDE + 1, size=PATCHES)
        cut = [picture[y : y + STRIDE, x : x + STRIDE].ravel() for y, x in zip(tops, lefts, strict=True)]
        blocks = np.stack(cut).astype(np.float64) / 255
        total += blocks.sum(0)
        products += blocks.T @ blocks
        count += len(blocks)
    colour = (total / count).reshape(-1, 3).mean(0)
    centre = np.tile(colour, STRIDE * STRIDE)
    outer = np.outer(total, centre) / count
    covariance = products / count - outer - outer.T + np.outer(centre, centre)
    variance, vectors = np.linalg.eigh(covariance)
    strongest = np.argsort(variance)[::-1][:CHANNELS]
    deviation = np.sqrt(np.maximum(variance[strongest], ROUNDING))
    return (
        torch.tensor(colour, dtype=torch.float32),
        torch.tensor(vectors.T[strongest].copy(), dtype=torch.float32),
        torch.tensor(deviation, dtype=torch.float32),
    )


def draw(pictures: list[NDArray[np.uint8]], setup: JsccTraining, step: int) -> Draw:
    """Draw the crops and the channels of a step; they depend on the seed and the step alone.

    Steps count through both stages.
    """
    rng = np.random.default_rng([setup.seed, step])
    size, side = setup.batch, setup.crop // STRIDE
    cut = [_crop(pictures[int(rng.integers(len(pictures)))], setup.crop, rng) for _ in range(size)]
    crops = np.stack(cut).astype(np.float32) / 255
    if step >= setup.steps:
        crops = np.stack([_recolour(crop, rng) if rng.random() < 0.2 else crop for crop in crops])
    sent = np.zeros((size, CHANNELS, side, side), np.float32)
    for row in sent:
        usual = rng.random() < 0.8
        count = rng.choice(USUAL_CHANNELS) if usual else int(np.exp(rng.uniform(np.log(16), np.log(CHANNELS))))
        row[:count] = 1
    snr_db = rng.uniform(-6, 21, size)
    # The transmitter's idea of the link is right half of the time, and is off by some decibels otherwise.
    off = np.where(rng.random(size) < 0.5, rng.normal(0, 4, size), 0.0)
    noise, measured_db = _noise(sent.shape, snr_db, rng)
    return Draw(
        torch.from_numpy(crops).permute(0, 3, 1, 2),
        torch.from_numpy(sent),
        torch.tensor(np.clip(snr_db + off, -5, 20), dtype=torch.float32),
        torch.tensor(snr_db, dtype=torch.float32),
        torch.from_numpy(noise),
        torch.tensor(np.clip(measured_db, -10, 30), dtype=torch.float32),
    )


def _crop(picture: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a square, mirrored and turned at random."""
    top = int(rng.integers(picture.shape[0] - side + 1))
    left = int(rng.integers(picture.shape[1] - side + 1))
    cut = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def _recolour(crop: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Change contrast, brightness and tint, down to one flat colour and up to clipping."""
    contrast = rng.choice([0.0, rng.uniform(0, 1), rng.uniform(1, 4)])
    level = rng.uniform(-0.2, 1.2) + rng.normal(0, 0.1, 3)
    return np.clip((crop - crop.mean((0, 1))) * contrast + level, 0, 1).astype(np.float32)


def _noise(
    shape: tuple[int, ...], snr_db: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Noise of a batch on features of unit mean power, and the SNR that a receiver measures.

    Half of the pictures meet white noise alone. The others meet Rayleigh fading, equalised by zero-forcing: 1 to 64
    independent fades, dealt to the features in turn as subcarriers are.
    """
    noise = rng.standard_normal(shape).astype(np.float32)
    measured_db = np.empty(len(snr_db))
    for index, level in enumerate(snr_db):
        variance = np.full(1, 10.0 ** (-level / 10.0))
        if rng.random() < 0.5:
            fades = int(np.exp(rng.uniform(0, np.log(MAX_FADES + 1))))
            variance = variance / np.maximum(rng.exponential(1.0, fades), 1e-2)
        symbols = np.arange(noise[index].size) // 2
        noise[index] *= np.sqrt(variance[symbols % len(variance)]).reshape(shape[1:]).astype(np.float32)
        measured_db[index] = -10.0 * np.log10(variance.mean())
    return noise, measured_db


def distortion(network: JsccNetwork, batch: Draw) -> Tensor:
    """Send a batch and return the mean squared error of each picture, (B,)."""
    features = network.encode(batch.pictures, batch.sent, batch.expected_db)
    power = (features**2).sum((1, 2, 3)) / batch.sent.sum((1, 2, 3))
    received = (features + power.sqrt()[:, None, None, None] * batch.noise) * batch.sent
    pictures = network.decode(received, batch.sent, batch.expected_db, batch.measured_db)
    return ((pictures - batch.pictures) ** 2).mean((1, 2, 3))


def read_photographs(data: Path, crop: int) -> tuple[list[NDArray[np.uint8]], list[Photograph]]:
    """Read the photographs to train on, uint8 (H, W, 3), none smaller than a crop, and list those held out.

    Raises:
        BadInputError: when there are none to train on.
    """
    kept = [p for p in load_photographs(data) if set(FOLDERS) & set(p.path.parts)]
    pictures = [p.load() for p in kept if not p.held_out]
    pictures = [picture for picture in pictures if min(picture.shape[:2]) >= crop]
    if not pictures:
        raise BadInputError(f"training data {data}: no photograph of at least {crop}x{crop} pixels")
    return pictures, [p for p in kept if p.held_out]


def train(
    data: Path, work: Path, output: Path, setup: JsccTraining = JsccTraining(), place: Device = CPU
) -> dict[str, float]:
    """Train, save a checkpoint with its log, and measure it on the held-out photographs of BSDS500.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoint.
        output: folder the model is written to.
        setup: steps, rates, batch, crop, seed.
        place: to train on.

    Returns:
        What ``measure`` found.

    Raises:
        BadInputError: when the photographs are missing.
    """
    pictures, held_out = read_photographs(data, setup.crop)
    torch.manual_seed(setup.seed)
    online = JsccNetwork(JsccWidths())
    online.start_from(*block_transform(pictures, np.random.default_rng(setup.seed)))
    trainee = ExponentialMovingAverage(online).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        batch = draw(pictures, setup, step).to(place.device)
        with place.autocast():
            errors = distortion(trainee.online, batch)
        # PSNR rather than squared error, so that pictures at 20 dB count as those at 0 dB do; levels off at 37 dB.
        return (errors + 2e-4).log().mean() * (10.0 / np.log(10.0))

    def stage(name: str, first: int, steps: int, rate: float) -> list[dict]:
        def follow_and_lose(step: int) -> Tensor:
            trainee.update(step, DECAY)
            return loss(first + step)

        schedule = Schedule(steps, rate, warm_up=100, weight_decay=0.0, clip=20.0)
        return fit(name, trainee, follow_and_lose, schedule, work, seed=setup.seed, rate=_rate, place=place)

    log = stage("deep-jscc", 0, setup.steps, setup.rate)
    log += stage("deep-jscc-later", setup.steps, setup.later_steps, setup.later_rate)
    save_pretrained(trainee.average.cpu(), JsccConfig(), output)
    quality = measure(Jscc.load(output, place.device), [p for p in held_out if FOLDERS[0] in p.path.parts])
    record = {"setup": asdict(setup), "photographs": len(pictures), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def _rate(parameter: str) -> float:
    """The linear code is near its optimum from the start."""
    return 0.1 if "analysis" in parameter or "synthesis" in parameter else 1.0


def measure(jscc: Jscc, photographs: list[Photograph]) -> dict[str, float]:
    """Mean PSNR in dB on photographs over additive noise at 0, 10 and 20 dB, at CBR 1/24, 1/12 and 1/6."""
    pictures = [photograph.load() for photograph in photographs]
    quality = {}
    for cbr in (1 / 24, 1 / 12, 1 / 6):
        for snr_db in (0.0, 10.0, 20.0):
            rng = np.random.default_rng(0)
            found = [_psnr(jscc, picture, cbr, snr_db, rng) for picture in pictures]
            quality[f"psnr_cbr_1/{round(1 / cbr)}_{snr_db:g}_db"] = round(float(np.mean(found)), 2)
    return quality


def _psnr(jscc: Jscc, picture: NDArray[np.uint8], cbr: float, snr_db: float, rng: np.random.Generator) -> float:
    features = jscc.encode(picture, cbr, snr_db)
    noise = np.sqrt(np.mean(features**2) * 10.0 ** (-snr_db / 10.0))
    received = (features + noise * rng.standard_normal(features.size)).astype(np.float32)
    shown = jscc.decode(received, (picture.shape[1], picture.shape[0]), cbr, snr_db, snr_db)
    return float(-10.0 * np.log10(np.mean((shown / 255.0 - picture / 255.0) ** 2)))
