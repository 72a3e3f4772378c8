"""A picture as a vector of shape, colour and texture, the ground of the ``cosine`` metric.

No part of any system is trained on this descriptor or with it, it needs no weights, and it ships with the
dependencies, so that the number is the same everywhere and no system can be tuned to it by accident.
docs/reference/metrics.md says how to read it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab
from skimage.feature import hog, local_binary_pattern

SIDE = 128
PARTS = ("shape", "colour", "texture")

_COLOUR_GRID = 8
_TEXTURE_GRID = 4
_LBP_CODES = 10  # rotation-invariant uniform patterns of 8 neighbours
# What photographs have in common: the mean of ``_patterns`` over the 300 images of BSDS300.
_COMMON_PATTERNS = np.array([0.235, 0.282, 0.228, 0.320, 0.399, 0.361, 0.263, 0.292, 0.321, 0.356])


def describe(image: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Describe a picture, scaled to 128x128 whatever its shape.

    - shape: histograms of oriented gradients of the luma (Dalal and Triggs 2005): 9 orientations, cells of 16x16,
      blocks of 2x2 cells, L2-Hys, less their mean; 1,764 numbers.
    - colour: the mean of CIE L*, a*, b* in an 8x8 grid; L* less 50, so that mid grey is near zero; 192 numbers.
    - texture: histograms of rotation-invariant uniform local binary patterns (Ojala 2002, 8 neighbours, radius 1) of
      the luma in a 4x4 grid, square-rooted, less what photographs have in common; 160 numbers.

    Args:
        image: uint8 of shape (H, W, 3).

    Returns:
        a float64 vector for each of ``PARTS``; shape is zero for a flat picture.
    """
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    luma = np.asarray(small.convert("L"))
    gradients = hog(luma, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2), block_norm="L2-Hys")
    # Every block has much the same length: the common part says nothing of the picture.
    gradients = gradients - gradients.mean()
    lab = rgb2lab(np.asarray(small)) - np.array([50.0, 0.0, 0.0])
    step = SIDE // _COLOUR_GRID
    colour = lab.reshape(_COLOUR_GRID, step, _COLOUR_GRID, step, 3).mean(axis=(1, 3))
    return {"shape": gradients, "colour": colour.ravel(), "texture": (_patterns(luma) - _COMMON_PATTERNS).ravel()}


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The mean over the three parts of the cosine between two pictures' vectors.

    It is the cosine of the parts' unit vectors put end to end. A part that is zero in both pictures counts as equal
    (1), one that is zero in one of them as unrelated (0).

    Args:
        first: uint8 of shape (H, W, 3).
        second: uint8 of shape (H', W', 3).

    Returns:
        -1 to 1; 1 for equal pictures, near 0 for unrelated photographs.
    """
    one, other = describe(first), describe(second)
    return float(np.mean([_cosine(one[part], other[part]) for part in PARTS]))


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if min(lengths) < 1e-9:
        return 1.0 if max(lengths) < 1e-9 else 0.0
    return float(np.clip(a @ b / (lengths[0] * lengths[1]), -1.0, 1.0))


def _patterns(luma: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Square roots of the frequencies of the patterns, shape (16, 10)."""
    codes = local_binary_pattern(luma, 8, 1, method="uniform").astype(np.intp)
    step = SIDE // _TEXTURE_GRID
    tiles = codes.reshape(_TEXTURE_GRID, step, _TEXTURE_GRID, step).transpose(0, 2, 1, 3).reshape(-1, step * step)
    counts = np.stack([np.bincount(tile, minlength=_LBP_CODES) for tile in tiles])
    return np.sqrt(counts / (step * step))
