"""What the receiver knows of one burst, sharpened as more of it becomes known: channel, noise, drift."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.phy.channel_estimate import smoother_of, tracker_of
from multisc.phy.config import PhyConfig
from multisc.phy.drift import PRIOR, fit_line, track
from multisc.phy.ofdm import grid_of
from multisc.phy.phasor import phasors

_NOISE_BLOCK = 8  # symbols whose pilots share a noise estimate
_NOISE_WEIGHT = 64  # how many pilots the burst's mean noise counts for in a block's estimate
_LEAST_NOISE = 1e-12  # of the received power: a noiseless recording must not give endless confidence


@njit(inline="always")
def _start(phase, slope, carrier):  # type: ignore[no-untyped-def]
    angle = phase + slope * carrier
    return (
        np.float32(np.cos(angle)),
        np.float32(-np.sin(angle)),
        np.float32(np.cos(slope)),
        np.float32(-np.sin(slope)),
    )


@njit(inline="always")
def _step(x, y, u, v):  # type: ignore[no-untyped-def]
    return x * u - y * v, x * v + y * u


@njit(cache=True, nogil=True, error_model="numpy")
def _turn(phase, slope, carriers, real, imaginary):  # type: ignore[no-untyped-def]
    """exp(-j (phase + slope * carrier)) of four symbols: float32 (4, occupied) each.

    From one subcarrier to the next a symbol turns by one step: a chain of products that wait for each other, so that
    four chains take as long as one.
    """
    x0, y0, u0, v0 = _start(phase[0], slope[0], carriers[0])
    x1, y1, u1, v1 = _start(phase[1], slope[1], carriers[0])
    x2, y2, u2, v2 = _start(phase[2], slope[2], carriers[0])
    x3, y3, u3, v3 = _start(phase[3], slope[3], carriers[0])
    real0, real1, real2, real3 = real[0], real[1], real[2], real[3]
    imaginary0, imaginary1, imaginary2, imaginary3 = imaginary[0], imaginary[1], imaginary[2], imaginary[3]
    for c in range(carriers.size):
        if c == carriers.size // 2:  # over the empty DC
            x0, y0 = _step(x0, y0, u0, v0)
            x1, y1 = _step(x1, y1, u1, v1)
            x2, y2 = _step(x2, y2, u2, v2)
            x3, y3 = _step(x3, y3, u3, v3)
        real0[c], real1[c], real2[c], real3[c] = x0, x1, x2, x3
        imaginary0[c], imaginary1[c], imaginary2[c], imaginary3[c] = y0, y1, y2, y3
        x0, y0 = _step(x0, y0, u0, v0)
        x1, y1 = _step(x1, y1, u1, v1)
        x2, y2 = _step(x2, y2, u2, v2)
        x3, y3 = _step(x3, y3, u3, v3)


@njit(cache=True, nogil=True, error_model="numpy")
def _invert(low, high, part, real, imaginary, gain):  # type: ignore[no-untyped-def]
    """1 / h and 1 / |h|^2 of the channel between two rows of interleaved real and imaginary parts."""
    for c in range(gain.size):
        x = low[2 * c] + part * (high[2 * c] - low[2 * c])
        y = low[2 * c + 1] + part * (high[2 * c + 1] - low[2 * c + 1])
        power = max(x * x + y * y, np.float32(1e-35))
        real[c] = x / power
        imaginary[c] = -y / power
        gain[c] = np.float32(1.0) / power


@njit(cache=True, nogil=True, error_model="numpy")
def _equalise(grid, channel, left, part, phase, slope, noise, columns, carriers, scramble, first, out, variance):  # type: ignore[no-untyped-def]
    """One-tap zero-forcing of the data subcarriers, drift and scrambler taken out.

    The channel of symbol s lies between rows left[s] and left[s] + 1 of ``channel``, by part[s]. Complex arrays come
    as interleaved real and imaginary parts, float32 (..., 2 * columns). Each loop is simple enough to become SIMD.
    """
    symbols, occupied, data = len(grid), carriers.size, columns.shape[1]
    inverse_real, inverse_imaginary, gain = np.empty((3, occupied), np.float32)
    factor_real, factor_imaginary = np.empty((2, occupied), np.float32)
    real, imaginary = np.empty((4, occupied), np.float32), np.empty((4, occupied), np.float32)
    equal = np.empty(2 * occupied, np.float32)
    picked = np.empty((len(columns), data), np.float32)
    base, step = np.zeros(4), np.zeros(4)
    last = len(channel) - 1
    for s in range(symbols):
        lane, row = s % 4, (first + s) % len(columns)
        if lane == 0:
            here = min(4, symbols - s)
            base[:here] = phase[s : s + here]
            step[:here] = slope[s : s + here]
            _turn(base, step, carriers, real, imaginary)
        if s == 0 or last > 0:
            _invert(channel[left[s]], channel[min(left[s] + 1, last)], part[s], inverse_real, inverse_imaginary, gain)
        if s < len(columns) or last > 0:
            for d in range(data):
                picked[row, d] = gain[columns[row, d]]
        turn_real, turn_imaginary, received = real[lane], imaginary[lane], grid[s]
        for c in range(occupied):
            factor_real[c] = inverse_real[c] * turn_real[c] - inverse_imaginary[c] * turn_imaginary[c]
        for c in range(occupied):
            factor_imaginary[c] = inverse_real[c] * turn_imaginary[c] + inverse_imaginary[c] * turn_real[c]
        for c in range(occupied):
            x, y = received[2 * c], received[2 * c + 1]
            equal[2 * c] = x * factor_real[c] - y * factor_imaginary[c]
            equal[2 * c + 1] = x * factor_imaginary[c] + y * factor_real[c]
        result, turns, places = out[s], scramble[first + s], columns[row]
        pairs, kept = equal.view(np.complex64), result.view(np.complex64)
        for d in range(data):
            kept[d] = pairs[places[d]]
        for d in range(data):
            x, y, u, v = result[2 * d], result[2 * d + 1], turns[2 * d], turns[2 * d + 1]
            result[2 * d] = x * u + y * v
            result[2 * d + 1] = y * u - x * v
        level, weights, spread = noise[s], picked[row], variance[s]
        for d in range(data):
            spread[d] = level * weights[d]


@njit(cache=True, nogil=True)
def _pick(grid, columns, out):  # type: ignore[no-untyped-def]
    """The values of symbols in the columns (PILOT_PERIOD, pilots) of their pilots."""
    for s in range(len(out)):
        places = columns[s % len(columns)]
        for p in range(places.size):
            out[s, p] = grid[s, places[p]]


class BurstEstimator:
    """The estimates of one burst.

    Attributes:
        channel: complex64 (occupied,), over the burst's beginning.
        noise: variance of the noise per subcarrier, in the units of the received samples.
        model: float64 (4,), the drift; see ``multisc.phy.drift``.
        observations: training symbols of unit power the channel estimate is worth.
    """

    def __init__(self, config: PhyConfig, training: NDArray[np.complex64], sent: NDArray[np.complex64]) -> None:
        """Start from the long training.

        Args:
            config: numerology.
            training: complex64 (2, occupied), received.
            sent: complex64 (occupied,), the value of either symbol.
        """
        self._config = config
        self._grid = grid_of(config)
        self._smoother = smoother_of(config)
        scale = 256.0 / config.fft_size
        self._prior = np.array([PRIOR[0], PRIOR[1], PRIOR[2] * scale, PRIOR[3] * scale])
        self.model = np.zeros(4)
        self.observations = 2.0 * float(np.mean(sent.real**2 + sent.imag**2))
        self._least = max(_LEAST_NOISE * float(np.mean(training.real**2 + training.imag**2)), 1e-30)
        self._noise_count = float(sent.size)
        self.noise = max(0.5 * _mean_power(training[0] - training[1]), self._least)
        self._raw = ((training[0] + training[1]) / (2.0 * sent)).astype(np.complex64)
        self.channel = self._smoother.smooth(self._raw, self.noise / self.observations)
        self._heard_noise = self.noise

    def times(self, count: int) -> NDArray[np.float64]:
        """Times of the first ``count`` symbols in the drift model: float64 (count,)."""
        # From the middle of the two long symbols to the middle of symbol 0, then one symbol at a time.
        lead = (1.5 * self._config.fft_size + self._config.cyclic_prefix) / self._config.symbol_samples
        return lead + np.arange(count)

    @property
    def snr(self) -> float:
        """Es/N0 per channel use, linear: mean power of the channel, less its noise, over the noise heard."""
        # Smoothing draws a noisy estimate towards zero; the power is that of the raw one, which is unbiased.
        power = _mean_power(self._raw) - self.noise / self.observations
        return max(power, 1e-3 * self._heard_noise) / self._heard_noise

    def read_header(self, grid: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Equalise the burst's first symbols, before the header is known.

        Args:
            grid: complex64 (symbols, occupied), received, from symbol 0 on.

        Returns:
            Symbols, complex64 (symbols, data_carriers), and the variance of their noise, float32 of that shape.
        """
        heard, carriers = self._pilots(grid)
        expected = self._at_pilots(self.channel, len(grid))
        weight = expected.real**2 + expected.imag**2
        times = self.times(len(grid))
        fit_line(heard * np.conj(expected), weight, times, carriers, self.noise, self._prior, self.model)
        m = self.model
        noise = np.full(len(grid), self.noise, np.float32)
        return self._apply(grid, 0, self.channel[None], np.zeros(1), m[0] + m[1] * times, m[2] + m[3] * times, noise)

    def learn(self, grid: NDArray[np.complex64], known: NDArray[np.complex64], first: int) -> None:
        """Sharpen channel and noise by a part of the header, once it is known. Each part counts once.

        Args:
            grid: complex64 (symbols, occupied), received, as ``read_header`` got it.
            known: the same, sent; unit power on every subcarrier.
            first: index of the first of these symbols in the burst.
        """
        times = self.times(first + len(grid))[first:]
        m = self.model
        carriers = self._grid.carriers[None].astype(np.float64)
        heard = grid * phasors(m[0] + m[1] * times, m[2] + m[3] * times, carriers) * np.conj(known)
        total = self.observations + len(grid)
        self._raw = ((self.observations * self._raw + heard.sum(axis=0)) / total).astype(np.complex64)
        self.observations = total
        # From one symbol to the next the channel hardly changes, even where it fades: what differs is noise. The
        # differences share symbols, which makes three of them worth two.
        steps = len(grid) - 1
        worth = steps * self._config.occupied * 2 / 3
        noise = 0.5 * _mean_power(heard[1:] - heard[:-1]) if steps else self.noise
        count = self._noise_count + worth
        self.noise = max((self._noise_count * self.noise + worth * noise) / count, self._least)
        self._noise_count = count
        self._heard_noise = self.noise
        self.channel = self._smoother.smooth(self._raw, self.noise / self.observations)

    def equalise(
        self, grid: NDArray[np.complex64], first: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32], float]:
        """Equalise the payload.

        Args:
            grid: complex64 (symbols, occupied), received: header and payload, from symbol 0 on.
            first: the first payload symbol.

        Returns:
            Symbols, complex64 (payload symbols, data_carriers); the variance of their noise, float32 of that shape;
            and the root-mean-square error of the equalised pilots.
        """
        heard, carriers = self._pilots(grid)
        expected = self._at_pilots(self.channel, len(grid))
        weight = expected.real**2 + expected.imag**2
        times, phase = self.times(len(grid)), np.empty(len(grid))
        track(heard * np.conj(expected), weight, times, carriers, self.noise, self._prior, self.model, phase)
        slope = self.model[2] + self.model[3] * times
        heard = heard * phasors(phase, slope, carriers)
        channel, knots, taken = tracker_of(self._config).follow(self.channel, heard - expected)
        if len(knots) == 1:
            expected = self._at_pilots(channel[0], len(grid))
        else:
            columns = self._grid.pilot_columns_of(0, len(grid))
            left, part = _between(knots, np.arange(len(grid)))
            low = np.take_along_axis(channel[left], columns, axis=1)
            high = np.take_along_axis(channel[left + 1], columns, axis=1)
            expected = low + part[:, None] * (high - low)
        apart = (heard - expected)[first:]
        error = (apart.real**2 + apart.imag**2) / (1.0 - taken)
        power = np.maximum(expected[first:].real ** 2 + expected[first:].imag ** 2, 1e-35)
        mean = float(error.sum(dtype=np.float64)) / error.size
        evm = float(np.sqrt(mean / np.mean(power)))
        count = self._noise_count + error.size
        self._heard_noise = max((self._noise_count * self.noise + error.size * mean) / count, self._least)
        payload = grid[first:]
        noise = self._noise_profile(error)
        symbols, variance = self._apply(payload, first, channel, knots - first, phase[first:], slope[first:], noise)
        return symbols, variance, evm

    def _pilots(self, grid: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
        """The channel as heard at each pilot, and the pilots' signed subcarriers."""
        count = len(grid)
        received = np.empty((count, self._config.pilots), np.complex64)
        _pick(grid, self._grid.pilot_columns, received)
        return received * np.conj(self._grid.pilots[:count]), self._grid.pilot_carriers[:count]

    def _at_pilots(self, channel: NDArray[np.complex64], count: int) -> NDArray[np.complex64]:
        """A channel that does not change, at the pilots of the first ``count`` symbols."""
        return channel[self._grid.pilot_columns_of(0, count)]

    def _noise_profile(self, error: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise of each symbol: the pilots of its block, drawn towards the burst's mean."""
        count, pilots = error.shape
        starts = np.arange(0, count, _NOISE_BLOCK)
        sums = np.add.reduceat(error.sum(axis=1, dtype=np.float64), starts)
        sizes = np.minimum(_NOISE_BLOCK, count - starts) * pilots
        blocks = (sums + _NOISE_WEIGHT * self.noise) / (sizes + _NOISE_WEIGHT)
        return np.repeat(blocks, _NOISE_BLOCK)[:count].astype(np.float32)

    def _apply(
        self,
        grid: NDArray[np.complex64],
        first: int,
        channel: NDArray[np.complex64],
        knots: NDArray[np.float64],
        phase: NDArray[np.float64],
        slope: NDArray[np.float64],
        noise: NDArray[np.float32],
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        left, part = _between(knots, np.arange(len(grid)))
        symbols = np.empty((len(grid), self._config.data_carriers), np.complex64)
        variance = np.empty(symbols.shape, np.float32)
        received, reference, scramble, result = (_parts(a) for a in (grid, channel, self._grid.scramble, symbols))
        _equalise(
            received, reference, left, part, phase, slope, noise, self._grid.data_columns, self._grid.carriers,
            scramble, first, result, variance,
        )  # fmt: skip
        return symbols, variance


def _parts(values: NDArray[np.complex64]) -> NDArray[np.float32]:
    """The same memory as real and imaginary parts in turn."""
    return values.view(np.float32)


def _mean_power(values: NDArray[np.complex64]) -> float:
    return float((values.real**2 + values.imag**2).sum(dtype=np.float64)) / values.size


def _between(knots: NDArray[np.float64], times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The knot at or before each time and the part of the way to the next; the ends are held."""
    if len(knots) == 1:
        return np.zeros(len(times), np.int64), np.zeros(len(times), np.float32)
    left = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    part = (times - knots[left]) / (knots[left + 1] - knots[left])
    return left, np.clip(part, 0.0, 1.0).astype(np.float32)


class IdealEstimator(BurstEstimator):
    """Stands in for the estimates when channel, phase and noise are known: a flat channel."""

    def __init__(self, config: PhyConfig, gain: complex, noise: float) -> None:
        self._config = config
        self._grid = grid_of(config)
        self.model = np.zeros(4)
        self.channel = np.full(config.occupied, gain, np.complex64)
        self.noise = max(noise, 1e-30)

    @property
    def snr(self) -> float:
        """Es/N0 per channel use, linear."""
        return _mean_power(self.channel) / self.noise

    def read_header(self, grid: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """As ``BurstEstimator.read_header``, with what is known."""
        still = np.zeros(len(grid))
        noise = np.full(len(grid), self.noise, np.float32)
        return self._apply(grid, 0, self.channel[None], np.zeros(1), still, still, noise)

    def learn(self, grid: NDArray[np.complex64], known: NDArray[np.complex64], first: int) -> None:
        """There is nothing to learn."""

    def equalise(
        self, grid: NDArray[np.complex64], first: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32], float]:
        """As ``BurstEstimator.equalise``, with what is known."""
        payload = grid[first:]
        still = np.zeros(len(payload))
        noise = np.full(len(payload), self.noise, np.float32)
        symbols, variance = self._apply(payload, first, self.channel[None], np.zeros(1), still, still, noise)
        heard, _ = self._pilots(grid)
        evm = float(np.sqrt(_mean_power(heard[first:] / self.channel[0] - 1.0)))
        return symbols, variance, evm
