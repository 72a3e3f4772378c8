"""Find the main subject of a picture with the FCN (Multi-SC eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from multisc.models.fcn import Fcn
from multisc.models.torchvision_fcn import TorchvisionFcn, is_converted

MIN_SIDE = 32  # of the box, in pixels, where the picture has as many
MIN_SHARE = 0.004  # of the picture's area, below which a region is no subject
MAX_SHARE = 0.75  # above which a region may be subject and surroundings in one, so that a higher threshold is tried
MIN_KEPT = 0.4  # of that region, or else it is the subject after all
THRESHOLDS = (0.35, 0.5, 0.65)  # of the foreground probability


@dataclass(frozen=True)
class Subject:
    """The main subject of a picture.

    Args:
        mask: bool of shape (H, W), the picture's size; never empty.
        box: (x, y, width, height) in pixels, inside the picture and around the mask; both sides at least 1.
        label: the class of most of the subject's pixels, never the background.
        score: mean foreground probability over the mask, 0 to 1.
        found: False when no region reached the foreground threshold and the subject is the region around the most
            salient place instead.
    """

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    label: str
    score: float
    found: bool = True


class Segmenter:
    """Cuts out subjects.

    Args:
        model: the FCN, in evaluation mode.
        device: where it runs.
    """

    def __init__(self, model: Fcn | TorchvisionFcn, device: str = "cpu") -> None:
        self._model = model.to(device).eval()
        self._device = device

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Segmenter:
        """Load a checkpoint directory.

        Raises:
            ModelError: when it is incomplete or does not fit.
        """
        directory = Path(path)
        kind = TorchvisionFcn if is_converted(directory) else Fcn
        return cls(kind.from_pretrained(directory), device)

    def probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return p(class | pixel), float32 of shape (classes, h, w), at the network's working size."""
        height, width = image.shape[:2]
        scale = self._model.config.long_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        batch = torch.from_numpy(small.transpose(2, 0, 1)[None].copy()).to(self._device)
        with torch.inference_mode():
            both = (self._model(batch).exp() + self._model(batch.flip(3)).exp().flip(3)) / 2
        return both[0].float().cpu().numpy()

    def segment(self, image: NDArray[np.uint8]) -> Subject:
        """Find the main subject: the connected foreground region with the most area, centrality and confidence.

        When no region reaches the threshold, the subject is where the network's own foreground probability is
        highest: the quarter of the picture with the most probability mass around its (centre-weighted) mean.

        Args:
            image: uint8 RGB of shape (H, W, 3), H and W at least 1.

        Returns:
            The subject, at the size of ``image``.
        """
        height, width = image.shape[:2]
        classes = self.probabilities(image)
        foreground = 1.0 - classes[0]
        centre = _centrality(*foreground.shape)
        region = _main_region(foreground, centre)
        found = region is not None
        if region is None:
            region = _salient_region(foreground, centre)
        label = 1 + int(classes[1:, region].sum(axis=1).argmax())
        score = float(foreground[region].mean())
        enlarged = Image.fromarray(np.where(region, 255, 0).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        mask = np.asarray(enlarged) >= 128
        if not mask.any():  # a thin region lost in reduction: keep its strongest pixel
            mask = np.asarray(enlarged) == np.asarray(enlarged).max()
        return Subject(mask, _box(mask), self._model.config.classes[label], score, found)


def _centrality(height: int, width: int) -> NDArray[np.float32]:
    """A weight of 1 in the middle that falls to about 0.3 in the corners, float32 (height, width)."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
    x = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    return np.exp(-2.4 * (y[:, None] ** 2 + x[None, :] ** 2))


def _main_region(foreground: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """The best connected region at the lowest threshold that tells it from its surroundings; None without any."""
    best = None
    for threshold in THRESHOLDS:
        regions, count = ndimage.label(foreground > threshold)
        if not count:
            break
        index = np.arange(1, count + 1)
        merit = ndimage.sum_labels(foreground * centre, regions, index)
        region = ndimage.binary_fill_holes(regions == index[int(merit.argmax())])
        if region.mean() < MIN_SHARE or (best is not None and region.sum() < MIN_KEPT * best.sum()):
            break
        best = region
        if region.mean() <= MAX_SHARE:
            break
    return best


def _salient_region(foreground: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.bool_]:
    height, width = foreground.shape
    mass = foreground * centre
    total = float(mass.sum()) or 1.0
    y = float((mass.sum(1) * np.arange(height)).sum()) / total
    x = float((mass.sum(0) * np.arange(width)).sum()) / total
    half_height, half_width = max(1, height // 4), max(1, width // 4)
    top = int(np.clip(round(y) - half_height, 0, max(0, height - 2 * half_height)))
    left = int(np.clip(round(x) - half_width, 0, max(0, width - 2 * half_width)))
    region = np.zeros((height, width), bool)
    region[top : top + 2 * half_height, left : left + 2 * half_width] = True
    return region


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The bounding box of the mask, grown about its centre to ``MIN_SIDE`` where the picture allows."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, h = _grow(int(rows[0]), int(rows[-1]) + 1, height)
    x, w = _grow(int(columns[0]), int(columns[-1]) + 1, width)
    return x, y, w, h


def _grow(start: int, stop: int, limit: int) -> tuple[int, int]:
    size = min(limit, max(stop - start, MIN_SIDE))
    start = min(max(0, (start + stop - size) // 2), limit - size)
    return start, size
