"""Pictures and constellations as data URIs: the parts of the report that are drawn."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from multisc.phy import modulation as modulations

MAX_SHOWN_SIDE = 1200
LOSSLESS_PIXELS = 256 * 256

_BINS = 160
_HUE = (14, 138, 150)  # readable over light and dark paper; density is told by opacity


@dataclass(frozen=True)
class Constellation:
    """A stream's received symbols as a density.

    Args:
        uri: PNG with an alpha channel, square, covering -extent to extent on both axes, the imaginary axis upwards.
        extent: half the side in units of the amplitude.
        ideal: points of the modulation as (real, imaginary); empty for an analog stream.
        count: symbols received.
        beyond: symbols outside the square.
    """

    uri: str
    extent: float
    ideal: list[tuple[float, float]]
    count: int
    beyond: int


def picture_uri(image: NDArray[np.uint8], side: int = MAX_SHOWN_SIDE) -> str:
    """A picture for looking at: PNG when small, JPEG of high quality when large.

    Args:
        image: uint8 of shape (H, W, 3) or (H, W).
        side: pixels of the longer side, to which a larger picture is scaled down.
    """
    shown = Image.fromarray(np.ascontiguousarray(image))
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    if shown.width * shown.height <= LOSSLESS_PIXELS:
        return _uri(shown, "png")
    return _uri(shown, "jpeg", quality=92, subsampling=0)


def mask_uri(mask: NDArray[np.uint8]) -> str:
    """A mask, non-zero where the subject is, as a veil over everything else."""
    veil = np.zeros((*mask.shape[:2], 4), np.uint8)
    veil[..., :3] = 16
    veil[..., 3] = np.where(mask.reshape(*mask.shape[:2], -1)[..., 0] > 0, 0, 120)
    shown = Image.fromarray(veil)
    shown.thumbnail((MAX_SHOWN_SIDE // 2, MAX_SHOWN_SIDE // 2))
    return _uri(shown, "png")


def constellation(symbols: NDArray[np.complex64], modulation: str) -> Constellation:
    """Draw received symbols as a density.

    Args:
        symbols: complex64 of shape (n,), scaled so that the ideal points have unit mean power; what is not finite
            is left out.
        modulation: of the stream.
    """
    points = symbols[np.isfinite(symbols)]
    analog = modulation == "analog"
    ideal = np.zeros(0, np.complex64) if analog else modulations.constellation(modulation)
    reach = float(np.abs(np.concatenate([ideal.real, ideal.imag, [0.9]])).max())
    if points.size:
        reach = max(1.25 * reach, float(np.quantile(np.abs(np.concatenate([points.real, points.imag])), 0.995)))
    extent = min(1.1 * reach, 8.0)
    span = (-extent, extent)
    counts, _, _ = np.histogram2d(points.imag, points.real, bins=_BINS, range=(span, span))
    density = gaussian_filter(counts, 1.6 if points.size < 2000 else 0.8)[::-1]
    if points.size:
        density /= max(float(np.quantile(density[density > 1e-6], 0.98)), 1e-9)
    pixels = np.zeros((_BINS, _BINS, 4), np.uint8)
    pixels[..., :3] = _HUE
    pixels[..., 3] = np.rint(255 * np.clip(density, 0, 1) ** 0.6)
    return Constellation(
        _uri(Image.fromarray(pixels), "png"),
        extent,
        [(float(p.real), float(p.imag)) for p in ideal],
        int(points.size),
        int(points.size - counts.sum()),
    )


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
