"""Phasors exp(-j phase) in bulk, as one SIMD loop: the C library's sine and cosine take ten times as long.

The phase is reduced to +-pi/4 by subtracting multiples of pi/2 in three parts, then the Taylor series of both
functions are added up in double precision, to about one unit in its last place. Rounded to single precision that is
what the C library gives, but for one value in about 1e8.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

# pi/2 in three parts; products of the first two with a multiple below 2**19 are exact.
_HIGH = float.fromhex("0x1.921fb54400000p+0")
_MIDDLE = float.fromhex("0x1.0b4611a600000p-34")
_LOW = float.fromhex("0x1.3198a2e037073p-69")
LARGEST_PHASE = 2.0**18  # radians; far beyond it the reduction loses digits
_SIN = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(1, 8))
_COS = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(1, 9))


@njit(inline="always", error_model="numpy")
def _phasor(phase):  # type: ignore[no-untyped-def]
    """Real and imaginary part of exp(-j phase)."""
    turns = np.floor(phase * (2.0 / np.pi) + 0.5)
    r = ((phase - turns * _HIGH) - turns * _MIDDLE) - turns * _LOW
    z = r * r
    sine = _SIN[6]
    cosine = _COS[7] * z + _COS[6]
    sine = sine * z + _SIN[5]
    cosine = cosine * z + _COS[5]
    sine = sine * z + _SIN[4]
    cosine = cosine * z + _COS[4]
    sine = sine * z + _SIN[3]
    cosine = cosine * z + _COS[3]
    sine = sine * z + _SIN[2]
    cosine = cosine * z + _COS[2]
    sine = sine * z + _SIN[1]
    cosine = cosine * z + _COS[1]
    sine = (sine * z + _SIN[0]) * z * r + r
    cosine = (cosine * z + _COS[0]) * z + 1.0
    quadrant = np.int32(turns)
    real = sine if quadrant & 1 else cosine
    imaginary = cosine if quadrant & 1 else sine
    real = -real if (quadrant + 1) & 2 else real
    imaginary = imaginary if quadrant & 2 else -imaginary
    return real, imaginary


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(base, slope, carriers, out):  # type: ignore[no-untyped-def]
    """Rows of exp(-j (base + carrier * slope)), real and imaginary parts in turn."""
    for s in range(base.size):
        row, parts = carriers[s if len(carriers) > 1 else 0], out[s]
        first, step = base[s], slope[s]
        for c in range(row.size):
            real, imaginary = _phasor(first + row[c] * step)
            parts[2 * c] = np.float32(real)
            parts[2 * c + 1] = np.float32(imaginary)


def phasors(
    base: NDArray[np.float64], slope: NDArray[np.float64], carriers: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """Return exp(-j (base + slope * carrier)) for each row.

    Args:
        base: float64 (rows,), radians; all phases must stay below ``LARGEST_PHASE``.
        slope: float64 (rows,), radians per carrier.
        carriers: float64 (1, carriers), the same for all rows, or (rows, carriers).

    Returns:
        complex64 (rows, carriers).
    """
    out = np.empty((base.size, carriers.shape[1]), np.complex64)
    _fill(base, slope, carriers, out.view(np.float32))
    return out
