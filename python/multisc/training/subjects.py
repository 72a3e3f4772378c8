"""Where the main subject of a photograph is: learned from few polygons over the features of the VOC teacher.

The teacher names 20 kinds of things and calls everything else background; a small probe over its features, fitted on
the annotated photographs, says of any photograph what people would have outlined as its largest kind of thing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from multisc.training.photographs import Photograph
from multisc.training.teacher import GRID, TEACHER_SIDE, Teacher

FINE = 129  # of the subject maps
COMPONENTS = 96
PROBES = 5
STEPS = 250
BATCH = 16
TAPS = (
    "MobilenetV2/expanded_conv_12/add",
    "MobilenetV2/expanded_conv_15/add",
    "MobilenetV2/expanded_conv_16/project/add_fold",
    "concat_projection/Relu",
    "logits/semantic/BiasAdd",
)
CLASS_COUNT = 21  # channels of the last tap: the VOC classes


def on_canvas(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put a picture in the upper left of the teacher's canvas."""
    height, width = picture.shape[:2]
    canvas = np.full((TEACHER_SIDE, TEACHER_SIDE, 3), 128, np.uint8)
    canvas[:height, :width] = picture
    return canvas


def teacher_features(photographs: list[Photograph], model: Path, store: Path) -> NDArray[np.uint8]:
    """Return what the teacher sees in each photograph, uint8 memory map (N, 33, 33, channels), kept in ``store``.

    Raises:
        BadInputError: when the teacher or its runtime is missing.
    """
    kept = _kept(store, len(photographs))
    if kept is not None:
        return kept
    teacher = Teacher(model, TAPS)
    store.parent.mkdir(parents=True, exist_ok=True)
    partial = store.with_suffix(".partial.npy")
    shape = (len(photographs), *teacher.look(on_canvas(photographs[0].load(TEACHER_SIDE))).shape)
    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for row, photograph in enumerate(photographs):
        features[row] = teacher.look(on_canvas(photograph.load(TEACHER_SIDE)))
    features.flush()
    partial.replace(store)
    return np.load(store, mmap_mode="r")


def _kept(store: Path, count: int) -> NDArray[np.uint8] | None:
    """What an earlier run left of as many photographs, as a memory map; None when it left nothing, or of others."""
    if not store.is_file():
        return None
    found = np.load(store, mmap_mode="r")
    return found if len(found) == count else None


def principal(features: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Reduce the features to their ``COMPONENTS`` strongest components, the weaker ones amplified.

    Args:
        features: of all photographs, (N, 33, 33, channels).

    Returns:
        float16 (N, COMPONENTS, 33, 33), of about unit deviation.
    """
    step = max(1, len(features) // 120)
    sample = np.asarray(features[::step], np.float32).reshape(-1, features.shape[-1])[::5]
    mean, deviation = sample.mean(0), sample.std(0) + 1.0
    values, vectors = np.linalg.eigh(np.cov(((sample - mean) / deviation).T))
    strongest = values[::-1][:COMPONENTS]
    # Between plain components, which a probe sees little of, and white ones, which are mostly noise.
    basis = vectors[:, ::-1][:, :COMPONENTS] / strongest**0.25
    basis = (basis / np.sqrt(np.mean(strongest**0.5)) / deviation[:, None]).astype(np.float32)
    reduced = np.empty((len(features), COMPONENTS, GRID, GRID), np.float16)
    for row in range(len(features)):
        reduced[row] = ((np.asarray(features[row], np.float32) - mean) @ basis).transpose(2, 0, 1)
    return reduced


def subject_group(photograph: Photograph, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The annotated category that covers most of a photograph: all of its objects, bool of ``shape``."""
    return max(annotated_groups(photograph, shape).values(), key=lambda mask: int(mask.sum()))


def annotated_groups(photograph: Photograph, shape: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
    """The annotated objects of a photograph, joined by category."""
    groups: dict[str, NDArray[np.bool_]] = {}
    for polygon in photograph.polygons or []:
        drawn = photograph.mask(polygon, shape)
        groups[polygon.category] = groups.get(polygon.category, np.zeros_like(drawn)) | drawn
    return groups


def canvas_size(photograph: Photograph) -> tuple[int, int]:
    """(height, width) of a photograph on the teacher's canvas."""
    with Image.open(photograph.path) as file:
        width, height = file.size
    scale = TEACHER_SIDE / max(width, height)
    return max(1, round(height * scale)), max(1, round(width * scale))


class Probe(nn.Module):
    """From the teacher's features and the place to the subject's score; small and noisy, to learn from few pictures.

    Args:
        width: channels inside.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.3)
        self.local = nn.Conv2d(COMPONENTS + 7, width, 1)
        self.scene = nn.Conv2d(COMPONENTS, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.far = nn.Conv2d(width, width, 3, padding=3, dilation=3)
        self.pool = nn.Linear(width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, features: Tensor, inside: Tensor) -> Tensor:
        """Return scores (B, 2, 129, 129) of subject and of any annotated thing.

        Args:
            features: (B, COMPONENTS, 33, 33).
            inside: (B, 1, 33, 33), 1 where the canvas holds the photograph, else 0.
        """
        features = features * inside
        cells = inside.sum((2, 3))
        mean = features.sum((2, 3)) / cells
        hidden = self.local(torch.cat([self.drop(features), _place(inside), inside], 1))
        hidden = functional.gelu(hidden + self.scene(self.drop(mean[:, :, None, None])))
        hidden = hidden + functional.gelu(self.near(hidden) * inside)
        hidden = hidden + functional.gelu(self.far(hidden) * inside)
        pooled = self.pool((hidden * inside).sum((2, 3)) / cells)
        hidden = functional.gelu(hidden + pooled[:, :, None, None])
        return functional.interpolate(self.out(self.drop(hidden)), (FINE, FINE), mode="bilinear", align_corners=False)


def _place(inside: Tensor) -> Tensor:
    """Coordinates of each cell in its photograph, -1 to 1, and their squares, products and moduli."""
    steps = torch.arange(GRID) + 0.5
    y = (steps[None] / inside.amax(3)[:, 0].sum(1, keepdim=True) * 2 - 1)[:, None, :, None].expand_as(inside)
    x = (steps[None] / inside.amax(2)[:, 0].sum(1, keepdim=True) * 2 - 1)[:, None, None, :].expand_as(inside)
    return torch.cat([y, x, y * y, x * x, x * y.abs(), x.abs()], 1) * inside


def mirror(canvas: Tensor, columns: int) -> Tensor:
    """Flip the left ``columns`` of a canvas (..., H, W), which hold the photograph; the rest is 0."""
    flipped = torch.zeros_like(canvas)
    flipped[..., :columns] = canvas[..., :columns].flip(-1)
    return flipped


def drawn(mask: NDArray[np.bool_]) -> Tensor:
    """Put a mask on the canvas; share of each of its 129x129 cells."""
    canvas = torch.zeros(1, 1, TEACHER_SIDE, TEACHER_SIDE)
    canvas[0, 0, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask.copy())
    return functional.interpolate(canvas, (FINE, FINE), mode="area")[0, 0]


def _inside(size: tuple[int, int], cells: int) -> Tensor:
    rows, columns = (int(np.ceil(side / TEACHER_SIDE * cells)) for side in size)
    inside = torch.zeros(1, cells, cells)
    inside[:, :rows, :columns] = 1.0
    return inside


def soft_iou_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """1 - intersection over union of probabilities with masks, mean over pictures; (B, H, W) each."""
    probability = scores.sigmoid()
    both = (probability * truth).sum((1, 2))
    return 1.0 - (both / ((probability + truth).sum((1, 2)) - both + 1.0)).mean()


def fit_probe(
    photographs: list[Photograph],
    features: NDArray[np.float16],
    rows: NDArray[np.intp],
    seed: int,
    steps: int = STEPS,
) -> Probe:
    """Fit a probe on the annotated photographs ``rows``: cross-entropy and soft IoU."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sizes = {row: canvas_size(photographs[row]) for row in rows}
    truth = {}
    for row in rows:
        groups = annotated_groups(photographs[row], sizes[row])
        subject = subject_group(photographs[row], sizes[row])
        truth[row] = torch.stack([drawn(subject), drawn(np.logical_or.reduce(list(groups.values())))])
    probe = Probe().train()
    optimiser = torch.optim.AdamW(probe.parameters(), weight_decay=0.1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        parts = []
        for row in rng.choice(rows, min(BATCH, len(rows)), replace=False):
            sample = [torch.from_numpy(features[row].astype(np.float32)), _inside(sizes[row], GRID), truth[row]]
            sample.append(_inside(sizes[row], FINE))
            if rng.random() < 0.5:
                columns = [int(np.ceil(sizes[row][1] / TEACHER_SIDE * part.shape[-1])) for part in sample]
                sample = [mirror(part, count) for part, count in zip(sample, columns, strict=True)]
            parts.append(sample)
        seen, inside, masks, valid = (torch.stack(column) for column in zip(*parts, strict=True))
        scores = probe(seen + 0.1 * torch.randn_like(seen), inside)
        entropy = functional.binary_cross_entropy_with_logits(scores, masks, reduction="none").mean(1, keepdim=True)
        outside = (1.0 - valid[:, 0]) * -30.0
        loss = (entropy * valid).sum() / valid.sum() + 0.5 * soft_iou_loss(scores[:, 0] + outside, masks[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return probe.eval()


@torch.inference_mode()
def subject_map(probes: list[Probe], features: NDArray[np.float16], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The subject's probability by the mean of the probes, over the picture and its mirror image.

    Args:
        probes: fitted.
        features: of one photograph, (COMPONENTS, 33, 33).
        size: (height, width) of the photograph on the canvas.

    Returns:
        uint8 (129, 129): 0 to 255 for 0 to 1; 0 outside the photograph.
    """
    seen, inside = torch.from_numpy(features.astype(np.float32)), _inside(size, GRID)
    columns = [int(np.ceil(size[1] / TEACHER_SIDE * cells)) for cells in (GRID, FINE)]
    both = torch.stack([seen, mirror(seen, columns[0])])
    scores = torch.stack([probe(both, inside.expand(2, -1, -1, -1))[:, 0] for probe in probes])
    plain, mirrored = scores.sigmoid().mean(0)
    mean = (plain + mirror(mirrored, columns[1])) / 2 * _inside(size, FINE)[0]
    return (mean * 255).round().byte().numpy()


def label_subjects(photographs: list[Photograph], features: NDArray[np.float16], cache: Path) -> NDArray[np.uint8]:
    """Return the subject's probability in every photograph, kept in ``cache``.

    The probes are fitted on the annotated photographs that are not held out; these keep their own polygons.

    Args:
        photographs: all of them.
        features: of all, as ``principal`` gives them.
        cache: .npy file.

    Returns:
        uint8 (N, 129, 129) on the teacher's canvas: 0 to 255 for 0 to 1.
    """
    kept = _kept(cache, len(photographs))
    if kept is not None:
        return kept
    annotated = [bool(p.polygons) and not p.held_out for p in photographs]
    rows = np.flatnonzero(annotated)
    probes = [fit_probe(photographs, features, rows, seed) for seed in range(PROBES)]
    maps = np.empty((len(photographs), FINE, FINE), np.uint8)
    for row, photograph in enumerate(photographs):
        size = canvas_size(photograph)
        if annotated[row]:
            maps[row] = (drawn(subject_group(photograph, size)) * 255).round().byte().numpy()
        else:
            maps[row] = subject_map(probes, features[row], size)
    partial = cache.with_suffix(".partial.npy")
    np.save(partial, maps)
    partial.replace(cache)
    return maps
