"""Between RGB and the planes of a BPG picture: colour matrices, chroma resampling, ranges.

Decoding follows libbpg to the bit: its Lanczos filters, in its order (columns, then rows), with its rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.bpg.container import Alpha, ColorSpace, Header, PixelFormat

_FRACTION = 22  # fraction bits of the conversion to 8 bits
_STRIP = 64  # rows converted at a time, which keeps the intermediate arrays in the cache
# Interpolation by two, in 1/64. Chroma between two luma samples: the left of the two (mirrored: the right). Chroma on
# the left luma sample: the right one, halfway to the next chroma sample.
_LEFT = (2, -6, 18, 57, -10, 4, -1)
_HALFWAY = (-1, 4, -11, 40, 40, -11, 4, -1)
_REACH = 4  # samples that the longest filter needs beyond the edges
# Decimation by two, the least-squares inverse of that interpolation: the middle row of the pseudo-inverse of the
# interpolation matrix of _LEFT and its mirror, cut to 14 taps; symmetric, in 1/1024.
_DECIMATION = (-51, -3, 80, -18, -132, 106, 530, 530, 106, -132, -18, 80, -3, -51)
_LUMA_WEIGHTS = {  # of red and of blue
    ColorSpace.BT601: (0.299, 0.114),
    ColorSpace.BT709: (0.2126, 0.0722),
    ColorSpace.BT2020: (0.2627, 0.0593),
}


def from_rgb(rgb: NDArray[np.uint8], header: Header, block: int) -> list[NDArray[np.uint8]]:
    """Convert RGB to the planes of a picture of 8 bits, BT.601, full range.

    Args:
        rgb: uint8 of shape (height, width, 3).
        header: of the picture; 4:2:0, 4:4:4 or grey.
        block: the planes are extended to multiples of this many luma samples by repeating the edges.

    Returns:
        Luma, then Cb and Cr unless grey; uint8.
    """
    red, blue = _LUMA_WEIGHTS[ColorSpace.BT601]
    r, g, b = (rgb[..., i].astype(np.float32) for i in range(3))
    luma = np.float32(red) * r + np.float32(1 - red - blue) * g + np.float32(blue) * b
    planes, blocks = [luma], [block]
    if header.pixel_format != PixelFormat.GREY:
        planes += [(b - luma) / np.float32(2 * (1 - blue)) + 128, (r - luma) / np.float32(2 * (1 - red)) + 128]
        blocks = [block] * 3
    if header.pixel_format == PixelFormat.YUV420:
        planes[1:] = [_decimate(_decimate(plane).T).T for plane in planes[1:]]
        blocks = [block, block // 2, block // 2]
    rounded = [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes]
    return [_extend(plane, size) for plane, size in zip(rounded, blocks, strict=True)]


def _decimate(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halve the first axis, N to ceil(N/2)."""
    count, reach = (len(samples) + 1) // 2, len(_DECIMATION) // 2 - 1
    padded = samples[np.clip(np.arange(-reach, 2 * count + reach), 0, len(samples) - 1)]
    total = np.zeros((count, *samples.shape[1:]), np.float32)
    for offset, tap in enumerate(_DECIMATION):
        total += np.float32(tap / sum(_DECIMATION)) * padded[offset : offset + 2 * count : 2]
    return total


def _extend(plane: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
    rows, columns = (-size % block for size in plane.shape)
    return np.pad(plane, ((0, rows), (0, columns)), mode="edge")


def to_rgb(planes: list[NDArray], header: Header) -> NDArray[np.uint8]:
    """Convert decoded planes to RGB.

    Args:
        planes: luma, or G; then Cb and Cr, or Cg and Co, or B and R, unless grey; at least as large as the header
            says.
        header: of the picture.

    Returns:
        uint8 of shape (height, width, 3).
    """
    height, width = header.height, header.width
    rgb = np.empty((height, width, 3), np.uint8)
    if header.pixel_format.chroma_format in (1, 2):
        half_width = (width + 1) // 2
        chroma_rows = (height + 1) // 2 if header.pixel_format.chroma_format == 1 else height
        planes = [planes[0], *(plane[:chroma_rows, :half_width] for plane in planes[1:])]
    for top in range(0, height, _STRIP):
        rows = slice(top, min(top + _STRIP, height))
        luma = planes[0][rows, :width].astype(np.int64)
        chroma = [_full_chroma(plane, rows, width, header) for plane in planes[1:]]
        rgb[rows] = _matrix(luma, chroma, header)
    return rgb


def alpha_plane(plane: NDArray, header: Header) -> NDArray[np.uint8]:
    """Scale the fourth plane, which always has the full range, to uint8 of shape (height, width)."""
    plane = plane[: header.height, : header.width].astype(np.int64)
    one = round(255 * (1 << _FRACTION) / ((1 << header.bit_depth) - 1))
    return ((plane * one + (1 << _FRACTION - 1)) >> _FRACTION).astype(np.uint8)


def apply_alpha(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], kind: Alpha) -> NDArray[np.uint8]:
    """Undo premultiplication, or multiply by the white plane of a CMYK picture; straight alpha changes nothing."""
    plane = alpha.astype(np.float32)[..., None]
    if kind == Alpha.WHITE:
        return np.rint(rgb * plane / 255).astype(np.uint8)
    if kind == Alpha.PREMULTIPLIED:
        restored = np.where(rgb < plane, np.rint(rgb * np.float32(255) / np.maximum(plane, 1)), 255)
        return restored.astype(np.uint8)
    return rgb


def _full_chroma(plane: NDArray, rows: slice, width: int, header: Header) -> NDArray[np.int64]:
    """Chroma at luma resolution for some rows."""
    chroma_format, depth = header.pixel_format.chroma_format, header.bit_depth
    if chroma_format == 3:
        return plane[rows, :width].astype(np.int64)
    if chroma_format == 2:
        samples, fraction = plane[rows].astype(np.int64), 0
    else:
        # Between the two passes libbpg keeps 14 bits.
        fraction = 14 - depth
        samples = _interpolate(plane, rows, True)
        samples = (samples + ((1 << depth - 8) >> 1)) >> (depth - 8)
    wide = _interpolate(samples.T, slice(0, width), header.pixel_format.chroma_between).T
    if header.pixel_format.chroma_between:
        shift = 6 + fraction
        wide = (wide + (1 << shift - 1)) >> shift
    else:
        wide[:, 1::2] = (wide[:, 1::2] + (1 << 5 + fraction)) >> (6 + fraction)
        wide[:, 0::2] = (wide[:, 0::2] + ((1 << fraction) >> 1)) >> fraction
    return np.clip(wide, 0, (1 << depth) - 1)


def _interpolate(samples: NDArray, wanted: slice, between: bool) -> NDArray[np.int64]:
    """Double the first axis, in 1/64 of a sample where a filter was used; edges are repeated.

    Args:
        samples: of shape (N, ...).
        wanted: which of the 2N outputs to compute; starts at an even one.
        between: chroma lies between two luma samples; otherwise even outputs are the samples themselves, not scaled.
    """
    first, count = wanted.start // 2, (wanted.stop - wanted.start + 1) // 2
    index = np.clip(np.arange(first - _REACH, first + count + _REACH), 0, len(samples) - 1)
    padded = samples[index].astype(np.int64)

    def filtered(taps: tuple[int, ...], begin: int) -> NDArray[np.int64]:
        total = np.zeros((count, *samples.shape[1:]), np.int64)
        for offset, tap in enumerate(taps):
            total += tap * padded[_REACH + begin + offset : _REACH + begin + offset + count]
        return total

    out = np.empty((2 * count, *samples.shape[1:]), np.int64)
    out[0::2] = filtered(_LEFT, -3) if between else padded[_REACH : _REACH + count]
    out[1::2] = filtered(_LEFT[::-1], -3) if between else filtered(_HALFWAY, -3)
    return out[: wanted.stop - wanted.start]


def _matrix(luma: NDArray[np.int64], chroma: list[NDArray[np.int64]], header: Header) -> NDArray[np.uint8]:
    depth = header.bit_depth
    centre, half = 1 << depth - 1, 1 << _FRACTION - 1
    unit = 255 * (1 << _FRACTION)
    scale_y = round(unit / (219 << depth - 8 if header.limited_range else (1 << depth) - 1))
    scale_c = unit / (224 << depth - 8 if header.limited_range else (1 << depth) - 1)
    offset = half - ((16 << depth - 8) * scale_y if header.limited_range else 0)
    if not chroma:
        channels = [luma * scale_y] * 3
    elif header.color_space == ColorSpace.RGB:
        channels = [plane * scale_y for plane in (chroma[1], luma, chroma[0])]
    elif header.color_space == ColorSpace.YCGCO:
        green, orange = chroma[0] - centre, chroma[1] - centre
        channels = [plane * scale_y for plane in (luma - green + orange, luma + green, luma - green - orange)]
    else:
        red, blue = _LUMA_WEIGHTS[header.color_space]
        cb, cr = chroma[0] - centre, chroma[1] - centre
        luma = luma * scale_y
        green_cb = round(2 * blue * (1 - blue) / (1 - blue - red) * scale_c)
        green_cr = round(2 * red * (1 - red) / (1 - blue - red) * scale_c)
        channels = [
            luma + round(2 * (1 - red) * scale_c) * cr,
            luma - green_cb * cb - green_cr * cr,
            luma + round(2 * (1 - blue) * scale_c) * cb,
        ]
    return np.stack([np.clip((c + offset) >> _FRACTION, 0, 255) for c in channels], axis=-1).astype(np.uint8)
