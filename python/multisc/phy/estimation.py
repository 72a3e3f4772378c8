"""What the receiver knows of one burst, sharpened as more of it becomes known: channel, noise, drift."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.phy.channel_estimate import smoother_of, tracker_of
from multisc.phy.config import PhyConfig
from multisc.phy.drift import PRIOR, fit_line, track
from multisc.phy.ofdm import grid_of

_NOISE_BLOCK = 8  # symbols whose pilots share a noise estimate
_NOISE_WEIGHT = 64  # how many pilots the burst's mean noise counts for in a block's estimate
_LEAST_NOISE = 1e-12  # of the received power: a noiseless recording must not give endless confidence


@njit(cache=True, nogil=True)
def _equalise(grid, channel, left, part, phase, slope, noise, columns, carriers, scramble, first, out, variance):  # type: ignore[no-untyped-def]
    """One-tap zero-forcing of the data subcarriers, drift and scrambler taken out.

    The channel of symbol s lies between rows left[s] and left[s] + 1 of ``channel``, by part[s].
    """
    symbols, occupied = grid.shape
    data = columns.shape[1]
    inverse = np.empty(occupied, np.complex64)
    gain = np.empty(occupied, np.float32)
    turned = np.empty(occupied, np.complex64)
    for s in range(symbols):
        if s == 0 or len(channel) > 1:
            low = channel[left[s]]
            high = channel[min(left[s] + 1, len(channel) - 1)]
            for c in range(occupied):
                h = low[c] + part[s] * (high[c] - low[c])
                power = max(np.float32(h.real * h.real + h.imag * h.imag), np.float32(1e-35))
                inverse[c] = np.conj(h) / power
                gain[c] = np.float32(1.0) / power
        angle = phase[s] + slope[s] * carriers[0]
        turn = np.complex64(complex(np.cos(angle), -np.sin(angle)))
        step = np.complex64(complex(np.cos(slope[s]), -np.sin(slope[s])))
        for c in range(occupied):
            if c > 0 and carriers[c] - carriers[c - 1] == 2:
                turn *= step
            turned[c] = inverse[c] * turn
            turn *= step
        row = (first + s) % columns.shape[0]
        for d in range(data):
            c = columns[row, d]
            out[s, d] = grid[s, c] * turned[c] * np.conj(scramble[first + s, d])
            variance[s, d] = noise[s] * gain[c]


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
        heard, columns, carriers = self._pilots(grid)
        expected = self.channel[columns]
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
        times = self.times(first + len(grid))[first:, None]
        m = self.model
        phase = m[0] + m[1] * times + self._grid.carriers * (m[2] + m[3] * times)
        heard = grid * np.exp(-1j * phase).astype(np.complex64) * np.conj(known)
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
        heard, columns, carriers = self._pilots(grid)
        expected = self.channel[columns]
        weight = expected.real**2 + expected.imag**2
        times, phase = self.times(len(grid)), np.empty(len(grid))
        track(heard * np.conj(expected), weight, times, carriers, self.noise, self._prior, self.model, phase)
        slope = self.model[2] + self.model[3] * times
        heard = heard * np.exp(-1j * (phase[:, None] + slope[:, None] * carriers)).astype(np.complex64)
        channel, knots, taken = tracker_of(self._config).follow(self.channel, heard, 0)
        left, part = _between(knots, np.arange(len(grid)))
        low = np.take_along_axis(channel[left], columns, axis=1)
        high = np.take_along_axis(channel[np.minimum(left + 1, len(channel) - 1)], columns, axis=1)
        expected = low + part[:, None] * (high - low)
        error = (heard - expected)[first:]
        error = (error.real**2 + error.imag**2) / (1.0 - taken)
        power = np.maximum(expected[first:].real ** 2 + expected[first:].imag ** 2, 1e-35)
        mean = float(np.mean(error, dtype=np.float64))
        evm = float(np.sqrt(mean / np.mean(power)))
        count = self._noise_count + error.size
        self._heard_noise = max((self._noise_count * self.noise + error.size * mean) / count, self._least)
        payload = grid[first:]
        noise = self._noise_profile(error)
        symbols, variance = self._apply(payload, first, channel, knots - first, phase[first:], slope[first:], noise)
        return symbols, variance, evm

    def _pilots(
        self, grid: NDArray[np.complex64]
    ) -> tuple[NDArray[np.complex64], NDArray[np.int64], NDArray[np.float64]]:
        """The channel as heard at each pilot, the pilots' columns, and their signed subcarriers."""
        columns = self._grid.pilot_columns_of(0, len(grid))
        heard = np.take_along_axis(grid, columns, axis=1) * np.conj(self._grid.pilots[: len(grid)])
        return heard, columns, self._grid.carriers[columns].astype(np.float64)

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
        _equalise(
            grid, channel, left, part, phase, slope, noise, self._grid.data_columns, self._grid.carriers,
            self._grid.scramble, first, symbols, variance,
        )  # fmt: skip
        return symbols, variance


def _mean_power(values: NDArray[np.complex64]) -> float:
    return float(np.mean(values.real**2 + values.imag**2, dtype=np.float64))


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
        heard, _, _ = self._pilots(grid)
        evm = float(np.sqrt(_mean_power(heard[first:] / self.channel[0] - 1.0)))
        return symbols, variance, evm
