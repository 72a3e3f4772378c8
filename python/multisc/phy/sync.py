"""Finding bursts: a detector over the stream, and the fine timing of what it finds.

The detector's metric is |P| / E over the length of the short training, where P adds up the products of neighbouring
blocks with the preamble's signs and E is the energy. The mean of the stretch of samples worked on is taken out first,
so that a constant added to the signal changes nothing; a tone cancels in P. The metric lies between 0 and about 1,
whatever the level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from multisc.phy.config import PhyConfig
from multisc.phy.ofdm import grid_of
from multisc.phy.preamble import SHORT_SIGNS, SHORT_SPACING, preamble_of

DETECTION_BLOCK = 8192  # samples the detector works on at once; a constant, so that results do not depend on pushes
# In noise alone, |P|/E exceeds the threshold with probability exp(-512 * 0.2**2) = 1e-9 per independent window, which
# the header's CRCs sort out; at 0 dB it averages 0.67 with a deviation of 0.04, at -6 dB 0.27.
THRESHOLD = 0.2
_ENERGY_FLOOR = 1e-9  # of the strongest energy nearby: less is rounding
_SEARCH = 96  # samples to either side of a detection in which the first path is looked for
_PATH_THRESHOLD = 0.1  # a first guess: the first path is at most 10 dB below the strongest
_TAP_THRESHOLD = 5e-3  # paths 23 dB below the strongest count for the timing...
_TAP_OVER_NOISE = 12.0  # ...when they stand out of the noise, which reaches this in 1 of 1e5 delays
_TAP_WIDTH = 2  # samples by which the taper widens a path to either side
_DC_SIGNIFICANCE = 20.0  # power of a constant over the variance of its estimate
BACKOFF = 3  # samples by which windows begin before the first path, against timing errors and clock drift


@dataclass(frozen=True)
class Detection:
    """A place where a burst may begin.

    Args:
        start: sample index of the metric's peak, about the first sample of the preamble.
        cfo: carrier offset in subcarriers, -2 to 2, from the short training.
        metric: value of the peak.
    """

    start: int
    cfo: float
    metric: float


@njit(cache=True, nogil=True)
def _metric(x, count, lag, signs, metric, real, imaginary):  # type: ignore[no-untyped-def]
    """Metric and correlation at offsets 0..count-1 of x, which holds count + (len(signs)+1)*lag samples.

    Sums slide in double precision and are stored in single, so that the loops over offsets become SIMD.
    """
    blocks = signs.size
    size = x.size
    mean_real = 0.0
    mean_imaginary = 0.0
    for m in range(size):
        mean_real += x[m].real
        mean_imaginary += x[m].imag
    mean_real /= size
    mean_imaginary /= size
    # All is brought to about unit power first: the fourth powers below would leave single precision's range.
    offset_real = np.float32(mean_real)
    offset_imaginary = np.float32(mean_imaginary)
    a = np.empty(size, np.float32)
    b = np.empty(size, np.float32)
    total = 0.0
    for m in range(size):
        a[m] = x[m].real - offset_real
        b[m] = x[m].imag - offset_imaginary
        total += float(a[m]) * float(a[m]) + float(b[m]) * float(b[m])
    if total == 0.0:
        metric[:] = np.float32(0.0)
        return
    unit = np.sqrt(size / total)
    for m in range(size):
        a[m] *= np.float32(unit)
        b[m] *= np.float32(unit)

    # Sums over one block of the products with the block that follows.
    sums = size - 2 * lag
    product_real = np.empty(size - lag, np.float32)
    product_imaginary = np.empty(size - lag, np.float32)
    for m in range(size - lag):
        product_real[m] = a[m] * a[m + lag] + b[m] * b[m + lag]
        product_imaginary[m] = a[m] * b[m + lag] - b[m] * a[m + lag]
    block_real = np.empty(sums, np.float32)
    block_imaginary = np.empty(sums, np.float32)
    p = 0.0
    q = 0.0
    for m in range(lag):
        p += product_real[m]
        q += product_imaginary[m]
    for m in range(sums):
        block_real[m] = p
        block_imaginary[m] = q
        p += float(product_real[m + lag]) - float(product_real[m])
        q += float(product_imaginary[m + lag]) - float(product_imaginary[m])
    real[:] = np.float32(0.0)
    imaginary[:] = np.float32(0.0)
    for i in range(blocks):
        if signs[i] > 0:
            for n in range(count):
                real[n] += block_real[n + i * lag]
                imaginary[n] += block_imaginary[n + i * lag]
        else:
            for n in range(count):
                real[n] -= block_real[n + i * lag]
                imaginary[n] -= block_imaginary[n + i * lag]

    short = (blocks + 1) * lag
    power = np.empty(size, np.float32)
    for m in range(size):
        power[m] = a[m] * a[m] + b[m] * b[m]
    energy = 0.0
    for m in range(short):
        energy += power[m]
    largest = 0.0
    for n in range(count):
        metric[n] = energy
        largest = max(largest, energy)
        energy += float(power[n + short]) - float(power[n])
    # Rounding leaves some energy in a constant or behind a strong signal: too little to be a burst.
    constant = short * (mean_real * mean_real + mean_imaginary * mean_imaginary) * (unit * unit)
    floor = np.float32(_ENERGY_FLOOR * (largest + constant))
    scale = np.float32((blocks + 1) / blocks)
    for n in range(count):
        size_of_p = np.sqrt(real[n] * real[n] + imaginary[n] * imaginary[n])
        metric[n] = scale * size_of_p / metric[n] if metric[n] > floor else np.float32(0.0)


class Detector:
    """Peaks of the detection metric, one block of the stream after the other.

    A peak is reported when it is above the threshold and no larger value follows within the length of the short
    training. Blocks must be given in order and lie on a fixed raster, which makes the result independent of pushes.
    """

    def __init__(self, config: PhyConfig) -> None:
        preamble = preamble_of(config)
        self._lag = preamble.lag
        self._short = preamble.short_samples
        self._signs = np.array(SHORT_SIGNS)
        self._metric = np.empty(DETECTION_BLOCK, np.float32)
        self._real = np.empty(DETECTION_BLOCK, np.float32)
        self._imaginary = np.empty(DETECTION_BLOCK, np.float32)
        self.lookahead = self._short
        self._best: Detection | None = None

    def process(self, block: NDArray[np.complex64], position: int) -> list[Detection]:
        """Search one block.

        Args:
            block: complex64 (DETECTION_BLOCK + lookahead,), finite.
            position: sample index of its first sample; the previous block's plus DETECTION_BLOCK.

        Returns:
            The peaks that are settled by the end of this block, in order.
        """
        _metric(block, DETECTION_BLOCK, self._lag, self._signs, self._metric, self._real, self._imaginary)
        found: list[Detection] = []
        above = np.flatnonzero(self._metric > THRESHOLD)
        for n in above:
            value = float(self._metric[n])
            if self._best is not None and position + n > self._best.start + self._short:
                found.append(self._best)
                self._best = None
            if self._best is None or value > self._best.metric:
                angle = math.atan2(self._imaginary[n], self._real[n])
                self._best = Detection(int(position + n), angle / (2.0 * np.pi) * SHORT_SPACING, value)
        if self._best is not None and position + DETECTION_BLOCK > self._best.start + self._short:
            found.append(self._best)
            self._best = None
        return found

    def flush(self) -> list[Detection]:
        """Report the peak that is still open and start afresh."""
        found = [self._best] if self._best is not None else []
        self._best = None
        return found


@dataclass(frozen=True)
class Timing:
    """The fine synchronisation of one burst.

    Args:
        start: index of the preamble's first sample as the receiver counts it: the first path less BACKOFF.
        cfo: carrier offset in subcarriers.
        constant: what is added to every sample, such as a direct-conversion receiver's DC.
    """

    start: int
    cfo: float
    constant: complex = 0.0

    def seen_from(self, index: int) -> tuple[float, float, complex]:
        """Carrier offset, sample at which its phase is zero counted from ``index``, and constant."""
        return self.cfo, float(self.start - index), self.constant


class FineTiming:
    """Timing and carrier offset from the whole preamble, by correlation with what was sent.

    ``before`` samples in front of a detection and ``after`` samples from it on must be at hand.
    """

    def __init__(self, config: PhyConfig) -> None:
        self._config = config
        self._preamble = preamble_of(config)
        self.before = _SEARCH + BACKOFF
        self._lags = 2 * _SEARCH + config.cyclic_prefix
        self._size = scipy.fft.next_fast_len(self._preamble.length + self._lags)
        self._reference = np.conj(scipy.fft.fft(self._preamble.samples, self._size))
        # The window may yet be moved by a prefix and a half after the first guess.
        self._reach = self._preamble.length + self._lags + 2 * config.cyclic_prefix
        self.after = self._reach - _SEARCH
        carriers = grid_of(config).carriers
        taper = np.cos(np.pi * carriers / (config.occupied + 2)) ** 2
        self._impulse = np.zeros(config.fft_size, np.complex128)
        self._impulse[carriers] = taper / self._preamble.long
        self._impulse_noise = float(np.mean(np.abs(self._impulse) ** 2))

    def refine(self, samples: NDArray[np.complex64], detection: Detection, origin: int) -> Timing:
        """Place the burst.

        Args:
            samples: complex64; covers [start - before, start + after) of the detection.
            detection: what the detector found.
            origin: sample index of ``samples[0]``.

        Returns:
            Timing in sample indices, with a carrier offset between -2.5 and 2.5 subcarriers.
        """
        n = self._config.fft_size
        first = detection.start - _SEARCH - origin
        window = samples[first : first + self._reach].astype(np.complex128)
        turn = np.exp(-2j * np.pi * detection.cfo / n * np.arange(window.size))
        turned = (window - window.mean()) * turn
        response = scipy.fft.ifft(scipy.fft.fft(turned, self._size) * self._reference)[: self._lags]
        power = response.real**2 + response.imag**2
        strongest = int(power.argmax())
        earliest = max(0, strongest - self._config.cyclic_prefix)
        near = power[earliest : strongest + 1]
        path = earliest + int(np.argmax(near >= _PATH_THRESHOLD * power[strongest]))
        one, two = self._long_symbols(turned, path)
        residual = float(np.angle(np.vdot(one, two))) / (2.0 * np.pi)
        cfo = detection.cfo + residual
        constant = self._constant(window, path, cfo)
        turned = (window - constant) * turn
        path += self._shift(*self._long_symbols(turned, path))
        one, two = self._long_symbols(turned, path)
        cfo = detection.cfo + float(np.angle(np.vdot(one, two))) / (2.0 * np.pi)
        return Timing(detection.start - _SEARCH + path - BACKOFF, cfo, constant)

    def _long_symbols(self, window: NDArray, path: int) -> tuple[NDArray, NDArray]:
        """The two long symbols, for a first path at an index of the window."""
        n = self._config.fft_size
        first = max(0, path - BACKOFF + self._preamble.long_start)
        return window[first : first + n], window[first + n : first + 2 * n]

    def _constant(self, window: NDArray[np.complex128], path: int, cfo: float) -> complex:
        """A constant added to the samples: what the long symbols do not repeat, once turned by the carrier offset.

        With an offset of whole subcarriers it cannot be told from the signal, but then disturbs one subcarrier only.
        """
        one, two = self._long_symbols(window, path)
        turn = np.exp(2j * np.pi * cfo)
        apart = two - turn * one
        seen = apart.mean()
        variance = float(np.mean(np.abs(apart - seen) ** 2)) / apart.size
        return complex(seen / (1.0 - turn)) if abs(seen) ** 2 > _DC_SIGNIFICANCE * variance else 0.0

    def _shift(self, one: NDArray[np.complex128], two: NDArray[np.complex128]) -> int:
        """Samples by which the window should begin later, from the channel's impulse response.

        The window is laid so that the paths inside the prefix carry the most energy; among equals it begins with a
        path, less the backoff as far as the prefix has room for it.
        """
        prefix = self._config.cyclic_prefix
        turn = complex(np.vdot(one, two))
        turn /= max(abs(turn), 1e-30)
        noise = 0.5 * float(np.mean(np.abs(two - turn * one) ** 2))
        mean = scipy.fft.fft(0.5 * (one + np.conj(turn) * two), norm="ortho") * self._impulse
        response = scipy.fft.ifft(mean, norm="ortho")
        power = np.roll(response.real**2 + response.imag**2, prefix)[: 3 * prefix]  # delays -prefix to 2 prefix
        least = max(_TAP_THRESHOLD * float(power.max()), _TAP_OVER_NOISE * 0.5 * noise * self._impulse_noise)
        power[power < least] = 0.0
        reach = prefix + 2 * _TAP_WIDTH
        inside = np.convolve(power, np.ones(reach + 1))[reach : reach + 2 * prefix]  # energy of delays d to d + reach
        most = float(inside.max())
        if most == 0.0:
            return 0
        first = 2 * prefix - 1 - int(np.argmax(inside[::-1] >= most * (1.0 - 1e-9)))
        last = first + int(np.flatnonzero(power[first : first + reach + 1])[-1])
        spread = max(0, last - first - 2 * _TAP_WIDTH)
        return first + _TAP_WIDTH - prefix - min(BACKOFF, prefix - spread)
