"""Train the FCN: negative log-likelihood of each pixel's class (eq. 7), and the main subject's mask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from multisc.models.efficientnet_lite import EfficientNetLite, load_pretrained
from multisc.models.fcn import Fcn, FcnConfig
from multisc.models.segmenter import Segmenter
from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit
from multisc.training.photographs import Photograph, load_photographs
from multisc.training.subjects import (
    CLASSES,
    UNKNOWN,
    Labelled,
    annotated_groups,
    labelled_activation,
    labelled_polygons,
    labelled_voc,
    soft_iou_loss,
    voc_files,
)

# (height, width) that is trained on: smaller than ``long_side``, since the parts of photographs that are drawn show
# things larger than whole photographs do (Touvron et al. 2019).
SHAPES = ((160, 224), (192, 192), (224, 160))
FROZEN = ("encoder.stem.", "encoder.stages.0.", "encoder.stages.1.")  # edges and colours need no further training


@dataclass(frozen=True)
class FcnTraining:
    """How the FCN is trained.

    Args:
        steps: optimiser steps.
        batch: pictures per step.
        rate: peak learning rate; one cosine after a short warm-up.
        encoder_rate: of the pretrained encoder, as a share of ``rate``.
        shares: of the pictures with VOC's masks, with polygons, and with activation maps.
        seed: of weights, order and augmentation.
    """

    steps: int = 900
    batch: int = 12
    rate: float = 1.5e-3
    encoder_rate: float = 0.15
    shares: tuple[float, float, float] = (0.5, 0.25, 0.25)
    seed: int = 1


class Samples:
    """Draws training batches.

    Args:
        groups: labelled photographs, by where their labels come from.
        shares: how often each group is drawn from.
    """

    def __init__(self, groups: Sequence[Sequence[Labelled]], shares: Sequence[float]) -> None:
        self._photographs = [photograph for group in groups for photograph in group]
        weights = np.concatenate(
            [np.full(len(group), share / max(1, len(group))) for group, share in zip(groups, shares, strict=True)]
        )
        aspects = np.array([np.log(p.pixels.shape[1] / p.pixels.shape[0]) for p in self._photographs])
        nearest = np.abs(aspects[:, None] - np.log([w / h for h, w in SHAPES])).argmin(1)
        self._rows = [np.flatnonzero(nearest == k) for k in range(len(SHAPES))]
        self._weights = [weights[rows] for rows in self._rows]

    def draw(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cut random parts of photographs of about one shape, mirrored and recoloured at random.

        Returns:
            pixels (B, 3, H, W) in [0, 1]; classes, and subjects, uint8 (B, H/4, W/4).
        """
        totals = np.array([weight.sum() for weight in self._weights])
        group = int(rng.choice(len(totals), p=totals / totals.sum()))
        weight = self._weights[group]
        rows = rng.choice(self._rows[group], batch, p=weight / weight.sum())
        drawn = [_cut(self._photographs[row], SHAPES[group], rng) for row in rows]
        pixels, classes, subjects = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        return pixels, classes, subjects


def _cut(
    photograph: Labelled, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut a part at ``shape`` = (height, width), its maps at a quarter of it, and change its light."""
    rows, columns = photograph.subject.shape
    side = 1.0 - 0.55 * rng.random() ** 1.5
    across, down = np.minimum(1.0, side * np.exp(rng.uniform(-0.15, 0.15, 2)))
    left, top = rng.random() * (1.0 - across), rng.random() * (1.0 - down)
    box = (left * columns, top * rows, (left + across) * columns, (top + down) * rows)
    direction = -1 if rng.random() < 0.5 else 1

    def part(values: NDArray[np.uint8], reduction: int, filter_: Image.Resampling) -> NDArray[np.uint8]:
        size = (shape[1] // reduction, shape[0] // reduction)
        return np.asarray(Image.fromarray(values).resize(size, filter_, box))[:, ::direction]

    pixels = part(photograph.pixels, 1, Image.Resampling.BILINEAR).astype(np.float32) / 255 - 0.5
    pixels = pixels * np.float32(rng.uniform(0.7, 1.3)) + 0.5 + rng.normal(0, 0.06, 3).astype(np.float32)
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    classes, subject = (part(map_, 4, Image.Resampling.NEAREST) for map_ in (photograph.classes, photograph.subject))
    return pixels.transpose(2, 0, 1), classes, subject


def segmentation_loss(scores: Tensor, classes: Tensor, subjects: Tensor) -> Tensor:
    """Negative log-likelihood of the classes (eq. 7) and of the subject, and the subject's soft IoU.

    Args:
        scores: of the classes before the softmax, and of the subject before the sigmoid, (B, classes + 1, H, W).
        classes: uint8 (B, H, W), or ``UNKNOWN``.
        subjects: uint8 (B, H, W), 0, 1 or ``UNKNOWN``.
    """
    entropy = functional.cross_entropy(scores[:, :-1], classes.long(), ignore_index=UNKNOWN, reduction="sum")
    known = (subjects != UNKNOWN).float()
    truth = (subjects == 1).float()
    binary = functional.binary_cross_entropy_with_logits(scores[:, -1], truth, known, reduction="sum")
    return (
        entropy / (classes != UNKNOWN).sum().clamp(min=1)
        + binary / known.sum().clamp(min=1.0)
        + soft_iou_loss(scores[:, -1], truth, known)
    )


def pretrained_fcn(classifier: EfficientNetLite) -> Fcn:
    """Return an untrained decoder over the classifier's encoder, the first stages of which stay as they are."""
    model = Fcn(FcnConfig(tuple(CLASSES)))
    wanted = model.encoder.state_dict()
    model.encoder.load_state_dict({name: t for name, t in classifier.state_dict().items() if name in wanted})
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(FROZEN)
    return model


def load_labelled(
    data: Path, photographs: Sequence[Photograph], classifier: EfficientNetLite
) -> list[list[Labelled]]:
    """Read all photographs that may be trained on: with VOC's masks, with polygons, with activation maps."""
    objects = sorted(
        (p for p in photographs if p.path.parent.parent.name == "objects1000"), key=lambda p: p.path.name
    )
    # One photograph a class; their names start with WordNet's numbers, whose order is that of ImageNet's classes.
    activated = [
        labelled_activation(photograph, label, classifier)
        for label, photograph in enumerate(objects)
        if not photograph.held_out
    ]
    return [
        [labelled_voc(file) for file in voc_files(data)[0]],
        [labelled_polygons(p) for p in photographs if p.polygons and not p.held_out],
        [photograph for photograph in activated if photograph is not None],
    ]


def train(
    data: Path, work: Path, output: Path, setup: FcnTraining = FcnTraining(), place: Device = CPU
) -> dict[str, float]:
    """Train, save a checkpoint with its log, and measure it on the held-out photographs.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoint.
        output: folder the model is written to.
        setup: steps, batch, rates, seed.
        place: to train on.

    Returns:
        What ``measure`` and ``measure_voc`` found.
    """
    torch.manual_seed(setup.seed)
    classifier = EfficientNetLite().eval()
    load_pretrained(classifier)
    photographs = load_photographs(data)
    labelled = load_labelled(data, photographs, classifier)
    samples = Samples(labelled, setup.shares)
    model = pretrained_fcn(classifier)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        drawn = samples.draw(np.random.default_rng([setup.seed, step]), setup.batch)
        pixels, classes, subjects = (tensor.to(place.device) for tensor in drawn)
        with place.autocast():
            scores = model.scores_at_quarter(pixels.to(memory_format=torch.channels_last))
        return segmentation_loss(scores.float(), classes, subjects)

    def rate(name: str) -> float:
        return setup.encoder_rate if name.startswith("encoder.") else 1.0

    schedule = Schedule(setup.steps, setup.rate, warm_up=min(50, setup.steps), weight_decay=0.02, save_every=50)
    log = fit("fcn", model, loss, schedule, work, seed=setup.seed, rate=rate, place=place)
    model.cpu().save_pretrained(output)
    segmenter = Segmenter.load(output, place.device)
    quality = measure(segmenter, photographs) | measure_voc(segmenter, data)
    counts = [len(group) for group in labelled]
    record = {"setup": asdict(setup), "photographs": counts, "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def measure_voc(segmenter: Segmenter, data: Path) -> dict[str, float]:
    """Mean IoU of what is not background with the union of VOC's classes, on the held-out VOC photographs."""
    scores = []
    for file in voc_files(data)[1]:
        photograph = labelled_voc(file)
        classes, _ = segmenter.probabilities(photograph.pixels)
        height, width = photograph.classes.shape
        background = Image.fromarray(classes[0]).resize((width, height), Image.Resampling.BILINEAR)
        known = photograph.classes != UNKNOWN
        found, truth = (np.asarray(background) < 0.5) & known, (photograph.classes > 0) & known
        scores.append((found & truth).sum() / max(1, (found | truth).sum()))
    return {"voc_pictures": len(scores), "voc_iou": round(float(np.mean(scores)), 4)}


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
