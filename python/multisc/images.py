"""Pictures in and out: any common image file to 8-bit RGB, with limits that hold before anything is decoded.

What a file may be: a PNG, JPEG (also multi-picture), WebP, BMP, GIF, TIFF or PNM file of at most ``MAX_FILE_BYTES``
bytes whose header declares sides of at least ``MIN_SIDE`` pixels and at most ``MAX_PIXELS`` pixels in all. Formats
that Pillow hands to another program or decodes on trust (EPS, PSD, ...) are refused.

How it becomes RGB: of an animation, the first frame; transparency over white; grey to three equal channels; palettes
looked up; CMYK, YCbCr, Lab by Pillow's formulas, without colour profiles; 16-bit samples scaled to 8; turned upright
as its EXIF orientation says.
"""

from __future__ import annotations

import io
import os
import stat
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.errors import BadInputError
from multisc.files import printable, write_atomically

MIN_SIDE = 16
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_ORIENTATION_TAG = 0x0112
_KNOWN = "PNG, JPEG, WebP, BMP, GIF, TIFF or PNM"


def load_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image file as RGB.

    Args:
        path: a regular file in one of ``FORMATS``.

    Returns:
        uint8 array of shape (H, W, 3), 0 to 255, upright, contiguous.

    Raises:
        BadInputError: one line that names the file, when it is missing, not a file, not an image, damaged or
            truncated, smaller than ``MIN_SIDE`` on a side, larger than ``MAX_PIXELS`` or ``MAX_FILE_BYTES``, or of a
            sample format that has no defined range (floating point, 32-bit).
    """
    name = printable(path)
    data = _read(path, name)
    try:
        with warnings.catch_warnings():  # our own limits are stricter than the ones Pillow warns about
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, name)
                image.load()
                return _upright(_to_rgb(image, name), _orientation(image))
    except BadInputError:
        raise
    except Image.DecompressionBombError as error:
        raise BadInputError(f"{name}: too large, at most {MAX_PIXELS:,} pixels are accepted") from error
    except Image.UnidentifiedImageError as error:
        raise BadInputError(f"{name}: not an image: must be a {_KNOWN} file") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins raise errors of many types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{name}: damaged or truncated image: {reason}") from error


def save_png(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Write a picture as PNG, whole or not at all; equal pictures give equal files.

    Args:
        path: where; its directory must exist.
        image: uint8 array of shape (H, W, 3) or (H, W).

    Raises:
        BadInputError: when the array is no picture.
        MultiscError: when the file cannot be written.
    """
    write_atomically(path, png_bytes(image))


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """The PNG file of a picture, uint8 of shape (H, W, 3) or (H, W).

    Raises:
        BadInputError: when the array is no picture.
    """
    valid = image.dtype == np.uint8 and image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
    if not valid:
        raise BadInputError(f"not a picture: {image.dtype} array of shape {image.shape}, must be uint8 (H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def _read(path: str | os.PathLike[str], name: str) -> bytes:
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise BadInputError(f"{name}: is a directory, must be an image file")
        if not stat.S_ISREG(info.st_mode):  # a pipe or a device could block or never end
            raise BadInputError(f"{name}: not a regular file")
        if info.st_size > MAX_FILE_BYTES:
            raise BadInputError(f"{name}: {info.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are accepted")
        if info.st_size == 0:
            raise BadInputError(f"{name}: the file is empty")
        with open(path, "rb") as file:
            return file.read(info.st_size)
    except FileNotFoundError as error:
        raise BadInputError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInputError(f"{name}: cannot be read: {reason}") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise BadInputError(f"{name}: {width}x{height} pixels, must be at least {MIN_SIDE}x{MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise BadInputError(
            f"{name}: {width}x{height} = {width * height:,} pixels, at most {MAX_PIXELS:,} are accepted"
        )


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise BadInputError(f"{name}: floating-point samples have no defined range, must be 8 or 16 bits per sample")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow also holds in its 32-bit mode
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise BadInputError(f"{name}: samples exceed 16 bits, must be 8 or 16 bits per sample")
        grey = ((samples * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        page.alpha_composite(layer)
        image = page
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read: the picture itself is sound."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # hostile metadata fails in as many ways as there are parsers
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (Exif 2.3, tag 0x0112)."""
    if orientation >= 5:  # 5 to 8 are stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
