"""Forward error correction by name: what stands between the bits of a stream and its modulator.

A code is named by a specification: ``none``; ``nr:R``, the transport block chain of 5G NR at code rate R, one of
``RATES``; ``pyldpc:N:DV:DC``, a regular Gallager code of length N with DV ones per column and DC per row, constructed
by pyldpc, in blocks under one CRC-24A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.crc import CRC24A
from multisc.phy.ldpc.gallager import GallagerBlock, check_numbers
from multisc.phy.ldpc.transport import TransportBlock

RATES = {
    "1/5": 1 / 5,
    "1/3": 1 / 3,
    "2/5": 2 / 5,
    "1/2": 1 / 2,
    "3/5": 3 / 5,
    "2/3": 2 / 3,
    "3/4": 3 / 4,
    "5/6": 5 / 6,
    "8/9": 8 / 9,
}
MAX_PAYLOAD_BITS = 1 << 24
# The decoder of every stream; docs/reference/ldpc.md measures the others.
ALGORITHM, SCHEDULE, ITERATIONS = "normalised-minsum", "layered", 20
GALLAGER_ITERATIONS = 50  # sum-product, flooding, as pyldpc's users run it


@dataclass(frozen=True)
class Decoded:
    """Outcome of decoding a stream.

    Args:
        bits: decided payload bits, uint8 (A,), also when the CRC fails.
        crc_ok: verdict of the CRC over the payload; None when the code has none.
        blocks_ok: verdict per code block, bool (C,); None when the code has no blocks.
    """

    bits: NDArray[np.uint8]
    crc_ok: bool | None
    blocks_ok: NDArray[np.bool_] | None


class Code(Protocol):
    """A code for a payload of a given length. Objects are immutable and may be shared between threads."""

    @property
    def payload_bits(self) -> int:
        """A, bits before encoding."""

    @property
    def coded_bits(self) -> int:
        """G, bits after encoding; a multiple of the bits of a symbol."""

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode uint8 (A,) of 0 and 1 into uint8 (G,); BadInputError for another length."""

    def decode(self, llr: NDArray[np.float32], iterations: int = 0) -> Decoded:
        """Decode float32 (G,) ratios log(p(0)/p(1)), 0 where erased; BadInputError for another length.

        ``iterations`` is the most that are made; 0 means as many as suit the code.
        """


def make_code(spec: str, payload_bits: int, bits_per_symbol: int) -> Code:
    """Return the code of a specification.

    Args:
        spec: see the module's description.
        payload_bits: A, 1 to 2**24.
        bits_per_symbol: 1, 2, 4, 6 or 8.

    Raises:
        BadInputError: for an unknown specification or numbers out of range.
    """
    if not 1 <= payload_bits <= MAX_PAYLOAD_BITS:
        raise BadInputError(f"payload of {payload_bits} bits: must be 1 to {MAX_PAYLOAD_BITS}")
    if bits_per_symbol not in (1, 2, 4, 6, 8):
        raise BadInputError(f"{bits_per_symbol} bits per symbol: must be 1, 2, 4, 6 or 8")
    return _make_code(spec, int(payload_bits), int(bits_per_symbol))


def check_code(spec: str) -> None:
    """Raise BadInputError for a specification that names no code; none is made."""
    kind, _, rest = spec.partition(":")
    if kind not in _MAKERS:
        raise BadInputError(f"code {spec!r}: must be none, nr:R or pyldpc:N:DV:DC")
    if kind == "none" and rest:
        raise BadInputError(f"code {spec!r}: none takes no parameters")
    if kind == "nr" and rest not in RATES:
        raise BadInputError(f"code {spec!r}: the rate must be one of {', '.join(RATES)}")
    if kind == "pyldpc":
        check_numbers(*_gallager_numbers(rest))


@lru_cache(maxsize=64)
def _make_code(spec: str, payload_bits: int, bits_per_symbol: int) -> Code:
    check_code(spec)
    kind, _, rest = spec.partition(":")
    return _MAKERS[kind](rest, payload_bits, bits_per_symbol)


def _uncoded(rest: str, payload_bits: int, bits_per_symbol: int) -> Code:
    return UncodedBits(payload_bits, bits_per_symbol)


def _nr(rest: str, payload_bits: int, bits_per_symbol: int) -> Code:
    return NrCode(TransportBlock(payload_bits, RATES[rest], bits_per_symbol))


def _pyldpc(rest: str, payload_bits: int, bits_per_symbol: int) -> Code:
    return GallagerCode(GallagerBlock(*_gallager_numbers(rest)), payload_bits, bits_per_symbol)


def _gallager_numbers(rest: str) -> tuple[int, int, int]:
    parts = rest.split(":")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) <= 5 for p in parts):
        raise BadInputError(
            f"code 'pyldpc:{rest}': must be pyldpc:N:DV:DC with whole numbers, such as pyldpc:648:3:6"
        )
    n, dv, dc = map(int, parts)
    return n, dv, dc


_MAKERS: dict[str, Callable[[str, int, int], Code]] = {"none": _uncoded, "nr": _nr, "pyldpc": _pyldpc}


class UncodedBits:
    """No code: zeros fill the last symbol."""

    def __init__(self, payload_bits: int, bits_per_symbol: int) -> None:
        self.payload_bits = payload_bits
        self.coded_bits = -(-payload_bits // bits_per_symbol) * bits_per_symbol

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See :class:`Code`."""
        out = np.zeros(self.coded_bits, np.uint8)
        out[: self.payload_bits] = _exactly(bits, self.payload_bits, "bits")
        return out

    def decode(self, llr: NDArray[np.float32], iterations: int = 0) -> Decoded:
        """See :class:`Code`."""
        soft = _exactly(llr, self.coded_bits, "LLRs")
        return Decoded((soft[: self.payload_bits] < 0).astype(np.uint8), None, None)


class NrCode:
    """The transport block chain of 5G NR."""

    def __init__(self, transport: TransportBlock) -> None:
        self._transport = transport
        self.payload_bits, self.coded_bits = transport.payload_bits, transport.coded_bits

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See :class:`Code`."""
        return self._transport.encode(bits)

    def decode(self, llr: NDArray[np.float32], iterations: int = 0) -> Decoded:
        """See :class:`Code`."""
        result = self._transport.decode(llr, ALGORITHM, SCHEDULE, iterations or ITERATIONS)
        return Decoded(result.bits, result.crc_ok, result.blocks_ok)


class GallagerCode:
    """A payload and its CRC-24A, cut into code words of one Gallager code; zeros fill the last."""

    def __init__(self, block: GallagerBlock, payload_bits: int, bits_per_symbol: int) -> None:
        self._block = block
        self.payload_bits = payload_bits
        self._words = -(-(payload_bits + CRC24A.length) // block.k)
        self.coded_bits = -(-self._words * block.n // bits_per_symbol) * bits_per_symbol

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See :class:`Code`."""
        message = np.zeros(self._words * self._block.k, np.uint8)
        word = CRC24A.attach(_exactly(bits, self.payload_bits, "bits"))
        message[: word.size] = word
        out = np.zeros(self.coded_bits, np.uint8)
        out[: self._words * self._block.n] = self._block.encode(message.reshape(self._words, -1)).ravel()
        return out

    def decode(self, llr: NDArray[np.float32], iterations: int = 0) -> Decoded:
        """See :class:`Code`."""
        soft = _exactly(llr, self.coded_bits, "LLRs")
        received = soft[: self._words * self._block.n].reshape(self._words, -1)
        result = self._block.decode(received, iterations=iterations or GALLAGER_ITERATIONS)
        message = result.bits.ravel()[: self.payload_bits + CRC24A.length]
        crc_ok = bool(CRC24A.check(message)) and bool(soft.any())
        blocks_ok = result.parity_ok & received.any(axis=1)
        return Decoded(message[: self.payload_bits].copy(), crc_ok, blocks_ok)


def _exactly(values: NDArray, count: int, what: str) -> NDArray:
    values = np.asarray(values)
    if values.shape != (count,):
        raise BadInputError(f"{what} of shape {values.shape}: must be ({count},)")
    return values
