"""Sample clock offset: resampling at a slowly drifting fraction of a sample."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.channel.impairment import EMPTY, Impairment, Samples, as_samples, in_range

MAX_PPM = 1000.0
_TAPS = 48
_PHASES = 512


def fractional_kernel(fraction: NDArray[np.floating], taps: int, attenuation_db: float) -> NDArray[np.float64]:
    """Return Kaiser-windowed sinc interpolators.

    With 48 taps and 80 dB they are flat to 0.44 of the sample rate, with 32 taps and 60 dB likewise.

    Args:
        fraction: delays in samples, any shape; in [0, 1).
        taps: even length.
        attenuation_db: of the window's side lobes.

    Returns:
        float64 of shape (*fraction.shape, taps): the response to sample 0 at the places -taps/2 + 1 ... taps/2.
    """
    beta = 0.1102 * (attenuation_db - 8.7)
    place = np.arange(taps) - (taps // 2 - 1) - np.asarray(fraction, np.float64)[..., None]
    window = np.i0(beta * np.sqrt(np.clip(1.0 - (2.0 * place / taps) ** 2, 0.0, None))) / np.i0(beta)
    kernel = np.sinc(place) * window
    return kernel / kernel.sum(axis=-1, keepdims=True)


@cache
def _bank() -> NDArray[np.float32]:
    """Interpolators at fractions 0, 1/P ... 1, float32 of shape (P + 1, taps), in the order of input samples."""
    fractions = np.arange(_PHASES + 1) / _PHASES
    # The value at the fraction f behind sample 0 weighs sample m with sinc(m - f), as a delay by f weighs place m.
    return fractional_kernel(fractions, _TAPS, 80.0).astype(np.float32)


class ClockOffset(Impairment):
    """A receiver whose sample clock is off from the transmitter's.

    Output sample n is the input at n / (1 + ppm 1e-6): a fast receiver takes more samples, and a tone appears at a
    lower frequency. The first output sample is the first input sample.

    Args:
        ppm: receiver clock over transmitter clock, parts per million, -1000 to 1000.

    Raises:
        BadInputError: for an offset outside its range.
    """

    def __init__(self, ppm: float) -> None:
        in_range("clock offset", ppm, -MAX_PPM, MAX_PPM, "ppm")
        self._excess = 1.0 / (1.0 + ppm * 1e-6) - 1.0
        self._line = np.zeros(_TAPS // 2 - 1, np.complex64)
        self._first = -(_TAPS // 2 - 1)  # place in the stream of the first sample in the line
        self._produced = 0

    def process(self, samples: Samples) -> Samples:
        """Return the output samples that the input allows, half an interpolator behind; more or fewer than came."""
        self._line = np.concatenate([self._line, as_samples(samples)])
        end = self._first + self._line.size - _TAPS // 2  # last place that can be read
        count = self._count_before(end)
        out = np.empty(count, np.complex64)
        if count:
            _interpolate(self._line, self._first, self._produced, self._excess, _bank(), out)
            self._produced += count
            keep = self._place(self._produced) - (_TAPS // 2 - 1) - self._first
            if keep > 0:
                self._line = self._line[keep:].copy()
                self._first += keep
        return out

    def finish(self) -> Samples:
        """Return the output samples up to the place of the last input sample."""
        if self._first + self._line.size <= 0:  # nothing ever came
            return EMPTY
        return self.process(np.zeros(_TAPS // 2, np.complex64))

    def _place(self, n: int) -> int:
        return n + int(np.floor(n * self._excess))

    def _count_before(self, end: int) -> int:
        """Return how many more output samples have their place before ``end``."""
        count = max(0, int(end / (1.0 + self._excess)) + 2 - self._produced)
        while count > 0 and self._place(self._produced + count - 1) >= end:
            count -= 1
        return count


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _interpolate(line, first, start, excess, bank, out):  # type: ignore[no-untyped-def]
    phases = bank.shape[0] - 1
    taps = bank.shape[1]
    parts = line.view(np.float32)
    kernel = np.empty(taps, np.float32)
    for i in range(out.size):
        n = start + i
        drift = n * excess
        whole = np.floor(drift)
        place = (drift - whole) * phases
        p = int(place)
        between = np.float32(place - p)
        at = n + int(whole) - (taps // 2 - 1) - first
        for t in range(taps):
            kernel[t] = bank[p, t] + between * (bank[p + 1, t] - bank[p, t])
        real = np.float32(0.0)
        imaginary = np.float32(0.0)
        for t in range(taps):
            real += kernel[t] * parts[2 * (at + t)]
            imaginary += kernel[t] * parts[2 * (at + t) + 1]
        out[i] = complex(real, imaginary)
