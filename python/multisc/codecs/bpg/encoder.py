"""BPG encoding: colour, HEVC, container; and the search for the largest quality that fits a size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.bpg import colour
from multisc.codecs.bpg.bits import nal_type, split_nals
from multisc.codecs.bpg.container import BpgFile, Header, PixelFormat, write
from multisc.codecs.bpg.ffmpeg import encode_intra
from multisc.codecs.bpg.hevc import PPS, SPS, VPS, CodingParameters
from multisc.errors import BadInputError

Chroma = Literal["420", "444"]
FORMATS: dict[str, PixelFormat] = {"420": PixelFormat.YUV420, "444": PixelFormat.YUV444}
MAX_QP = 51
_QP_PER_E_FOLD = 7.55  # QP steps that divide the size by e, near a photograph's usual rates
_TRUST_MODEL = 4  # encodes after which the search halves the interval instead
# First guess of the QP for a rate in bits per pixel and the mean luma gradient; least squares over 36 photographs
# (COCO, BSDS) at five QPs each, standard error 1.7.
_GUESS_OFFSET, _GUESS_PER_GRADIENT = 2.4, 8.53


@dataclass(frozen=True)
class SizeSearch:
    """The result of ``encode_to_size``.

    Args:
        data: the BPG file.
        qp: quantisation parameter it was encoded with.
        encodes: how many pictures were encoded to find it.
    """

    data: bytes
    qp: int
    encodes: int


def encode(rgb: NDArray[np.uint8], qp: int, chroma: Chroma = "420") -> bytes:
    """Encode a picture as a BPG file of 8 bits, BT.601, full range.

    Args:
        rgb: uint8 of shape (H, W, 3).
        qp: quantisation parameter, 0 (best) to 51.
        chroma: "420" or "444".

    Raises:
        BadInputError: for a qp, a chroma format or an array that is not one of these, or too many pixels.
    """
    if not 0 <= qp <= MAX_QP:
        raise BadInputError(f"qp {qp}: must be 0 to {MAX_QP}")
    return _Source(rgb, chroma).encode(qp)


def encode_to_size(rgb: NDArray[np.uint8], max_bytes: int, chroma: Chroma = "420") -> SizeSearch:
    """Encode a picture at the largest quality whose file has at most ``max_bytes`` bytes.

    The result fits and the next smaller QP does not, as both were encoded. Two encoders run at a time.

    Args:
        rgb: uint8 of shape (H, W, 3).
        max_bytes: largest size of the whole file.
        chroma: "420" or "444".

    Raises:
        BadInputError: when not even QP 51 fits, and as ``encode``.
    """
    source = _Source(rgb, chroma)
    files: dict[int, bytes] = {}
    too_large, fitting = -1, MAX_QP + 1
    guess = source.guess_qp(max(max_bytes, 1))
    with ThreadPoolExecutor(2) as pool:
        while fitting - too_large > 1:
            qp = min(max(guess, too_large + 1), fitting - 1)
            pair = [q for q in (qp, qp - 1) if q > too_large]
            files.update(zip(pair, pool.map(source.encode, pair), strict=True))
            too_large = max([too_large, *(q for q in pair if len(files[q]) > max_bytes)])
            fitting = min([fitting, *(q for q in pair if len(files[q]) <= max_bytes and q > too_large)])
            nearest = fitting if fitting in pair else too_large
            excess = np.log(len(files[nearest]) / max(max_bytes, 1))
            guess = int(np.ceil(nearest + _QP_PER_E_FOLD * excess))
            if len(files) > _TRUST_MODEL:
                guess = (too_large + fitting + 1) // 2
    if fitting > MAX_QP:
        smallest = min(map(len, files.values()))
        raise BadInputError(
            f"a budget of {max_bytes} bytes is too small for any BPG of this {rgb.shape[1]}x{rgb.shape[0]} picture: "
            f"the smallest has {smallest} bytes"
        )
    return SizeSearch(files[fitting], fitting, len(files))


class _Source:
    """A picture ready to be encoded at any QP."""

    def __init__(self, rgb: NDArray[np.uint8], chroma: str) -> None:
        if chroma not in FORMATS:
            raise BadInputError(f"chroma {chroma!r}: must be one of {', '.join(FORMATS)}")
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise BadInputError(f"a picture of shape {rgb.shape}, {rgb.dtype}: must be uint8 of shape (H, W, 3)")
        self.header = Header(rgb.shape[1], rgb.shape[0], FORMATS[chroma])
        self.min_cb = 8 if min(rgb.shape[:2]) > 8 else 16  # x265 takes no side of 8 samples
        self.planes = colour.from_rgb(rgb, self.header, self.min_cb)

    def encode(self, qp: int) -> bytes:
        """The BPG file at ``qp``."""
        stream = encode_intra(self.planes, self.header.pixel_format.chroma_format, qp, self.min_cb)
        nals = split_nals(stream)
        parameters = next(CodingParameters.from_sps(nal) for nal in nals if nal_type(nal) == SPS)
        return write(
            BpgFile(self.header, parameters, [nal for nal in nals if nal_type(nal) < VPS or nal_type(nal) == PPS])
        )

    def guess_qp(self, size: int) -> int:
        """About the QP at which the file has ``size`` bytes."""
        luma = self.planes[0].astype(np.float32)
        gradient = sum(float(np.abs(np.diff(luma, axis=axis)).mean()) for axis in (0, 1) if luma.shape[axis] > 1)
        rate = np.log(8 * size / luma.size)
        return round(_GUESS_OFFSET - _QP_PER_E_FOLD * rate + _GUESS_PER_GRADIENT * np.log(max(gradient, 0.1)))
