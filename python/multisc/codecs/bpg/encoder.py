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
_TRUST_MODEL = 3  # rounds after which the search halves the interval instead
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


class PictureEncoder:
    """A picture that is encoded at one QP after another; each is encoded once and kept.

    Args:
        rgb: uint8 of shape (H, W, 3).
        chroma: "420" or "444".

    Raises:
        BadInputError: for another chroma format, an array that is no picture, or too many pixels.
    """

    def __init__(self, rgb: NDArray[np.uint8], chroma: str = "420") -> None:
        if chroma not in FORMATS:
            raise BadInputError(f"chroma {chroma!r}: must be one of {', '.join(FORMATS)}")
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise BadInputError(f"a picture of shape {rgb.shape}, {rgb.dtype}: must be uint8 of shape (H, W, 3)")
        self._header = Header(rgb.shape[1], rgb.shape[0], FORMATS[chroma])
        self._min_cb = 8 if min(rgb.shape[:2]) > 8 else 16  # x265 takes no side of 8 samples
        self._planes = colour.from_rgb(rgb, self._header, self._min_cb)
        self._files: dict[int, bytes] = {}

    def encode(self, qp: int) -> bytes:
        """The BPG file at a QP.

        Raises:
            BadInputError: for a QP that is not 0 to 51.
        """
        if not 0 <= qp <= MAX_QP:
            raise BadInputError(f"qp {qp}: must be 0 to {MAX_QP}")
        if qp not in self._files:
            chroma_format = self._header.pixel_format.chroma_format
            nals = split_nals(encode_intra(self._planes, chroma_format, qp, self._min_cb))
            parameters = next(CodingParameters.from_sps(nal) for nal in nals if nal_type(nal) == SPS)
            kept = [nal for nal in nals if nal_type(nal) < VPS or nal_type(nal) == PPS]
            self._files[qp] = write(BpgFile(self._header, parameters, kept))
        return self._files[qp]

    def fit(self, max_bytes: int) -> SizeSearch:
        """Find the largest quality whose file has at most ``max_bytes`` bytes.

        The QP that is returned fits and the next smaller one does not. Two encoders run at a time.

        Raises:
            BadInputError: when not even QP 51 fits.
        """
        before = len(self._files)
        guess, tries = self._guess_qp(max_bytes), 0
        with ThreadPoolExecutor(2) as pool:
            while True:
                too_large = max((qp for qp, file in self._files.items() if len(file) > max_bytes), default=-1)
                fitting = min((qp for qp in self._files if qp > too_large), default=MAX_QP + 1)
                if fitting - too_large == 1:
                    break
                if tries:
                    guess = self._next_guess(too_large, fitting, max_bytes, tries)
                qp = min(max(guess, too_large + 1), fitting - 1)
                list(pool.map(self.encode, [q for q in (qp, qp - 1) if q > too_large]))
                tries += 1
        if fitting > MAX_QP:
            smallest = min(map(len, self._files.values()))
            raise BadInputError(
                f"a budget of {max_bytes} bytes is too small for any BPG of this {self._header.width}x"
                f"{self._header.height} picture: the smallest has {smallest} bytes"
            )
        return SizeSearch(self._files[fitting], fitting, len(self._files) - before)

    def _guess_qp(self, size: int) -> int:
        """About the QP at which the file has ``size`` bytes, from what the picture looks like."""
        luma = self._planes[0].astype(np.float32)
        gradient = sum(float(np.abs(np.diff(luma, axis=axis)).mean()) for axis in (0, 1) if luma.shape[axis] > 1)
        rate = np.log(8 * max(size, 1) / luma.size)
        return round(_GUESS_OFFSET - _QP_PER_E_FOLD * rate + _GUESS_PER_GRADIENT * np.log(max(gradient, 0.1)))

    def _next_guess(self, too_large: int, fitting: int, size: int, tries: int) -> int:
        """The same from the sizes known so far; when that did not find it soon, the middle of the interval."""
        if tries > _TRUST_MODEL and fitting <= MAX_QP and too_large >= 0:
            return (too_large + fitting + 1) // 2
        known = [qp for qp in (too_large, fitting) if qp in self._files]
        nearest = min(known, key=lambda qp: abs(np.log(len(self._files[qp]) / max(size, 1))))
        return int(np.ceil(nearest + _QP_PER_E_FOLD * np.log(len(self._files[nearest]) / max(size, 1))))


def encode(rgb: NDArray[np.uint8], qp: int, chroma: Chroma = "420") -> bytes:
    """Encode a picture as a BPG file of 8 bits, BT.601, full range.

    Args:
        rgb: uint8 of shape (H, W, 3).
        qp: quantisation parameter, 0 (best) to 51.
        chroma: "420" or "444".

    Raises:
        BadInputError: for a QP, a chroma format or an array that is not one of these, or too many pixels.
    """
    return PictureEncoder(rgb, chroma).encode(qp)


def encode_to_size(rgb: NDArray[np.uint8], max_bytes: int, chroma: Chroma = "420") -> SizeSearch:
    """Encode a picture at the largest quality whose file has at most ``max_bytes`` bytes; see ``PictureEncoder.fit``.

    Raises:
        BadInputError: when not even QP 51 fits, and as ``encode``.
    """
    return PictureEncoder(rgb, chroma).fit(max_bytes)
