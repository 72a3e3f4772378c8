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
MARGIN = 0.02  # of the box around the mask, as a share of the longer side: about a cell of the network's finest map
DOUBT = 0.2  # see ``main_region``; set beforehand, as MIN_KEPT, not on the photographs that the card measures on
MIN_KEPT = 0.3  # least mass of a fragment, as a share of the largest one's


@dataclass(frozen=True)
class Subject:
    """The main subject of a picture.

    Args:
        mask: bool of shape (H, W), the picture's size; never empty.
        box: (x, y, width, height) in pixels, inside the picture, around the mask with a margin; sides of at least 1.
        label: the class of most of the subject's pixels, never the background.
        score: mean subject probability over the mask, 0 to 1.
        found: False when no place is more likely subject than background; the mask is then a guess.
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

    def probabilities(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return p(class | pixel) and p(subject | pixel), float32, at the network's working size.

        Args:
            image: uint8 RGB (H, W, 3).

        Returns:
            Shapes (classes, h, w) and (h, w), means over the picture and its mirror image.
        """
        height, width = image.shape[:2]
        scale = self._model.config.long_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        batch = torch.from_numpy(small.transpose(2, 0, 1)[None].copy()).to(self._device)
        with torch.inference_mode():
            classes, subject = self._model(torch.cat([batch, batch.flip(3)]))
        both, subjects = (classes[0].exp() + classes[1].exp().flip(2)) / 2, (subject[0] + subject[1].flip(1)) / 2
        return both.float().cpu().numpy(), subjects.float().cpu().numpy()

    def segment(self, image: NDArray[np.uint8]) -> Subject:
        """Find the main subject: the mask that is expected to overlap most with it.

        Args:
            image: uint8 RGB of shape (H, W, 3), H and W at least 1.

        Returns:
            The subject, at the size of ``image``.
        """
        height, width = image.shape[:2]
        classes, subject = self.probabilities(image)
        region, _ = main_region(subject)
        found = bool(subject.max() > 0.5)
        label = 1 + int(classes[1:, region].sum(axis=1).argmax())
        score = float(subject[region].mean())
        enlarged = Image.fromarray(np.where(region, 255, 0).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        mask = np.asarray(enlarged) >= 128
        if not mask.any():  # a thin region lost in reduction: keep its strongest pixel
            mask = np.asarray(enlarged) == np.asarray(enlarged).max()
        return Subject(mask, _box(mask), self._model.config.classes[label], score, found)


def main_region(foreground: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float]:
    """The mask whose overlap with the subject is expected to be largest, without small fragments and holes.

    Were the pixels independent, a mask's expected intersection is the sum of its probabilities, its expected union
    its area and the probabilities outside; the best mask is a threshold's. Networks are too sure of themselves:
    ``DOUBT`` is the share of each probability that is spread evenly over the picture.

    Args:
        foreground: probability of the subject, (h, w).

    Returns:
        the mask, bool (h, w), never empty; and the expected intersection over union of what is above the threshold.
    """
    doubtful = (1.0 - DOUBT) * foreground + DOUBT * foreground.mean(dtype=np.float64)
    ordered = np.sort(doubtful, axis=None)[::-1]
    inside = np.cumsum(ordered, dtype=np.float64)
    expected = inside / np.maximum(np.arange(1, ordered.size + 1) + inside[-1] - inside, 1e-9)
    best = int(expected.argmax())
    regions, count = ndimage.label(doubtful >= ordered[best])
    mass = ndimage.sum_labels(doubtful, regions, np.arange(1, count + 1))
    kept = 1 + np.flatnonzero(mass >= MIN_KEPT * mass.max())
    return ndimage.binary_fill_holes(np.isin(regions, kept)), float(expected[best])


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The bounding box of the mask with ``MARGIN`` around, at least ``MIN_SIDE``, where the picture allows."""
    height, width = mask.shape
    margin = round(MARGIN * max(height, width))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, h = _grow(int(rows[0]) - margin, int(rows[-1]) + 1 + margin, height)
    x, w = _grow(int(columns[0]) - margin, int(columns[-1]) + 1 + margin, width)
    return x, y, w, h


def _grow(start: int, stop: int, limit: int) -> tuple[int, int]:
    """What lies inside 0 to ``limit``, grown about its centre to ``MIN_SIDE``: start and size."""
    start, stop = max(0, start), min(limit, stop)
    size = min(limit, max(stop - start, MIN_SIDE))
    start = min(max(0, (start + stop - size) // 2), limit - size)
    return start, size
