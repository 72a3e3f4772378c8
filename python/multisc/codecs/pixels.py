"""A small picture as quantised pixels: the slice of the subject as the paper sends it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.errors import BadInputError

Box = tuple[int, int, int, int]  # left, top, width, height


def crop(image: NDArray[np.uint8], box: Box, longest_side: int) -> NDArray[np.uint8]:
    """Cut a box out of a picture and shrink it, in proportion, to at most ``longest_side`` pixels.

    Args:
        image: uint8 of shape (H, W, 3).
        box: x, y, width, height in pixels, inside the picture, not empty.
        longest_side: limit of the longer side of what is returned; at least 1.

    Returns:
        uint8 of shape (h, w, 3).

    Raises:
        BadInputError: when the box is empty or not inside the picture.
    """
    x, y, width, height = box
    rows, columns = image.shape[:2]
    if not (0 <= x < x + width <= columns and 0 <= y < y + height <= rows):
        raise BadInputError(f"box {box}: must lie in the picture of {columns}x{rows} pixels and not be empty")
    part = Image.fromarray(image[y : y + height, x : x + width])
    shrink = min(1.0, longest_side / max(width, height))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return np.asarray(part.resize(size, Image.Resampling.LANCZOS))


def to_coefficients(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels as coefficients in [-1, 1], row by row, red, green and blue of each pixel together.

    Args:
        picture: uint8 of shape (h, w, 3).

    Returns:
        float32 of shape (h * w * 3,).
    """
    return (picture.astype(np.float32).ravel() + 0.5) / 128.0 - 1.0


def from_coefficients(coefficients: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels from received coefficients; missing ones become mid-grey, surplus ones are dropped.

    Args:
        coefficients: float32 of shape (n,); values beyond [-1, 1] are clipped.
        size: width and height of the picture.

    Returns:
        uint8 of shape (height, width, 3).
    """
    width, height = size
    flat = np.zeros(width * height * 3, np.float32)
    count = min(flat.size, coefficients.size)
    flat[:count] = np.nan_to_num(coefficients[:count], nan=0.0)
    levels = np.round((flat + 1.0) * 128.0 - 0.5)
    return np.clip(levels, 0, 255).astype(np.uint8).reshape(height, width, 3)
