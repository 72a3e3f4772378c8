"""A window over an endless stream of samples."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LEAST = 1 << 16  # samples there is always memory for
LARGEST = 1e12  # a larger sample is taken for damage: its square would leave single precision's safe range


@njit(cache=True, nogil=True, error_model="numpy")
def _copy_clean(source, target, largest):  # type: ignore[no-untyped-def]
    """Copy, with zero in place of samples that are no finite number or too large; return how many these were.

    Samples come as real and imaginary parts in turn, for loops that become SIMD.
    """
    bad = 0
    for i in range(source.size // 2):
        good = abs(source[2 * i]) <= largest and abs(source[2 * i + 1]) <= largest
        target[2 * i] = source[2 * i] if good else np.float32(0.0)
        target[2 * i + 1] = source[2 * i + 1] if good else np.float32(0.0)
        bad += not good
    return bad


class _Window(NamedTuple):
    data: NDArray[np.complex64]
    base: int  # stream index of data[0]
    used: int


class SampleBuffer:
    """Samples addressed by their index in the stream; old ones are released, those never received read as zero.

    One thread may append and others read: samples never move, so that a view stays as it is. When an array is full,
    what is not released yet is copied to another one; arrays are used again when no view of them is left.
    """

    def __init__(self) -> None:
        self._window = _Window(np.empty(_LEAST, np.complex64), 0, 0)
        self._kept = 0  # samples below this index are released
        self._spare = np.empty(0, np.complex64)  # the array before

    @property
    def end(self) -> int:
        """Index behind the last sample."""
        return self._window.base + self._window.used

    @property
    def capacity(self) -> int:
        """Samples there is memory for."""
        return self._window.data.size + self._spare.size

    def append(self, samples: NDArray[np.complex64]) -> int:
        """Add samples.

        Args:
            samples: complex64 (n,).

        Returns:
            How many of them were bad and became zero.
        """
        samples = np.ascontiguousarray(samples, np.complex64)
        data, base, used = self._window
        before = data
        if used + samples.size > data.size:
            drop = min(self._kept - base, used)
            base, used = base + drop, used - drop
            least = max(_LEAST, 2 * (used + samples.size))
            # Two references: that of this object and that of the call itself.
            free = self._spare.size if sys.getrefcount(self._spare) <= 2 else 0
            data = self._spare if free >= least else np.empty(2 * least, np.complex64)
            data[:used] = before[drop : drop + used]
            self._spare = before
        target = data[used : used + samples.size]
        bad = _copy_clean(samples.view(np.float32), target.view(np.float32), np.float32(LARGEST))
        self._window = _Window(data, base, used + samples.size)
        return int(bad)

    def view(self, start: int, count: int) -> NDArray[np.complex64]:
        """The samples start to start + count - 1; zeros where none were received or they are released."""
        data, base, used = self._window
        first = max(self._kept - base, 0)
        low, high = start - base, start - base + count
        if low >= first and high <= used:
            return data[low:high]
        out = np.zeros(count, np.complex64)
        begin, end = max(low, first), min(high, used)
        if begin < end:
            out[begin - low : end - low] = data[begin:end]
        return out

    def release(self, index: int) -> None:
        """Forget the samples below an index; views of them stay as they are."""
        self._kept = max(self._kept, index)
