"""Fading: complex gains that change block by block or with a Doppler spectrum; flat Rayleigh and Rician channels."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.channel.impairment import EMPTY, Impairment, Samples, as_samples, in_range
from multisc.channel.noise import Seed, generator
from multisc.errors import BadInputError

LOS_DOPPLER = 0.7  # line of sight at 45 degrees to the motion, as TR 38.901 7.7.2 puts it
_SINUSOIDS = 64
_POINTS = 64  # grid points that are computed together
_FOREVER = 1 << 62
_BLOCK = 4096  # samples filtered at a time


class GainProcess(Protocol):
    """Gains of the taps of a channel at equally spaced instants, in segments of several instants.

    Attributes:
        step: samples between instants.
        points: instants per segment.
        held: whether a gain stays until the next instant; otherwise it changes along a straight line.
    """

    step: int
    points: int
    held: bool

    def segment(self, index: int) -> NDArray[np.complex64]:
        """Return the gains of a segment and the first of the next, shape (points + 1, taps).

        Segments are asked for in ascending order.
        """


class BlockGains:
    """Gains that stay for a block and are drawn anew, independently, for the next one.

    Args:
        powers: mean power of each tap, shape (taps,).
        k_factors: power of a tap's steady part over that of its scattered part, linear; 0 is Rayleigh.
        block: samples per block; None keeps one draw for ever.
        seed: of the draws.
    """

    held = True

    def __init__(self, powers: NDArray, k_factors: NDArray, block: int | None, seed: Seed) -> None:
        self.step = _FOREVER if block is None else int(in_range("fading block", block, 1, _FOREVER, "samples"))
        self.points = 1 if block is None else _POINTS
        self._steady, self._scattered = _amplitudes(powers, k_factors)
        self._random = generator(seed)
        self._drawn = -1
        self._gains = np.zeros((self.points + 1, len(powers)), np.complex64)

    def segment(self, index: int) -> NDArray[np.complex64]:
        """Return the gains of blocks ``index * points`` and those that follow; the last row is not used."""
        while self._drawn < index:
            taps = self._steady.size
            phase = self._random.uniform(0.0, 2.0 * np.pi, (self.points, taps))
            scatter = self._random.standard_normal((self.points, 2 * taps)).view(np.complex128) * np.sqrt(0.5)
            self._gains[:-1] = self._steady * np.exp(1j * phase) + self._scattered * scatter
            self._drawn += 1
        return self._gains


class DopplerGains:
    """Gains with the Doppler spectrum of Clarke and Jakes, made as sums of sinusoids.

    A tap is the sum of 64 waves of equal power that arrive from directions 2 pi m / 64 plus a random turn, with
    random phases. Its autocorrelation is the Bessel function J0(2 pi f_d t) up to f_d t of about 7, its mean power
    over time is exact, and its envelope is Rayleigh as far as the central limit theorem carries with 64 terms. A
    steady part has a Doppler shift of 0.7 f_d. Phases are computed anew for each segment: they never wander off.

    Args:
        powers: mean power of each tap, shape (taps,).
        k_factors: power of a tap's steady part over that of its scattered part, linear; 0 is Rayleigh.
        doppler_hz: largest Doppler shift f_d, Hz; positive, at most half the sample rate.
        sample_rate: Hz.
        seed: of directions and phases.
    """

    points = _POINTS
    held = False

    def __init__(
        self, powers: NDArray, k_factors: NDArray, doppler_hz: float, sample_rate: float, seed: Seed
    ) -> None:
        in_range("Doppler frequency", doppler_hz, 1e-6, sample_rate / 2, "Hz")
        turn = 2.0 * np.pi * doppler_hz / sample_rate
        # A chord deviates from an arc by angle^2 / 8 at most: 0.02 rad between instants are 86 dB down.
        self.step = 1 << int(np.clip(np.floor(np.log2(0.02 / turn)), 0, 20))
        random = generator(seed)
        taps = len(powers)
        steady, scattered = _amplitudes(powers, k_factors)
        angle = 2.0 * np.pi * (np.arange(_SINUSOIDS) + random.uniform(size=(taps, 1))) / _SINUSOIDS
        self._phases = random.uniform(0.0, 2.0 * np.pi, (taps, _SINUSOIDS + 1))
        self._rates = np.empty((taps, _SINUSOIDS + 1))  # rad per step
        self._rates[:, :-1] = turn * self.step * np.cos(angle)
        self._rates[:, -1] = turn * self.step * LOS_DOPPLER
        self._levels = np.empty((taps, _SINUSOIDS + 1))
        self._levels[:, :-1] = (scattered / np.sqrt(_SINUSOIDS))[:, None]
        self._levels[:, -1] = steady
        self._turns = np.exp(1j * self._rates[..., None] * np.arange(_POINTS + 1))

    def segment(self, index: int) -> NDArray[np.complex64]:
        """Return the gains at instants ``index * points`` and the ``points`` that follow."""
        cycles = np.remainder(self._rates / (2.0 * np.pi) * (index * _POINTS), 1.0)
        start = self._levels * np.exp(1j * (2.0 * np.pi * cycles + self._phases))
        out = np.zeros((_POINTS + 1, start.shape[0]), np.complex64)
        _sum_of_sinusoids(start, self._turns, out)
        return out


class TimeVariantFilter(Impairment):
    """A transversal filter whose coefficients follow a gain process: y[n] = sum over l of h[n, l] x[n - l].

    Args:
        gains: of the taps.
        shape: how much of each tap lies on each whole-sample delay l, float64 of shape (taps, L).
    """

    def __init__(self, gains: GainProcess, shape: NDArray[np.float64]) -> None:
        self._process = gains
        self._shape = shape.astype(np.float32)
        self._history = np.zeros(shape.shape[1] - 1, np.complex64)
        self._position = 0
        self._segment = -1
        self._coefficients = np.zeros((gains.points + 1, shape.shape[1]), np.complex64)

    def process(self, samples: Samples) -> Samples:
        """Filter."""
        samples = as_samples(samples)
        line = np.concatenate([self._history, samples])
        out = np.empty_like(samples)
        length = self._process.step * self._process.points
        done = 0
        while done < samples.size:
            index, inside = divmod(self._position + done, length)
            count = min(length - inside, samples.size - done)
            if index != self._segment:
                self._segment = index
                self._coefficients[:] = 0
                _mix(self._process.segment(index), self._shape, self._coefficients)
            process = self._process
            _filter(line[done:], self._coefficients, process.step, process.held, inside, out[done : done + count])
            done += count
        self._history = line[samples.size :].copy()
        self._position += samples.size
        return out

    def finish(self) -> Samples:
        """Return the echoes that outlast the input."""
        if self._position == 0:
            return EMPTY
        return self.process(np.zeros(self._history.size, np.complex64))


class FlatFading(TimeVariantFilter):
    """Flat Rayleigh or Rician fading of unit mean power.

    Args:
        sample_rate: Hz.
        k_factor: power of the line of sight over that of the scattered waves, linear, at least 0; 0 is Rayleigh.
        doppler_hz: largest Doppler shift, Hz; 0 for block fading.
        block: without Doppler, samples after which the gain is drawn anew; None keeps it.
        seed: of the fading.

    Raises:
        BadInputError: for an argument outside its range, or a block together with Doppler.
    """

    def __init__(
        self,
        sample_rate: float,
        k_factor: float = 0.0,
        doppler_hz: float = 0.0,
        block: int | None = None,
        seed: Seed = 0,
    ) -> None:
        k = in_range("K-factor", k_factor, 0.0, 1e12)
        gains = make_gains(np.ones(1), np.array([k]), doppler_hz, sample_rate, block, seed)
        super().__init__(gains, np.ones((1, 1)))


def make_gains(
    powers: NDArray, k_factors: NDArray, doppler_hz: float, sample_rate: float, block: int | None, seed: Seed
) -> GainProcess:
    """Return a Doppler process, or without Doppler a block process.

    Raises:
        BadInputError: for an argument outside its range, or a block together with Doppler.
    """
    in_range("sample rate", sample_rate, 1.0, 1e12, "Hz")
    if doppler_hz == 0:
        return BlockGains(powers, k_factors, block, seed)
    if block is not None:
        raise BadInputError("fading has either a block length or a Doppler frequency, not both")
    return DopplerGains(powers, k_factors, doppler_hz, sample_rate, seed)


def _amplitudes(powers: NDArray, k_factors: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the root powers of steady and scattered parts."""
    powers, k = np.asarray(powers, np.float64), np.asarray(k_factors, np.float64)
    return np.sqrt(powers * k / (1.0 + k)), np.sqrt(powers / (1.0 + k))


@njit(cache=True, nogil=True)
def _sum_of_sinusoids(start, turns, out):  # type: ignore[no-untyped-def]
    taps, waves, points = turns.shape
    real = np.empty(points)
    imaginary = np.empty(points)
    for tap in range(taps):
        real[:] = 0.0
        imaginary[:] = 0.0
        for wave in range(waves):
            a = start[tap, wave].real
            b = start[tap, wave].imag
            for p in range(points):
                c = turns[tap, wave, p].real
                d = turns[tap, wave, p].imag
                real[p] += a * c - b * d
                imaginary[p] += a * d + b * c
        for p in range(points):
            out[p, tap] = complex(real[p], imaginary[p])


@njit(cache=True, nogil=True)
def _mix(gains, shape, out):  # type: ignore[no-untyped-def]
    """Add each tap's gains, spread over whole-sample delays, to ``out``, in an order that never varies."""
    for tap in range(shape.shape[0]):
        for delay in range(shape.shape[1]):
            level = shape[tap, delay]
            if level != 0:
                for point in range(gains.shape[0]):
                    out[point, delay] += gains[point, tap] * level


@njit(cache=True, nogil=True)
def _filter(line, coefficients, step, held, inside, out):  # type: ignore[no-untyped-def]
    """Filter ``out.size`` samples; ``line`` starts L - 1 samples before, ``inside`` samples into the segment.

    Real and imaginary parts are kept apart so that the inner loop becomes SIMD.
    """
    length = coefficients.shape[1]
    size = min(step, out.size, _BLOCK)
    x = np.empty(size + length - 1, np.float32)
    y = np.empty(size + length - 1, np.float32)
    real = np.empty(size, np.float32)
    imaginary = np.empty(size, np.float32)
    scale = np.float32(1.0) / np.float32(step)
    done = 0
    while done < out.size:
        point = (inside + done) // step
        phase = (inside + done) - point * step
        count = min(step - phase, out.size - done, size)
        for i in range(count + length - 1):
            x[i] = line[done + i].real
            y[i] = line[done + i].imag
        real[:count] = np.float32(0.0)
        imaginary[:count] = np.float32(0.0)
        for delay in range(length):
            h = coefficients[point, delay]
            a = h.real
            b = h.imag
            at = length - 1 - delay
            if held:
                for i in range(count):
                    real[i] += a * x[at + i] - b * y[at + i]
                    imaginary[i] += a * y[at + i] + b * x[at + i]
            else:
                slope = (coefficients[point + 1, delay] - h) * scale
                c = slope.real
                d = slope.imag
                for i in range(count):
                    t = np.float32(phase) + np.float32(np.int32(i))  # exact: a step is at most 2^20
                    p = a + t * c
                    q = b + t * d
                    real[i] += p * x[at + i] - q * y[at + i]
                    imaginary[i] += p * y[at + i] + q * x[at + i]
        for i in range(count):
            out[done + i] = complex(real[i], imaginary[i])
        done += count
