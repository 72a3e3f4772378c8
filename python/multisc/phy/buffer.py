"""A window over an endless stream of samples."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

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


class SampleBuffer:
    """Samples addressed by their index in the stream; old ones are released, those never received read as zero."""

    def __init__(self) -> None:
        self._data = np.zeros(1 << 16, np.complex64)
        self._base = 0  # stream index of _data[0]
        self._used = 0

    @property
    def end(self) -> int:
        """Index behind the last sample."""
        return self._base + self._used

    def append(self, samples: NDArray[np.complex64]) -> int:
        """Add samples.

        Args:
            samples: complex64 (n,).

        Returns:
            How many of them were bad and became zero.
        """
        samples = np.ascontiguousarray(samples, np.complex64)
        if self._used + samples.size > self._data.size:
            grown = np.zeros(max(2 * self._data.size, 2 * (self._used + samples.size)), np.complex64)
            grown[: self._used] = self._data[: self._used]
            self._data = grown
        target = self._data[self._used : self._used + samples.size]
        bad = _copy_clean(samples.view(np.float32), target.view(np.float32), np.float32(LARGEST))
        self._used += samples.size
        return int(bad)

    def view(self, start: int, count: int) -> NDArray[np.complex64]:
        """The samples start to start + count - 1; zeros where none were received or they are released.

        The result is valid until the next call of ``append`` or ``release``.
        """
        low, high = start - self._base, start - self._base + count
        if low >= 0 and high <= self._used:
            return self._data[low:high]
        out = np.zeros(count, np.complex64)
        inside = self._data[max(low, 0) : max(min(high, self._used), 0)]
        if inside.size:
            out[max(-low, 0) : max(-low, 0) + inside.size] = inside
        return out

    def release(self, index: int) -> None:
        """Forget the samples below an index, when enough have gathered to make moving the rest worth while."""
        drop = min(index - self._base, self._used)
        if drop > max(self._used - drop, 1 << 15):
            self._data[: self._used - drop] = self._data[drop : self._used]
            self._used -= drop
            self._base += drop
