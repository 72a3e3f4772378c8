"""Train the FCN: negative log-likelihood (eq. 7) on a VOC teacher's label maps and on annotated polygons."""

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

from multisc.models.fcn import Fcn, FcnConfig
from multisc.models.segmenter import Segmenter
from multisc.training.loop import Schedule, fit
from multisc.training.photographs import Photograph, load_photographs

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
IGNORE = 255
TEACHER_SIDE = 513
CROP = 192


@dataclass(frozen=True)
class FcnTraining:
    """How the FCN is trained.

    Args:
        steps: optimiser steps.
        batch: pictures per step.
        rate: peak learning rate; one cosine after a short warm-up.
        seed: of weights, order and augmentation.
    """

    steps: int = 3500
    batch: int = 16
    rate: float = 2e-3
    seed: int = 1


class Teacher:
    """DeepLab v3 (MobileNet v2, the 21 VOC classes) that labels photographs."""

    def __init__(self, model: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        # The default delegate rejects this quantised graph, the plain kernels run it.
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._net = Interpreter(str(model), experimental_op_resolver_type=resolver, num_threads=1)
        self._net.allocate_tensors()

    def label(self, picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the class index of each pixel at ``size`` = (width, height)."""
        source = Image.fromarray(picture)
        source.thumbnail((TEACHER_SIDE, TEACHER_SIDE))
        canvas = np.full((1, TEACHER_SIDE, TEACHER_SIDE, 3), 128, np.uint8)
        canvas[0, : source.height, : source.width] = np.asarray(source)
        self._net.set_tensor(self._net.get_input_details()[0]["index"], canvas)
        self._net.invoke()
        labels = self._net.get_tensor(self._net.get_output_details()[0]["index"])[0].astype(np.uint8)
        return np.asarray(
            Image.fromarray(labels[: source.height, : source.width]).resize(size, Image.Resampling.NEAREST)
        )


def draw_labels(photograph: Photograph, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay the annotated polygons over the teacher's labels, large ones first so that small ones stay visible."""
    labels = labels.copy()
    masks = [(photograph.mask(p, labels.shape), p.category) for p in photograph.polygons or []]
    for mask, category in sorted(masks, key=lambda item: -item[0].sum()):
        name = VOC_NAMES.get(category, category)
        labels[mask] = CLASSES.index(name if name in CLASSES else "object")
    return labels


def label_photographs(
    photographs: list[Photograph], data: Path, cache: Path, long_side: int
) -> list[NDArray[np.uint8]]:
    """Return a label map per photograph, kept in ``cache`` between runs."""
    if cache.is_file():
        with np.load(cache) as stored:
            maps = [stored[str(index)] for index in range(len(photographs))]
    else:
        teacher = Teacher(data / "teacher/deeplabv3_mnv2_pascal_quant.tflite")
        maps = []
        for photograph in photographs:
            height, width = photograph.load(long_side).shape[:2]
            maps.append(teacher.label(photograph.load(TEACHER_SIDE), (width, height)))
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache, **{str(index): labels for index, labels in enumerate(maps)})
    return [draw_labels(p, labels) for p, labels in zip(photographs, maps, strict=True)]


def _augment(
    picture: NDArray[np.uint8], labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cut a random square at a random scale, mirrored and recoloured at random."""
    height, width = labels.shape
    side = min(int(CROP / np.exp(rng.uniform(np.log(0.75), np.log(1.6)))), max(height, width))
    top = int(rng.integers(min(0, height - side), max(0, height - side) + 1))
    left = int(rng.integers(min(0, width - side), max(0, width - side) + 1))
    box = (left, top, left + side, top + side)
    cut = Image.fromarray(picture).crop(box).resize((CROP, CROP), Image.Resampling.BILINEAR)
    # Shifted by one, so that what lies outside the photograph, cropped as 0, can be told from the background.
    shifted = Image.fromarray(labels + 1).crop(box).resize((CROP // 4, CROP // 4), Image.Resampling.NEAREST)
    target = np.asarray(shifted).astype(np.int64) - 1
    target[target < 0] = IGNORE
    pixels = np.asarray(cut).astype(np.float32) / 255
    if rng.random() < 0.5:
        pixels, target = pixels[:, ::-1], target[:, ::-1]
    pixels = (pixels - 0.5) * rng.uniform(0.7, 1.3) + 0.5 + rng.normal(0, 0.06, 3)
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)), torch.from_numpy(
        target.copy()
    )


def train(data: Path, work: Path, output: Path, setup: FcnTraining = FcnTraining()) -> dict[str, float]:
    """Train, save a checkpoint with its log, and measure it on the held-out photographs.

    Args:
        data: folder of the photographs and the teacher.
        work: folder of the label cache and of the resumable checkpoint.
        output: folder the model is written to.
        setup: steps, batch, rate, seed.

    Returns:
        What ``measure`` found.
    """
    torch.manual_seed(setup.seed)
    config = FcnConfig(tuple(CLASSES))
    photographs = load_photographs(data)
    labels = label_photographs(photographs, data, work / "teacher.npz", config.long_side)
    # A photograph of one object of a class that the teacher does not know has no usable label.
    usable = [p.path.parent.parent.name != "objects1000" or m.any() for p, m in zip(photographs, labels, strict=True)]
    chosen = [i for i, p in enumerate(photographs) if usable[i] and not p.held_out]
    weight = np.array([4.0 if photographs[i].polygons is not None else 1.0 for i in chosen])
    pictures = {i: photographs[i].load(config.long_side) for i in chosen}
    model = Fcn(config)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    class_weight = torch.ones(len(CLASSES))
    class_weight[0] = 0.5  # most pixels are background

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([setup.seed, step])
        picks = rng.choice(len(chosen), setup.batch, p=weight / weight.sum())
        pairs = [_augment(pictures[chosen[k]], labels[chosen[k]], rng) for k in picks]
        batch = torch.stack([pair[0] for pair in pairs]).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model.scores_at_quarter(batch)  # as the labels: drawn at a quarter of the size, for speed
        target = torch.stack([pair[1] for pair in pairs])
        return functional.nll_loss(scores.float().log_softmax(1), target, class_weight, ignore_index=IGNORE)

    schedule = Schedule(setup.steps, setup.rate, warm_up=200, weight_decay=0.02)
    log = fit("fcn", model, loss, schedule, work, seed=setup.seed)
    model.save_pretrained(output)
    quality = measure(Segmenter.load(output), photographs)
    record = {"setup": asdict(setup), "photographs": len(chosen), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def measure(segmenter: Segmenter, photographs: list[Photograph]) -> dict[str, float]:
    """Mean IoU on annotated, held-out photographs.

    Returns:
        ``subject_iou``: the subject's mask against the annotated objects that it belongs to, which are: the largest
        one, joined with the others of its category. ``best_group_iou``: against the such group that fits best.
        ``pictures``: how many were measured.
    """
    largest, best = [], []
    for photograph in photographs:
        if not photograph.held_out or not photograph.polygons:
            continue
        picture = photograph.load(480)
        mask = segmenter.segment(picture).mask
        groups: dict[str, NDArray[np.bool_]] = {}
        for polygon in photograph.polygons:
            drawn = photograph.mask(polygon, mask.shape)
            groups[polygon.category] = groups.get(polygon.category, np.zeros_like(drawn)) | drawn
        scores = {name: (mask & g).sum() / max(1, (mask | g).sum()) for name, g in groups.items()}
        largest.append(scores[max(groups, key=lambda name: groups[name].sum())])
        best.append(max(scores.values()))
    return {
        "pictures": len(largest),
        "subject_iou": round(float(np.mean(largest)), 4),
        "best_group_iou": round(float(np.mean(best)), 4),
    }
