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
_CHUNK = 512  # values that inner loops treat at a time, so that they stay in the cache
_SCAN = 64  # values of the metric that are compared with the threshold at once
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


# Reassociation lets these sums become SIMD; the others below slide, and keep their order.
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _mean(parts):  # type: ignore[no-untyped-def]
    """Mean of interleaved real and imaginary parts."""
    real = 0.0
    imaginary = 0.0
    for m in range(parts.size // 2):
        real += parts[2 * m]
        imaginary += parts[2 * m + 1]
    return real / (parts.size // 2), imaginary / (parts.size // 2)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _centre(parts, mean_real, mean_imaginary, a, b):  # type: ignore[no-untyped-def]
    """Real and imaginary parts less their means; returns their energy."""
    total = 0.0
    for m in range(a.size):
        a[m] = parts[2 * m] - mean_real
        b[m] = parts[2 * m + 1] - mean_imaginary
        total += float(a[m]) * float(a[m]) + float(b[m]) * float(b[m])
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _products(a, b, lag, unit, power, real, imaginary):  # type: ignore[no-untyped-def]
    """Scale the samples in place; their power, and their products with the samples one block later."""
    for m in range(a.size):
        x = a[m] * unit
        y = b[m] * unit
        a[m] = x
        b[m] = y
        power[m] = x * x + y * y
    count = a.size - lag
    a0, b0, a1, b1 = a[:count], b[:count], a[lag:], b[lag:]
    for m in range(count):
        real[m] = a0[m] * a1[m] + b0[m] * b1[m]
        imaginary[m] = a0[m] * b1[m] - b0[m] * a1[m]


@njit(cache=True, nogil=True, error_model="numpy")
def _changes(values, length, first, out):  # type: ignore[no-untyped-def]
    """What the sum of ``length`` values changes by from each place to the next."""
    go, come = values[first : first + out.size], values[first + length : first + length + out.size]
    for m in range(out.size):
        out[m] = float(come[m]) - float(go[m])


@njit(cache=True, nogil=True, error_model="numpy")
def _slide(real, imaginary, power, lag, short, real_sums, imaginary_sums, energy):  # type: ignore[no-untyped-def]
    """Sums of ``lag`` products and of ``short`` powers from each place on; returns the largest energy.

    They slide in double and are stored in single precision. Each addition waits for the one before, so the three sums
    advance side by side.
    """
    change = np.zeros((3, _CHUNK))
    p, q, e = change[0], change[1], change[2]
    sum_real = 0.0
    sum_imaginary = 0.0
    sum_energy = 0.0
    largest = 0.0
    for m in range(lag):
        sum_real += real[m]
        sum_imaginary += imaginary[m]
    for m in range(short):
        sum_energy += power[m]
    for first in range(0, real_sums.size, _CHUNK):
        size = min(_CHUNK, real_sums.size - first)
        here = max(0, min(_CHUNK, energy.size - first))
        _changes(real, lag, first, p[:size])
        _changes(imaginary, lag, first, q[:size])
        _changes(power, short, first, e[:here])
        for m in range(size):
            step = p[m]
            p[m] = sum_real
            sum_real += step
            step = q[m]
            q[m] = sum_imaginary
            sum_imaginary += step
            if m < here:
                step = e[m]
                e[m] = sum_energy
                largest = max(largest, sum_energy)
                sum_energy += step
        real_sums[first : first + size] = p[:size]
        imaginary_sums[first : first + size] = q[:size]
        energy[first : first + here] = e[:here]
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
def _combine(sums, lag, signs, out):  # type: ignore[no-untyped-def]
    """Add up the sums over the eight blocks with the signs of the preamble."""
    n, s = out.size, signs
    x0, x1, x2, x3 = sums[:n], sums[lag : lag + n], sums[2 * lag : 2 * lag + n], sums[3 * lag : 3 * lag + n]
    rest = sums[4 * lag :]
    x4, x5, x6, x7 = rest[:n], rest[lag : lag + n], rest[2 * lag : 2 * lag + n], rest[3 * lag : 3 * lag + n]
    s0, s1, s2, s3, s4, s5, s6, s7 = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
    for m in range(n):
        first = s0 * x0[m] + s1 * x1[m] + s2 * x2[m] + s3 * x3[m]
        out[m] = first + s4 * x4[m] + s5 * x5[m] + s6 * x6[m] + s7 * x7[m]


@njit(cache=True, nogil=True, error_model="numpy")
def _metric(x, lag, signs, work, metric, real, imaginary):  # type: ignore[no-untyped-def]
    """Metric and correlation at the first ``metric.size`` offsets of x, which goes on for (len(signs)+1)*lag samples.

    The loops run over slices, not over indices with a sum in them, as only then they become SIMD. ``work`` is float32
    (5, x.size).
    """
    parts = x.view(np.float32)
    count, size, blocks = metric.size, x.size, signs.size
    mean_real, mean_imaginary = _mean(parts)
    a, b, power, product_real, product_imaginary = work[0], work[1], work[2], work[3], work[4]
    total = _centre(parts, np.float32(mean_real), np.float32(mean_imaginary), a, b)
    if total == 0.0:
        metric[:] = np.float32(0.0)
        return
    # All is brought to about unit power: the fourth powers below would leave single precision's range.
    unit = np.sqrt(size / total)
    _products(a, b, lag, np.float32(unit), power, product_real, product_imaginary)
    # The samples are used up: the sums over one block take their place.
    short = (blocks + 1) * lag
    sums_real, sums_imaginary = a[: size - 2 * lag], b[: size - 2 * lag]
    largest = _slide(product_real, product_imaginary, power, lag, short, sums_real, sums_imaginary, metric)
    _combine(sums_real, lag, signs, real)
    _combine(sums_imaginary, lag, signs, imaginary)
    # Rounding leaves some energy in a constant or behind a strong signal: too little to be a burst.
    constant = short * (mean_real * mean_real + mean_imaginary * mean_imaginary) * (unit * unit)
    floor = np.float32(_ENERGY_FLOOR * (largest + constant))
    scale = np.float32((blocks + 1) / blocks)
    for n in range(count):
        value = scale * np.sqrt(real[n] * real[n] + imaginary[n] * imaginary[n]) / metric[n]
        metric[n] = value if metric[n] > floor else np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _peaks(metric, real, imaginary, position, short, threshold, still_open, starts, values):  # type: ignore[no-untyped-def]
    """Peaks of one block: their places and, in ``values`` (peaks, 3), metric and correlation.

    The first entry is a peak of an earlier block where that is ``still_open``.

    Returns:
        How many peaks are settled, and whether the one behind them is still open.
    """
    found = 0
    for first in range(0, metric.size, _SCAN):
        part = metric[first : first + _SCAN]
        above = False
        for n in range(part.size):
            above |= part[n] > threshold
        if not above:
            continue
        for n in range(first, first + part.size):
            if metric[n] > threshold:
                if still_open and position + n > starts[found] + short:
                    found += 1
                    still_open = False
                if not still_open or metric[n] > values[found, 0]:
                    still_open = True
                    starts[found] = position + n
                    values[found, 0] = metric[n]
                    values[found, 1] = real[n]
                    values[found, 2] = imaginary[n]
    if still_open and position + metric.size > starts[found] + short:
        found += 1
        still_open = False
    return found, still_open


class Detector:
    """Peaks of the detection metric, one block of the stream after the other.

    A peak is reported when it is above the threshold and no larger value follows within the length of the short
    training. Blocks must be given in order and lie on a fixed raster, which makes the result independent of pushes.
    """

    def __init__(self, config: PhyConfig) -> None:
        preamble = preamble_of(config)
        self._lag = preamble.lag
        self._short = preamble.short_samples
        self._signs = np.array(SHORT_SIGNS, np.float32)
        self.lookahead = self._short
        self._work = np.empty((5, DETECTION_BLOCK + self.lookahead), np.float32)
        self._metric = np.empty(DETECTION_BLOCK, np.float32)
        self._real = np.empty(DETECTION_BLOCK, np.float32)
        self._imaginary = np.empty(DETECTION_BLOCK, np.float32)
        most = DETECTION_BLOCK // self._short + 3
        self._starts = np.zeros(most, np.int64)
        self._values = np.zeros((most, 3), np.float32)
        self._open = False  # whether the first of these is a peak that is not settled yet

    def process(self, block: NDArray[np.complex64], position: int) -> list[Detection]:
        """Search one block.

        Args:
            block: complex64 (DETECTION_BLOCK + lookahead,), finite.
            position: sample index of its first sample; the previous block's plus DETECTION_BLOCK.

        Returns:
            The peaks that are settled by the end of this block, in order.
        """
        _metric(block, self._lag, self._signs, self._work, self._metric, self._real, self._imaginary)
        found, still_open = _peaks(
            self._metric, self._real, self._imaginary, position, self._short, np.float32(THRESHOLD),
            self._open, self._starts, self._values,
        )  # fmt: skip
        detections = [self._detection(i) for i in range(found)]
        self._open = still_open
        self._starts[0], self._values[0] = self._starts[found], self._values[found]
        return detections

    def flush(self) -> list[Detection]:
        """Report the peak that is still open and start afresh."""
        found = [self._detection(0)] if self._open else []
        self._open = False
        return found

    def _detection(self, i: int) -> Detection:
        value, real, imaginary = map(float, self._values[i])
        return Detection(int(self._starts[i]), math.atan2(imaginary, real) / (2.0 * np.pi) * SHORT_SPACING, value)


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


@njit(cache=True, nogil=True, error_model="numpy")
def _prepare(samples, step, window, turn, turned):  # type: ignore[no-untyped-def]
    """Samples in double precision, exp(j step i), and the samples so turned with their mean taken out."""
    mean = 0.0j
    for i in range(samples.size):
        window[i] = samples[i]
        mean += window[i]
    mean /= samples.size
    for i in range(samples.size):
        turn[i] = complex(np.cos(step * i), np.sin(step * i))
        turned[i] = (window[i] - mean) * turn[i]


@njit(cache=True, nogil=True)
def _first_path(response, lags, reach):  # type: ignore[no-untyped-def]
    """The first of the delays up to ``reach`` before the strongest at which there is a path."""
    strongest = 0
    largest = -1.0
    power = np.empty(lags)
    for i in range(lags):
        power[i] = response[i].real ** 2 + response[i].imag ** 2
        if power[i] > largest:
            strongest, largest = i, power[i]
    path = max(0, strongest - reach)
    while power[path] < _PATH_THRESHOLD * largest:
        path += 1
    return path


@njit(cache=True, nogil=True, error_model="numpy")
def _correlation(one, two):  # type: ignore[no-untyped-def]
    """Sum of conj(one) * two."""
    total = 0.0j
    for i in range(one.size):
        total += np.conj(one[i]) * two[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _constant(one, two, turns):  # type: ignore[no-untyped-def]
    """A constant added to the samples: what the long symbols do not repeat, once turned by the carrier offset.

    With an offset of whole subcarriers it cannot be told from the signal, but then disturbs one subcarrier only.
    """
    turn = complex(np.cos(2.0 * np.pi * turns), np.sin(2.0 * np.pi * turns))
    seen = 0.0j
    for i in range(one.size):
        seen += two[i] - turn * one[i]
    seen /= one.size
    power = 0.0
    for i in range(one.size):
        apart = two[i] - turn * one[i] - seen
        power += apart.real**2 + apart.imag**2
    variance = power / one.size / one.size
    significant = seen.real**2 + seen.imag**2 > _DC_SIGNIFICANCE * variance
    return seen / (1.0 - turn) if significant else 0.0j


@njit(cache=True, nogil=True, error_model="numpy")
def _average(one, two, mean):  # type: ignore[no-untyped-def]
    """Mean of the long symbols, the turn between them taken out; returns the power of the noise on each."""
    turn = _correlation(one, two)
    turn /= max(abs(turn), 1e-30)
    power = 0.0
    for i in range(one.size):
        apart = two[i] - turn * one[i]
        power += apart.real**2 + apart.imag**2
        mean[i] = 0.5 * (one[i] + np.conj(turn) * two[i])
    return 0.5 * power / one.size


@njit(cache=True, nogil=True, error_model="numpy")
def _window_shift(response, prefix, noise):  # type: ignore[no-untyped-def]
    """Samples by which the window should begin later; see ``FineTiming``."""
    power = np.empty(3 * prefix)  # delays -prefix to 2 prefix
    for i in range(power.size):
        value = response[i - prefix]  # from the end where negative
        power[i] = value.real**2 + value.imag**2
    least = max(_TAP_THRESHOLD * power.max(), _TAP_OVER_NOISE * noise)
    reach = prefix + 2 * _TAP_WIDTH
    inside = np.zeros(2 * prefix)  # energy of delays d to d + reach
    most = 0.0
    for d in range(inside.size):
        for i in range(d, min(d + reach + 1, power.size)):
            if power[i] >= least:
                inside[d] += power[i]
        most = max(most, inside[d])
    if most == 0.0:
        return 0
    first = inside.size - 1
    while inside[first] < most * (1.0 - 1e-9):
        first -= 1
    last = min(first + reach, power.size - 1)
    while power[last] < least:
        last -= 1
    spread = max(0, last - first - 2 * _TAP_WIDTH)
    return first + _TAP_WIDTH - prefix - min(BACKOFF, prefix - spread)


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
        n, prefix = self._config.fft_size, self._config.cyclic_prefix
        first = detection.start - _SEARCH - origin
        window, turn, turned = np.empty((3, self._reach), np.complex128)
        _prepare(samples[first : first + self._reach], -2.0 * np.pi * detection.cfo / n, window, turn, turned)
        response = scipy.fft.ifft(scipy.fft.fft(turned, self._size) * self._reference)
        path = _first_path(response, self._lags, prefix)
        residual = float(np.angle(_correlation(*self._long_symbols(turned, path)))) / (2.0 * np.pi)
        constant = _constant(*self._long_symbols(window, path), detection.cfo + residual)
        turned = (window - constant) * turn
        path += self._shift(*self._long_symbols(turned, path))
        residual = float(np.angle(np.vdot(*self._long_symbols(turned, path)))) / (2.0 * np.pi)
        return Timing(detection.start - _SEARCH + path - BACKOFF, detection.cfo + residual, constant)

    def _long_symbols(self, window: NDArray, path: int) -> tuple[NDArray, NDArray]:
        """The two long symbols, for a first path at an index of the window."""
        n = self._config.fft_size
        first = max(0, path - BACKOFF + self._preamble.long_start)
        return window[first : first + n], window[first + n : first + 2 * n]

    def _shift(self, one: NDArray[np.complex128], two: NDArray[np.complex128]) -> int:
        """Samples by which the window should begin later, from the channel's impulse response.

        The window is laid so that the paths inside the prefix carry the most energy; among equals it begins with a
        path, less the backoff as far as the prefix has room for it.
        """
        mean = np.empty_like(one)
        noise = _average(one, two, mean)
        response = scipy.fft.ifft(scipy.fft.fft(mean, norm="ortho") * self._impulse, norm="ortho")
        return int(_window_shift(response, self._config.cyclic_prefix, 0.5 * noise * self._impulse_noise))
