"""Train the FCN: negative log-likelihood (eq. 7) on the subjects that ``multisc.training.subjects`` finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from multisc.models.fcn import Fcn, FcnConfig
from multisc.models.segmenter import Segmenter
from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit
from multisc.training.photographs import Photograph, load_photographs
from multisc.training.subjects import (
    CLASS_COUNT,
    annotated_groups,
    canvas_size,
    label_subjects,
    principal,
    soft_iou_loss,
    teacher_features,
)
from multisc.training.teacher import GRID, TEACHER_FILE, TEACHER_SIDE

# The VOC classes, and "object" for every annotated category that VOC does not know.
# fmt: off
CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    "object",
]
# fmt: on
VOC_NAMES = {
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
LOADED_SIDE = 320
# (height, width) that is trained on: smaller than ``long_side``, since the parts of photographs that are drawn show
# things larger than whole photographs do (Touvron et al. 2019).
SHAPES = ((144, 224), (160, 224), (192, 192), (224, 160), (224, 144))


@dataclass(frozen=True)
class FcnTraining:
    """How the FCN is trained.

    Args:
        steps: optimiser steps.
        batch: pictures per step.
        rate: peak learning rate; one cosine after a short warm-up.
        seed: of weights, order and augmentation.
    """

    steps: int = 12000
    batch: int = 16
    rate: float = 2e-3
    seed: int = 1


def draw_classes(photograph: Photograph, logits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which class each place of the canvas has if it belongs to the subject, uint8 (33, 33).

    Args:
        photograph: whose polygons lie over the teacher's opinion, large ones first so that small ones stay visible.
        logits: the teacher's class scores, (33, 33, 21); where they say background, the class is "object".
    """
    classes = logits.argmax(-1).astype(np.uint8)
    classes[classes == 0] = CLASSES.index("object")
    size = canvas_size(photograph)
    rows, columns = (max(1, round(side / TEACHER_SIDE * GRID)) for side in size)
    masks = [(photograph.mask(p, (rows, columns)), p.category) for p in photograph.polygons or []]
    for mask, category in sorted(masks, key=lambda item: -item[0].sum()):
        name = VOC_NAMES.get(category, category)
        classes[:rows, :columns][mask] = CLASSES.index(name if name in CLASSES else "object")
    return classes


class Samples:
    """Draws training batches.

    Args:
        photographs: all photographs.
        chosen: rows of those to draw from.
        maps: the subject's probability, uint8 (N, 129, 129) on the teacher's canvas.
        classes: uint8 (N, 33, 33) on the teacher's canvas.
        features: what the teacher sees, float16 (N, channels, 33, 33).
    """

    def __init__(
        self,
        photographs: list[Photograph],
        chosen: NDArray[np.intp],
        maps: NDArray[np.uint8],
        classes: NDArray[np.uint8],
        features: NDArray[np.float16],
    ) -> None:
        self._maps, self._classes, self._features = maps, classes, features
        self._pictures = {row: photographs[row].load(LOADED_SIDE) for row in chosen}
        self._sizes = {row: canvas_size(photographs[row]) for row in chosen}
        aspects = np.array([np.log(self._sizes[row][1] / self._sizes[row][0]) for row in chosen])
        nearest = np.abs(aspects[:, None] - np.log([w / h for h, w in SHAPES])).argmin(1)
        self._groups = [chosen[nearest == k] for k in range(len(SHAPES))]
        polygons = [np.array([photographs[row].polygons is not None for row in group]) for group in self._groups]
        self._weights = [np.where(known, 4.0, 1.0) for known in polygons]

    def draw(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cut random parts of photographs of about one shape, mirrored and recoloured at random.

        Returns:
            pixels (B, 3, H, W) in [0, 1]; the subject's probability (B, H/4, W/4); classes, int64 (B, H/4, W/4);
            the teacher's features (B, channels, H/16, W/16).
        """
        totals = np.array([weight.sum() for weight in self._weights])
        group = int(rng.choice(len(totals), p=totals / totals.sum()))
        height, width = SHAPES[group]
        weight = self._weights[group]
        rows = rng.choice(self._groups[group], batch, p=weight / weight.sum())
        pixels, grids = [], []
        for row in rows:
            side = 1.0 - 0.55 * rng.random() ** 1.5
            across, down = np.minimum(1.0, side * np.exp(rng.uniform(-0.15, 0.15, 2)))
            left, top = rng.random() * (1.0 - across), rng.random() * (1.0 - down)
            mirrored = rng.random() < 0.5
            pixels.append(_recolour(self._pictures[row], (left, top, across, down), (width, height), mirrored, rng))
            grids.append(_grid(self._sizes[row], (left, top, across, down), (height // 4, width // 4), mirrored))
        grid = torch.stack(grids)
        coarse = functional.interpolate(grid.permute(0, 3, 1, 2), scale_factor=0.25, mode="area").permute(0, 2, 3, 1)
        maps = torch.from_numpy(self._maps[rows].astype(np.float32))[:, None] / 255
        classes = torch.from_numpy(self._classes[rows].astype(np.float32))[:, None]
        features = torch.from_numpy(self._features[rows].astype(np.float32))
        return (
            torch.stack(pixels),
            functional.grid_sample(maps, grid, align_corners=False)[:, 0],
            functional.grid_sample(classes, grid, mode="nearest", align_corners=False)[:, 0].long(),
            functional.grid_sample(features, coarse, align_corners=False),
        )


def _grid(
    size: tuple[int, int], part: tuple[float, float, float, float], cells: tuple[int, int], mirrored: bool
) -> Tensor:
    """Where on the teacher's canvas, from -1 to 1, the cells of a part of a photograph lie; (rows, columns, 2)."""
    left, top, across, down = part
    y = (top + (torch.arange(cells[0]) + 0.5) / cells[0] * down) * size[0] / TEACHER_SIDE * 2 - 1
    x = (left + (torch.arange(cells[1]) + 0.5) / cells[1] * across) * size[1] / TEACHER_SIDE * 2 - 1
    if mirrored:
        x = x.flip(0)
    return torch.stack([x.expand(cells), y[:, None].expand(cells)], -1)


def _recolour(
    picture: NDArray[np.uint8],
    part: tuple[float, float, float, float],
    size: tuple[int, int],
    mirrored: bool,
    rng: np.random.Generator,
) -> Tensor:
    """Cut a part of a picture at ``size`` = (width, height) and change its light; float32 (3, height, width)."""
    rows, columns = picture.shape[:2]
    left, top, across, down = part
    box = (left * columns, top * rows, (left + across) * columns, (top + down) * rows)
    pixels = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box), np.float32) / 255
    pixels = (pixels[:, ::-1] if mirrored else pixels) - 0.5
    pixels = pixels * np.float32(rng.uniform(0.7, 1.3)) + 0.5 + rng.normal(0, 0.06, 3).astype(np.float32)
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def segmentation_loss(scores: Tensor, subject: Tensor, classes: Tensor) -> Tensor:
    """Negative log-likelihood (eq. 7) of soft labels, and the subject's soft IoU.

    Args:
        scores: before the softmax, (B, classes, H, W).
        subject: its probability (B, H, W); the rest is background.
        classes: of the subject, where it is one, (B, H, W).
    """
    log = scores.log_softmax(1)
    of_class = log.gather(1, classes[:, None])[:, 0]
    likelihood = -((1.0 - subject) * log[:, 0] + subject * of_class).mean()
    return likelihood + soft_iou_loss(scores[:, 1:].logsumexp(1) - scores[:, 0], subject)


def train(
    data: Path, work: Path, output: Path, setup: FcnTraining = FcnTraining(), place: Device = CPU
) -> dict[str, float]:
    """Train, save a checkpoint with its log, and measure it on the held-out photographs.

    Beside the labels, the network learns what the teacher sees: a linear map from its features at stride 16 is drawn
    to the teacher's.

    Args:
        data: folder of the photographs and the teacher.
        work: folder of the teacher's features (2.2 GB), the subjects and the resumable checkpoint.
        output: folder the model is written to.
        setup: steps, batch, rate, seed.
        place: to train on; teacher and labels are the CPU's work.

    Returns:
        What ``measure`` found.
    """
    torch.manual_seed(setup.seed)
    config = FcnConfig(tuple(CLASSES))
    photographs = load_photographs(data)
    raw = teacher_features(photographs, data / TEACHER_FILE, work / "teacher_features.npy")
    features = principal(raw)
    maps = label_subjects(photographs, features, work / "subjects.npy")
    classes = np.stack([draw_classes(p, row[..., -CLASS_COUNT:]) for p, row in zip(photographs, raw, strict=True)])
    chosen = np.flatnonzero([not p.held_out for p in photographs])
    samples = Samples(photographs, chosen, maps, classes, features)
    model = Student(Fcn(config), features.shape[1])
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        drawn = samples.draw(np.random.default_rng([setup.seed, step]), setup.batch)
        pixels, subject, kinds, seen = (tensor.to(place.device) for tensor in drawn)
        with place.autocast():
            scores, guess = model(pixels.to(memory_format=torch.channels_last))
        return segmentation_loss(scores.float(), subject, kinds) + functional.mse_loss(guess.float(), seen)

    schedule = Schedule(setup.steps, setup.rate, warm_up=200, weight_decay=0.05)
    log = fit("fcn", model, loss, schedule, work, seed=setup.seed, place=place)
    model.fcn.cpu().save_pretrained(output)
    quality = measure(Segmenter.load(output, place.device), photographs)
    record = {"setup": asdict(setup), "photographs": len(chosen), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


class Student(nn.Module):
    """The FCN with the linear map that compares its features at stride 16 with the teacher's.

    Args:
        fcn: that is trained.
        channels: of the teacher's features.
    """

    def __init__(self, fcn: Fcn, channels: int) -> None:
        super().__init__()
        self.fcn = fcn
        self.guess = nn.Conv2d(fcn.config.channels[3], channels, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores at stride 4 and the guess of the teacher's features at stride 16."""
        maps = self.fcn.features(pictures)
        return self.fcn.combine(maps), self.guess(maps[2])


def measure(segmenter: Segmenter, photographs: list[Photograph]) -> dict[str, float]:
    """Mean IoU on annotated, held-out photographs, which ``overlap`` explains, and how many ``pictures`` they are."""
    chosen = [photograph for photograph in photographs if photograph.held_out and photograph.polygons]
    found = overlap(chosen, [segmenter.segment(photograph.load(480)).mask for photograph in chosen])
    return {"pictures": len(chosen), **{name: round(value, 4) for name, value in found.items()}}


def overlap(photographs: Sequence[Photograph], masks: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
    """Mean IoU of masks with what is outlined on photographs.

    Args:
        photographs: annotated.
        masks: of the subject in each, of any size (H, W).

    Returns:
        ``subject_iou``: the subject's mask against the annotated objects that it belongs to, which are: the largest
        one, joined with the others of its category. ``best_group_iou``: against the such group that fits best.
    """
    largest, best = [], []
    for photograph, mask in zip(photographs, masks, strict=True):
        groups = annotated_groups(photograph, (mask.shape[0], mask.shape[1]))
        scores = {name: (mask & g).sum() / max(1, (mask | g).sum()) for name, g in groups.items()}
        largest.append(scores[max(groups, key=lambda name: groups[name].sum())])
        best.append(max(scores.values()))
    return {"subject_iou": float(np.mean(largest)), "best_group_iou": float(np.mean(best))}
