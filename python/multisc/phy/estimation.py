"""What the receiver estimates of one burst: the channel, the noise, and the drift of phase and clock.

Phases follow one model over the burst, phase(s, k) = m0 + m1 s + k (m2 + m3 s) in radians, with s the time in OFDM
symbols from the middle of the long training and k the signed subcarrier: m1 is what the carrier correction left, m3
the clock offset. What the model leaves (phase noise) is taken out per symbol.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.phy.config import PhyConfig
from multisc.phy.ofdm import grid_of
from multisc.phy.sync import BACKOFF

# Standard deviations the model's parameters may be expected to have: radians, radians per symbol, and the same per
# subcarrier of a 256-point FFT (20 ppm of clock offset turn neighbouring subcarriers apart by 1.5e-4 per symbol).
_PRIOR = (0.5, 0.15, 2e-3, 2e-4)
_EIGENVALUE_FLOOR = 1e-6
_NOISE_BLOCK = 8  # symbols whose pilots share a noise estimate
_NOISE_WEIGHT = 64  # how many pilots the burst's mean noise counts for in a block's estimate


@njit(cache=True, nogil=True)
def _project(basis, weight, raw):  # type: ignore[no-untyped-def]
    """Sum of the orthonormal rows of ``basis``, each times its weight and its share of ``raw``.

    Too small a product for a threaded BLAS, whose order of summation may also differ from run to run.
    """
    out = np.zeros(raw.size, np.complex64)
    for r in range(len(weight)):
        share = 0.0j
        for c in range(raw.size):
            share += np.conj(basis[r, c]) * raw[c]
        part = np.complex64(weight[r] * share)
        for c in range(raw.size):
            out[c] += part * basis[r, c]
    return out


class ChannelSmoother:
    """Wiener smoothing of a channel estimate over frequency, for delays up to the cyclic prefix.

    The prior is a uniform delay profile from 2 samples before the window's first sample to 2 behind the prefix.
    """

    def __init__(self, config: PhyConfig) -> None:
        carriers = grid_of(config).carriers
        delays = np.arange(-2, config.cyclic_prefix + BACKOFF + 3)
        response = np.exp(-2j * np.pi * np.outer(carriers, delays) / config.fft_size) / np.sqrt(delays.size)
        basis, singular, _ = np.linalg.svd(response, full_matrices=False)
        values = singular**2
        keep = values > _EIGENVALUE_FLOOR * values[0]
        self._basis = np.ascontiguousarray(basis[:, keep].T.astype(np.complex64))
        self._values = values[keep]  # they sum to the number of subcarriers: mean power 1 per subcarrier

    def smooth(self, raw: NDArray[np.complex64], noise: float) -> tuple[NDArray[np.complex64], float]:
        """Smooth a raw estimate.

        Args:
            raw: complex64 (occupied,), least squares per subcarrier.
            noise: variance of its error per subcarrier.

        Returns:
            The smoothed estimate, complex64 (occupied,), and the degrees of freedom it took from the data.
        """
        power = float(np.mean(raw.real**2 + raw.imag**2)) - noise
        ratio = noise / max(power, 1e-3 * noise, 1e-30)
        weight = self._values / (self._values + ratio)
        return _project(self._basis, weight, raw), float(weight.sum())


@lru_cache(maxsize=8)
def _smoother(fft_size: int, cyclic_prefix: int, occupied: int) -> ChannelSmoother:
    return ChannelSmoother(PhyConfig(fft_size=fft_size, cyclic_prefix=cyclic_prefix, occupied=occupied))


def smoother_of(config: PhyConfig) -> ChannelSmoother:
    """The smoother of a configuration, made once per numerology."""
    return _smoother(config.fft_size, config.cyclic_prefix, config.occupied)


@njit(cache=True, nogil=True)
def _fit(z, weight, times, carriers, noise, prior, model):  # type: ignore[no-untyped-def]
    """Fit the phase model to pilot products z = Y conj(H X), over a stretch of symbols that doubles up to the whole.

    Gauss-Newton on the imaginary parts; the first stretches are short, where the phase cannot have drifted far.
    """
    symbols, pilots = z.shape
    stretch = 2
    last = False
    rounds = 0
    while True:
        if stretch >= symbols:
            stretch = symbols
            last = True
        normal = np.zeros((4, 4))
        right = np.zeros(4)
        for i in range(4):
            normal[i, i] = 1.0 / (prior[i] * prior[i])
            right[i] = -model[i] / (prior[i] * prior[i])
        for s in range(stretch):
            t = times[s]
            common = model[0] + model[1] * t
            slope = model[2] + model[3] * t
            a0 = 0.0
            a1 = 0.0
            a2 = 0.0
            b0 = 0.0
            b1 = 0.0
            for p in range(pilots):
                k = carriers[s, p]
                angle = common + slope * k
                e = z[s, p].imag * np.cos(angle) - z[s, p].real * np.sin(angle)
                w = weight[s, p]
                a0 += w
                a1 += w * k
                a2 += w * k * k
                b0 += e
                b1 += e * k
            normal[0, 0] += a0 * 2.0 / noise
            normal[0, 1] += a0 * t * 2.0 / noise
            normal[1, 1] += a0 * t * t * 2.0 / noise
            normal[0, 2] += a1 * 2.0 / noise
            normal[0, 3] += a1 * t * 2.0 / noise
            normal[1, 3] += a1 * t * t * 2.0 / noise
            normal[2, 2] += a2 * 2.0 / noise
            normal[2, 3] += a2 * t * 2.0 / noise
            normal[3, 3] += a2 * t * t * 2.0 / noise
            right[0] += b0 * 2.0 / noise
            right[1] += b0 * t * 2.0 / noise
            right[2] += b1 * 2.0 / noise
            right[3] += b1 * t * 2.0 / noise
        normal[1, 2] = normal[0, 3]
        for i in range(4):
            for j in range(i):
                normal[i, j] = normal[j, i]
        model += np.linalg.solve(normal, right)
        if last:
            rounds += 1
            if rounds == 2:
                return
        stretch *= 2


@njit(cache=True, nogil=True)
def _smooth_phase(common, expected, out):  # type: ignore[no-untyped-def]
    """Angles of sliding means of ``common``, over as many symbols as the phase noise found in it allows."""
    symbols = common.size
    jumps = 0.0
    for s in range(1, symbols):
        step = common[s] * np.conj(common[s - 1])
        jumps += np.arctan2(step.imag, step.real) ** 2
    walk = 0.0
    if symbols > 1:
        # Two independent errors per jump make 2 * expected; only what is clearly above is a walk of the phase.
        walk = jumps / (symbols - 1) - 2.0 * expected * (1.0 + 4.0 / np.sqrt(symbols - 1.0))
    half = symbols
    if walk > 0.0:
        half = int(np.sqrt(expected / walk))
    if half > 16:
        half = 16
    total = 0.0j
    low = 0
    high = 0
    for s in range(symbols):
        while high < symbols and high <= s + half:
            total += common[high]
            high += 1
        while low < s - half:
            total -= common[low]
            low += 1
        out[s] = np.arctan2(total.imag, total.real)


@njit(cache=True, nogil=True)
def _equalise(grid, channel, phase, slope, noise, columns, carriers, scramble, first, out, variance):  # type: ignore[no-untyped-def]
    """One-tap zero-forcing of the data subcarriers, drift and scrambler taken out."""
    symbols, occupied = grid.shape
    data = columns.shape[1]
    inverse = np.empty(occupied, np.complex64)
    gain = np.empty(occupied, np.float32)
    turned = np.empty(occupied, np.complex64)
    for c in range(occupied):
        power = np.float32(channel[c].real ** 2 + channel[c].imag ** 2)
        power = max(power, np.float32(1e-35))
        inverse[c] = np.conj(channel[c]) / power
        gain[c] = np.float32(1.0) / power
    for s in range(symbols):
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
    """The estimates of one burst, sharpened as more of it becomes known: training, header, payload.

    Attributes:
        channel: complex64 (occupied,).
        noise: variance of the noise per subcarrier, in the units of the received samples.
        model: float64 (4,), the phase model.
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
        self.model = np.zeros(4)
        power = float(np.mean(sent.real**2 + sent.imag**2))
        difference = training[0] - training[1]
        self.noise = max(0.5 * float(np.mean(difference.real**2 + difference.imag**2)), 1e-30)
        self._raw = ((training[0] + training[1]) / (2.0 * sent)).astype(np.complex64)
        self.observations = 2.0 * power
        self._energy = float(np.sum(np.abs(training) ** 2))  # of the training, to get the residual without keeping it
        self._count = 2 * sent.size
        self.channel, self._freedom = self._smoother.smooth(self._raw, self.noise / self.observations)

    def times(self, first: int, count: int) -> NDArray[np.float64]:
        """Times of header and payload symbols in the phase model: float64 (count,)."""
        # From the middle of the two long symbols to the middle of symbol 0, then one symbol at a time.
        lead = (1.5 * self._config.fft_size + self._config.cyclic_prefix) / self._config.symbol_samples
        return lead + np.arange(first, first + count)

    def fit(self, grid: NDArray[np.complex64], first: int = 0) -> None:
        """Fit the phase model to the pilots of the symbols from ``first`` on.

        Args:
            grid: complex64 (symbols, occupied), received.
        """
        z, weight, carriers = self._pilot_products(grid, first)
        scale = 256.0 / self._config.fft_size
        prior = np.array([_PRIOR[0], _PRIOR[1], _PRIOR[2] * scale, _PRIOR[3] * scale])
        _fit(z, weight, self.times(first, len(grid)), carriers, self.noise, prior, self.model)

    def _pilot_products(
        self, grid: NDArray[np.complex64], first: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32], NDArray[np.float64]]:
        columns = self._grid.pilot_columns_of(first, len(grid))
        channel = self.channel[columns]
        received = np.take_along_axis(grid, columns, axis=1)
        z = received * np.conj(channel * self._grid.pilots[first : first + len(grid)])
        return z, channel.real**2 + channel.imag**2, self._grid.carriers[columns].astype(np.float64)

    def learn(self, grid: NDArray[np.complex64], known: NDArray[np.complex64], first: int = 0) -> None:
        """Sharpen channel and noise by symbols whose every subcarrier is known, such as a decoded header's.

        Args:
            grid: complex64 (symbols, occupied), received.
            known: the same, sent; of unit power on average.
        """
        times = self.times(first, len(grid))[:, None]
        m = self.model
        phase = m[0] + m[1] * times + self._grid.carriers * (m[2] + m[3] * times)
        turned = grid * np.exp(-1j * phase).astype(np.complex64)
        weight = np.sum(known.real**2 + known.imag**2, axis=0)
        cross = np.sum(turned * np.conj(known), axis=0)
        total = self.observations + weight
        self._raw = ((self.observations * self._raw + cross) / total).astype(np.complex64)
        self._energy += float(np.sum(np.abs(grid) ** 2))
        self._count += grid.size
        self.observations = float(np.mean(total))
        self._smooth_and_measure(total)

    def _smooth_and_measure(self, weight: NDArray[np.float32]) -> None:
        self.channel, self._freedom = self._smoother.smooth(self._raw, self.noise / self.observations)
        # sum |Y - HX|^2 = sum |Y|^2 - 2 Re sum conj(H) raw w + sum |H|^2 w, with raw the least-squares estimate.
        h, raw, w = self.channel.astype(np.complex128), self._raw.astype(np.complex128), weight.astype(np.float64)
        residual = self._energy - 2.0 * float(np.sum(w * (np.conj(h) * raw).real)) + float(np.sum(w * np.abs(h) ** 2))
        self.noise = max(residual / (self._count - self._freedom), 1e-12 * self._energy / self._count, 1e-30)

    @property
    def snr(self) -> float:
        """Es/N0 per channel use, linear: mean power of the channel over the noise, freed from its own noise."""
        power = float(np.mean(np.abs(self.channel) ** 2))
        bias = self.noise * self._freedom / (self.observations * self._config.occupied)
        return max(power - bias, 1e-3 * self.noise) / self.noise

    def equalise(
        self, grid: NDArray[np.complex64], first: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32], float]:
        """Equalise the data subcarriers of the symbols from ``first`` on.

        Args:
            grid: complex64 (symbols, occupied), received.

        Returns:
            Symbols, complex64 (symbols, data_carriers); the variance of their noise, float32 of that shape; and the
            root-mean-square error of the equalised pilots.
        """
        times = self.times(first, len(grid))
        m = self.model
        z, weight, carriers = self._pilot_products(grid, first)
        phase = m[0] + m[1] * times
        slope = m[2] + m[3] * times
        turned = z * np.exp(-1j * (phase[:, None] + slope[:, None] * carriers)).astype(np.complex64)
        common = turned.sum(axis=1).astype(np.complex128)
        power = weight.sum(axis=1)
        rest = np.empty(len(grid))
        _smooth_phase(common, 0.5 * self.noise / float(power.mean()), rest)
        residual = turned * np.exp(-1j * rest)[:, None].astype(np.complex64) - weight
        error = (residual.real**2 + residual.imag**2) / weight
        evm = float(np.sqrt(np.mean(error / weight)))
        noise = self._noise_profile(error)
        symbols = np.empty((len(grid), self._config.data_carriers), np.complex64)
        variance = np.empty(symbols.shape, np.float32)
        _equalise(
            grid, self.channel, phase + rest, slope, noise, self._grid.data_columns, self._grid.carriers,
            self._grid.scramble, first, symbols, variance,
        )  # fmt: skip
        return symbols, variance, evm

    def _noise_profile(self, error: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise of each symbol: the pilots of its block, drawn towards the burst's mean."""
        count, pilots = error.shape
        starts = np.arange(0, count, _NOISE_BLOCK)
        sums = np.add.reduceat(error.sum(axis=1, dtype=np.float64), starts)
        sizes = np.minimum(_NOISE_BLOCK, count - starts) * pilots
        blocks = (sums + _NOISE_WEIGHT * self.noise) / (sizes + _NOISE_WEIGHT)
        return np.repeat(blocks, _NOISE_BLOCK)[:count].astype(np.float32)


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
        return float(np.abs(self.channel[0]) ** 2) / self.noise

    def fit(self, grid: NDArray[np.complex64], first: int = 0) -> None:
        """There is nothing to fit."""

    def learn(self, grid: NDArray[np.complex64], known: NDArray[np.complex64], first: int = 0) -> None:
        """There is nothing to learn."""

    def equalise(
        self, grid: NDArray[np.complex64], first: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32], float]:
        """As ``BurstEstimator.equalise``, with what is known."""
        z, weight, _ = self._pilot_products(grid, first)
        still = np.zeros(len(grid))
        symbols = np.empty((len(grid), self._config.data_carriers), np.complex64)
        variance = np.empty(symbols.shape, np.float32)
        _equalise(
            grid, self.channel, still, still, np.full(len(grid), self.noise, np.float32), self._grid.data_columns,
            self._grid.carriers, self._grid.scramble, first, symbols, variance,
        )  # fmt: skip
        evm = float(np.sqrt(np.mean(np.abs(z / weight - 1.0) ** 2)))
        return symbols, variance, evm
