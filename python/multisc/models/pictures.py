"""Pictures as the image processors of the models take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.errors import BadInputError


def to_pillow(images: Sequence[NDArray[np.uint8]]) -> list[Image.Image]:
    """Return pictures as Pillow's.

    Args:
        images: uint8 arrays (H, W, 3), at least 1x1.

    Raises:
        BadInputError: for an array that is not a picture.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise BadInputError(f"picture of shape {image.shape} {image.dtype}: must be (H, W, 3) uint8")
    return [Image.fromarray(np.ascontiguousarray(image)) for image in images]
