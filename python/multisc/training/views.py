"""Random views of photographs for training: crops, mirror images, changes of light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


@dataclass(frozen=True)
class View:
    """A part of a photograph, in fractions of its width and height.

    Args:
        left, top, right, bottom: the borders, 0 to 1.
        mirrored: whether left and right change places.
        gain, offset: change of light of each channel, for values of 0 to 1.
    """

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool
    gain: tuple[float, float, float]
    offset: float

    def cut(self, image: Tensor, size: int, mode: str = "bicubic") -> Tensor:
        """Return the part of an image or feature map (C, H, W) squeezed to (C, size, size); its light stays."""
        height, width = image.shape[1:]
        x0, y0 = int(self.left * width), int(self.top * height)
        x1, y1 = max(x0 + 1, round(self.right * width)), max(y0 + 1, round(self.bottom * height))
        part = image[:, y0:y1, x0:x1].float()
        if mode == "area":
            part = functional.adaptive_avg_pool2d(part, size)
        else:
            part = functional.interpolate(part[None], (size, size), mode=mode, antialias=True)[0]
        return part.flip(-1) if self.mirrored else part

    def light(self, image: Tensor) -> Tensor:
        """Change the light of an image (3, H, W) of values 0 to 1."""
        return (image * torch.tensor(self.gain)[:, None, None] + self.offset).clamp(0.0, 1.0)


WHOLE = View(0.0, 0.0, 1.0, 1.0, False, (1.0, 1.0, 1.0), 0.0)


def random_view(rng: np.random.Generator, smallest: float) -> View:
    """Draw a view that covers at least the fraction ``smallest`` of the photograph's area."""
    area, stretch = rng.uniform(smallest, 1.0), np.exp(rng.uniform(-0.25, 0.25))
    width, height = min(1.0, np.sqrt(area) * stretch), min(1.0, np.sqrt(area) / stretch)
    left, top = rng.uniform(0.0, 1.0 - width), rng.uniform(0.0, 1.0 - height)
    contrast, tint = np.exp(rng.normal(0.0, 0.12)), np.exp(rng.normal(0.0, 0.05, 3))
    gain = tuple(float(v) for v in contrast * tint)
    mirrored = bool(rng.random() < 0.5)
    return View(left, top, left + width, top + height, mirrored, gain, float(rng.normal(0.0, 0.06)))  # type: ignore[arg-type]


def pixel_values(images: list[NDArray[np.uint8]], views: list[View], size: int) -> Tensor:
    """Return views of images uint8 (H, W, 3), normalised as CLIP does: float32 (N, 3, size, size)."""
    mean, std = torch.tensor(OPENAI_CLIP_MEAN)[:, None, None], torch.tensor(OPENAI_CLIP_STD)[:, None, None]
    rows = []
    for image, view in zip(images, views, strict=True):
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        rows.append((view.light(view.cut(tensor, size) / 255.0) - mean) / std)
    return torch.stack(rows)
