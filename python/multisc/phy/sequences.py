"""Pseudo-random sequences of the waveform, all from the Gold sequence of TS 38.211 clause 5.2.1."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_WARM_UP = 1600  # N_C of the clause
_STEP = 28  # x(n+31) needs nothing later than x(n+3): 28 new values at once


def _register(state: int, taps: tuple[int, ...], length: int) -> NDArray[np.uint8]:
    """The first ``length`` outputs of a 31-stage register with x(n+31) = sum of x(n+tap) mod 2."""
    out = np.zeros(length + 31 + _STEP, np.uint8)
    out[:31] = (state >> np.arange(31)) & 1
    for start in range(0, length, _STEP):
        new = out[start + taps[0] : start + taps[0] + _STEP].copy()
        for tap in taps[1:]:
            new ^= out[start + tap : start + tap + _STEP]
        out[start + 31 : start + 31 + _STEP] = new
    return out[:length]


@lru_cache(maxsize=16)
def gold(c_init: int, length: int) -> NDArray[np.uint8]:
    """The Gold sequence c(n) of TS 38.211 clause 5.2.1.

    Args:
        c_init: initial state of the second register, 0 <= c_init < 2**31.
        length: number of bits.

    Returns:
        uint8 of 0 and 1, shape (length,); read-only, as it is cached.
    """
    total = length + _WARM_UP
    first = _register(1, (3, 0), total)
    second = _register(c_init, (3, 2, 1, 0), total)
    bits = (first ^ second)[_WARM_UP:]
    bits.flags.writeable = False
    return bits


def qpsk(c_init: int, length: int) -> NDArray[np.complex64]:
    """Unit-power QPSK values ((1-2c(2i)) + j(1-2c(2i+1)))/sqrt(2), complex64 of shape (length,)."""
    c = 1.0 - 2.0 * gold(c_init, 2 * length).astype(np.float32)
    return ((c[0::2] + 1j * c[1::2]) / np.sqrt(2.0)).astype(np.complex64)


def rotations(c_init: int, length: int) -> NDArray[np.complex64]:
    """Quarter turns j**(2c(2i)+c(2i+1)), complex64 of shape (length,): an exact, power-preserving scrambler."""
    c = gold(c_init, 2 * length)
    turns = np.array([1, 1j, -1, -1j], np.complex64)
    return turns[2 * c[0::2] + c[1::2]]
