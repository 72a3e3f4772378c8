"""The slice's place in the picture: its box at another size, and the received pixels laid over what was generated."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.codecs.pixels import Box

FEATHER = 0.08  # of the shorter side of the slice: width of the seam between slice and generated picture


def scale_box(box: Box, size: tuple[int, int], target: tuple[int, int]) -> Box:
    """The box at another size of the picture; inside it, and at least one pixel large."""
    parts = []
    for start, extent, limit, wanted in zip(box[:2], box[2:], size, target, strict=True):
        low = min(wanted - 1, math.floor(start * wanted / limit + 0.5))
        high = max(low + 1, min(wanted, math.floor((start + extent) * wanted / limit + 0.5)))
        parts.append((low, high - low))
    (x, w), (y, h) = parts
    return x, y, w, h


def paste(picture: NDArray[np.uint8], subject: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Lay the received pixels over the picture, fading towards the box's borders but not at the picture's edge."""
    x, y, w, h = box
    height, width = picture.shape[:2]
    received = np.asarray(Image.fromarray(subject).resize((w, h), Image.Resampling.LANCZOS), np.float32)
    feather = max(1.0, FEATHER * min(w, h))
    weight = np.minimum.outer(_ramp(h, feather, y > 0, y + h < height), _ramp(w, feather, x > 0, x + w < width))[
        ..., None
    ]
    result = picture.copy()
    under = result[y : y + h, x : x + w].astype(np.float32)
    result[y : y + h, x : x + w] = (weight * received + (1 - weight) * under).round().clip(0, 255).astype(np.uint8)
    return result


def _ramp(length: int, feather: float, fade_start: bool, fade_stop: bool) -> NDArray[np.float32]:
    """Weights over one side of the box that rise from its faded ends to 1."""
    place = np.arange(length, dtype=np.float32) + 0.5
    weight = np.ones(length, np.float32)
    if fade_start:
        weight = np.minimum(weight, place / feather)
    if fade_stop:
        weight = np.minimum(weight, (length - place) / feather)
    return weight
