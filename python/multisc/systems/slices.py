"""How the slice of the subject travels: by deep JSCC, as quantised pixels (the paper), or as a BPG file.

Each codec fills the channel uses it is given as well as it can, so that they can be compared at an equal number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from multisc.codecs import bpg, pixels
from multisc.codecs.bpg.sandbox import decoder_process
from multisc.codecs.quantise import MAX_BITS, Quantiser
from multisc.errors import BadInputError
from multisc.phy.transport import channel_uses
from multisc.streams import ReceivedStream, Stream
from multisc.systems.mcs import payload_bits

if TYPE_CHECKING:
    from multisc.models.jscc import Jscc
    from multisc.models.slice_denoiser import SliceDenoiser

STREAM = "slice"
MIN_SIDE, MAX_SIDE = 8, 1024  # of the longer side of a slice, in pixels
JSCC_STRIDE = 16  # below which deep JSCC takes no side
USUAL_SIDE = 64  # of a slice of quantised pixels that no budget limits
_SHRINK = 0.8  # from one size that is tried to the next
_JSCC_RATIOS = (Fraction(1, 6), Fraction(1, 12), Fraction(1, 24))
CODED_ERROR = 0.04  # of full scale, of a slice that arrived whole: what its quantiser or BPG cost
UNKNOWN_ERROR = 0.15  # of one that did not, or whose pixels are estimated each by itself
_JSCC_PSNR_DB = ((-10.0, -5.0, 0.0, 5.0, 10.0, 15.0), (18.0, 20.3, 23.3, 25.5, 27.0, 27.8))  # at ratio 1/24
_WORST_QP = 38  # beyond it a smaller picture at a lower QP looks better


@dataclass(frozen=True)
class CodedSlice:
    """A slice, ready to be sent.

    Args:
        stream: its stream.
        piece: the slice before its coding, uint8 of shape (h, w, 3).
    """

    stream: Stream
    piece: NDArray[np.uint8]


@dataclass(frozen=True)
class ReceivedSlice:
    """A slice as it came out of its codec.

    Args:
        piece: uint8 of shape (h, w, 3).
        error: expected root mean square of its error, of full scale; 0 to 1.
    """

    piece: NDArray[np.uint8]
    error: float


class SliceCodec(Protocol):
    """A way to send the slice."""

    def encode(self, image: NDArray[np.uint8], box: pixels.Box, side: int, uses: int) -> CodedSlice:
        """Cut the box out of the picture, at most ``side`` pixels long, and code it.

        Args:
            image: uint8 of shape (H, W, 3).
            box: x, y, width, height in the picture.
            side: limit of the longer side of the slice.
            uses: channel uses that there are.

        Raises:
            BadInputError: when there are too few channel uses for any slice.
        """

    def decode(self, received: ReceivedStream, size: tuple[int, int]) -> ReceivedSlice | None:
        """Return the slice, of ``size`` = (width, height); None when what arrived holds no picture."""


@dataclass(frozen=True)
class PixelSlices:
    """Quantised pixels; the surer a bit, the more it counts, and none is fatal.

    Args:
        bits: per colour sample, 1 to 8.
        modulation, code: of the stream.
        denoiser: estimates an uncoded slice from its soft bits and from what photographs are like; None for the mean
            of each pixel by itself.
    """

    bits: int
    modulation: str
    code: str
    denoiser: SliceDenoiser | None = None

    def encode(self, image: NDArray[np.uint8], box: pixels.Box, side: int, uses: int) -> CodedSlice:
        """See ``SliceCodec.encode``."""
        piece = _largest(image, box, side, uses, lambda piece: channel_uses(self.stream(piece)))
        return CodedSlice(self.stream(piece), piece)

    def stream(self, piece: NDArray[np.uint8]) -> Stream:
        """The stream of a slice, uint8 (h, w, 3)."""
        return Stream(STREAM, pixels.to_coefficients(piece), self.modulation, self.code, Quantiser(self.bits, 1.0))

    def decode(self, received: ReceivedStream, size: tuple[int, int]) -> ReceivedSlice | None:
        """See ``SliceCodec.decode``."""
        width, height = size
        bits, spare = divmod(received.llrs.size, width * height * 3)  # the sender's, which need not be ours
        if self.denoiser and received.crc_ok is None and not spare and 1 <= bits <= MAX_BITS:
            return ReceivedSlice(*self.denoiser.restore(received.llrs, bits, size))
        error = CODED_ERROR if received.crc_ok else UNKNOWN_ERROR
        return ReceivedSlice(pixels.from_coefficients(received.data, size), error)


class BpgSlices:
    """A BPG file in LDPC code blocks; all or nothing. Starts the process that decodes, which takes a moment.

    Args:
        modulation, code: of the stream.
    """

    def __init__(self, modulation: str, code: str) -> None:
        self._modulation, self._code = modulation, code
        decoder_process.start()

    def encode(self, image: NDArray[np.uint8], box: pixels.Box, side: int, uses: int) -> CodedSlice:
        """See ``SliceCodec.encode``; the largest slice whose QP is not too coarse, or the smallest one."""
        if self._code == "none":  # one wrong bit spoils a BPG file
            raise BadInputError("option slice_code: a slice as BPG needs a code, such as nr:1/2")
        budget = payload_bits(self._code, self._modulation, uses) // 8
        longest = min(side, max(box[2:]))
        while True:
            piece = pixels.crop(image, box, longest)
            smaller = int(longest * _SHRINK)
            try:
                found = bpg.encode_to_size(piece, budget)
            except BadInputError as error:
                if smaller < MIN_SIDE:
                    raise _too_few(uses) from error
            else:
                if found.qp <= _WORST_QP or smaller < MIN_SIDE:
                    bits = np.unpackbits(np.frombuffer(found.data, np.uint8))
                    return CodedSlice(Stream(STREAM, bits, self._modulation, self._code), piece)
            longest = smaller

    def decode(self, received: ReceivedStream, size: tuple[int, int]) -> ReceivedSlice | None:
        """See ``SliceCodec.decode``."""
        if received.crc_ok is False:
            return None
        try:
            piece = bpg.decode(np.packbits(received.data).tobytes()).rgb
        except BadInputError:
            return None
        return ReceivedSlice(piece, CODED_ERROR) if piece.shape[1::-1] == size else None


@dataclass(frozen=True)
class JsccSlices:
    """Deep JSCC over an analog stream; gets worse as the channel does.

    Args:
        jscc: the network.
        expected_db: Es/N0 per channel use that the transmitter expects, in whole dB.
    """

    jscc: Jscc
    expected_db: int

    def encode(self, image: NDArray[np.uint8], box: pixels.Box, side: int, uses: int) -> CodedSlice:
        """See ``SliceCodec.encode``; at the highest ratio that leaves the slice its size, or else smaller."""
        whole = pixels.crop(image, box, side)
        ratio = next((r for r in _JSCC_RATIOS if self._uses(whole, r) <= uses), _JSCC_RATIOS[-1])
        piece = _largest(image, box, side, uses, lambda piece: self._uses(piece, ratio))
        return CodedSlice(Stream(STREAM, self.jscc.encode(piece, ratio, self.expected_db), "analog"), piece)

    def decode(self, received: ReceivedStream, size: tuple[int, int]) -> ReceivedSlice | None:
        """See ``SliceCodec.decode``; the number of features tells the ratio."""
        for ratio in _JSCC_RATIOS:
            if min(size) >= JSCC_STRIDE and self.jscc.features(size, ratio) == received.data.size:
                piece = self.jscc.decode(received.data, size, ratio, received.snr_db, self.expected_db)
                return ReceivedSlice(piece, _jscc_error(ratio, received.snr_db))
        return None

    def _uses(self, piece: NDArray[np.uint8], ratio: Fraction) -> int:
        height, width = piece.shape[:2]
        if min(height, width) < JSCC_STRIDE:
            raise BadInputError(
                f"a slice of {width}x{height} pixels for deep JSCC: must be at least {JSCC_STRIDE}x{JSCC_STRIDE}; "
                "more channel uses or another slice_codec help"
            )
        return -(-self.jscc.features((width, height), ratio) // 2)


def _jscc_error(ratio: Fraction, snr_db: float) -> float:
    """Root mean square error of a slice by deep JSCC, of full scale, as docs/figures/slices.py measures it."""
    if not np.isfinite(snr_db):
        return UNKNOWN_ERROR
    psnr_db = float(np.interp(snr_db, *_JSCC_PSNR_DB)) + 2.0 * float(np.log2(float(ratio * 24)))
    return float(min(1.0, 10.0 ** (-psnr_db / 20.0)))


def _largest(
    image: NDArray[np.uint8], box: pixels.Box, side: int, uses: int, needs: Callable[[NDArray[np.uint8]], int]
) -> NDArray[np.uint8]:
    """The slice with the longest side that needs no more channel uses than there are."""

    def attempt(longest: int) -> NDArray[np.uint8] | None:
        piece = pixels.crop(image, box, longest)
        return piece if needs(piece) <= uses else None

    low, high = MIN_SIDE, min(side, max(box[2:]))
    best = attempt(high)
    if best is not None:
        return best
    while low < high:  # high does not fit
        middle = (low + high) // 2
        piece = attempt(middle)
        if piece is None:
            high = middle
        else:
            best, low = piece, middle + 1
    if best is None:
        raise _too_few(uses)
    return best


def _too_few(uses: int) -> BadInputError:
    return BadInputError(f"{uses} channel uses are left for the slice, too few for any")
