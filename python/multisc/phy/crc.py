"""Cyclic redundancy checks of TS 38.212 clause 5.1: remainder register starts at zero, most significant bit first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.errors import BadInputError


@dataclass(frozen=True)
class Crc:
    """One cyclic generator polynomial.

    Args:
        length: number of parity bits L, 1 to 32.
        polynomial: coefficients of D^(L-1) ... D^0 as an integer; D^L is implied.
    """

    length: int
    polynomial: int
    _table: NDArray[np.uint32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The register is kept left-aligned in 32 bits, so one kernel serves every length.
        register = np.arange(256, dtype=np.uint64) << np.uint64(24)
        aligned = np.uint64(self.polynomial << (32 - self.length))
        for _ in range(8):
            carry = (register >> np.uint64(31)) & np.uint64(1)
            register = ((register << np.uint64(1)) & np.uint64(0xFFFFFFFF)) ^ carry * aligned
        object.__setattr__(self, "_table", register.astype(np.uint32))

    def parity(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Compute the parity bits.

        Args:
            bits: uint8 array of 0 and 1, shape (..., n).

        Returns:
            uint8 array of 0 and 1, shape (..., length).
        """
        return self._unpack(self._remainder(bits))

    def attach(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Append the parity bits: uint8 of shape (..., n) to (..., n + length)."""
        bits = np.asarray(bits, np.uint8)
        return np.concatenate([bits, self.parity(bits)], axis=-1)

    def check(self, bits: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell whether words that end with their parity bits are intact.

        Args:
            bits: uint8 array of 0 and 1, shape (..., n) with n >= length.

        Returns:
            bool array of shape (...); zero-dimensional for a single word.

        Raises:
            BadInputError: when the words are shorter than the parity.
        """
        if bits.shape[-1] < self.length:
            raise BadInputError(f"a word of {bits.shape[-1]} bits cannot end with a CRC of {self.length} bits")
        return self._remainder(bits) == 0

    def parity_of_bytes(self, data: bytes) -> int:
        """Return the remainder of whole bytes as an integer, most significant bit first."""
        packed = np.frombuffer(data, np.uint8).reshape(1, -1)
        return int(_remainders(packed, self._table)[0] >> np.uint32(32 - self.length))

    def _remainder(self, bits: NDArray[np.uint8]) -> NDArray[np.uint32]:
        bits = np.asarray(bits, np.uint8)
        # Leading zeros leave a register that starts at zero unchanged: fill the first byte with them.
        missing = -bits.shape[-1] % 8
        if missing:
            bits = np.concatenate([np.zeros((*bits.shape[:-1], missing), np.uint8), bits], axis=-1)
        packed = np.packbits(bits, axis=-1)
        rows = math.prod(packed.shape[:-1])
        words = _remainders(packed.reshape(rows, packed.shape[-1]), self._table)
        return (words >> np.uint32(32 - self.length)).reshape(bits.shape[:-1])

    def _unpack(self, words: NDArray[np.uint32]) -> NDArray[np.uint8]:
        shifts = np.arange(self.length - 1, -1, -1, dtype=np.uint32)
        return ((words[..., None] >> shifts) & np.uint32(1)).astype(np.uint8)


@njit(cache=True, nogil=True)
def _remainders(packed: NDArray[np.uint8], table: NDArray[np.uint32]) -> NDArray[np.uint32]:
    rows, length = packed.shape
    out = np.empty(rows, np.uint32)
    for row in range(rows):
        register = np.uint32(0)
        for i in range(length):
            top = (register >> np.uint32(24)) ^ packed[row, i]
            register = np.uint32(register << np.uint32(8)) ^ table[top]
        out[row] = register
    return out


CRC24A = Crc(24, 0x864CFB)
CRC24B = Crc(24, 0x800063)
CRC24C = Crc(24, 0xB2B117)
CRC16 = Crc(16, 0x1021)
CRC11 = Crc(11, 0x621)
