"""OFDM symbols: the resource grid, its pilots and scrambler, and the way to samples and back.

A grid has one row per OFDM symbol, counted from the first header symbol, and one column per occupied subcarrier in
ascending order of frequency, DC left out.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from multisc.phy.config import MAX_PAYLOAD_SYMBOLS, PILOT_SHIFT, PILOT_SPACING, PhyConfig
from multisc.phy.sequences import qpsk, rotations

PILOT_SEED = 0x50494C
SCRAMBLE_SEED = 0x534352
PILOT_PERIOD = PILOT_SPACING // PILOT_SHIFT
MAX_HEADER_SYMBOLS = 512  # few carriers cannot hold the longest description in as many; the codec refuses more
MAX_SYMBOLS = MAX_HEADER_SYMBOLS + MAX_PAYLOAD_SYMBOLS  # of any burst


class Grid:
    """The fixed parts of the resource grid of a configuration. Cached by ``grid_of``.

    Attributes:
        carriers: signed subcarrier of each column, int64 (occupied,).
        bins: FFT bin of each column, int64 (occupied,).
        pilot_columns: int64 (4, pilots): columns of the pilots in symbol s at row s mod 4.
        data_columns: int64 (4, data_carriers): the other columns, ascending.
        pilots: complex64 (MAX_SYMBOLS, pilots), unit power.
        pilot_carriers: float64 (MAX_SYMBOLS, pilots), their signed subcarriers.
        scramble: complex64 (MAX_SYMBOLS, data_carriers), quarter turns.
    """

    def __init__(self, config: PhyConfig) -> None:
        half = config.occupied // 2
        self.carriers = np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)])
        self.bins = self.carriers % config.fft_size
        columns = np.arange(config.occupied)
        pilot, data = [], []
        for row in range(PILOT_PERIOD):
            is_pilot = columns % PILOT_SPACING == 1 + PILOT_SHIFT * row
            pilot.append(columns[is_pilot])
            data.append(columns[~is_pilot])
        self.pilot_columns = np.array(pilot)
        self.data_columns = np.array(data)
        self.pilot_carriers = self.carriers[self.pilot_columns_of(0, MAX_SYMBOLS)].astype(np.float64)
        self.pilots = qpsk(PILOT_SEED, MAX_SYMBOLS * config.pilots).reshape(MAX_SYMBOLS, -1)
        self.scramble = rotations(SCRAMBLE_SEED, MAX_SYMBOLS * config.data_carriers).reshape(MAX_SYMBOLS, -1)

    def fill(self, data: NDArray[np.complex64], first: int = 0) -> NDArray[np.complex64]:
        """Scramble data symbols and put them on the grid with the pilots.

        Args:
            data: complex64 (symbols, data_carriers).
            first: index of the first of these symbols in the burst.

        Returns:
            complex64 (symbols, occupied).
        """
        grid = np.empty((len(data), len(self.carriers)), np.complex64)
        data = np.ascontiguousarray(data, np.complex64)
        _fill(data, self.scramble, self.pilots, self.data_columns, self.pilot_columns, first, grid)
        return grid

    def pilot_columns_of(self, first: int, count: int) -> NDArray[np.int64]:
        """Columns of the pilots of ``count`` symbols from ``first``: int64 (count, pilots)."""
        return self.pilot_columns[np.arange(first, first + count) % PILOT_PERIOD]

    def data_columns_of(self, first: int, count: int) -> NDArray[np.int64]:
        """Columns of the data of ``count`` symbols from ``first``: int64 (count, data_carriers)."""
        return self.data_columns[np.arange(first, first + count) % PILOT_PERIOD]


@njit(cache=True, nogil=True)
def _fill(data, scramble, pilots, data_columns, pilot_columns, first, grid):  # type: ignore[no-untyped-def]
    for s in range(len(data)):
        row, symbol = (first + s) % PILOT_PERIOD, first + s
        for d in range(data.shape[1]):
            grid[s, data_columns[row, d]] = data[s, d] * scramble[symbol, d]
        for p in range(pilots.shape[1]):
            grid[s, pilot_columns[row, p]] = pilots[symbol, p]


@lru_cache(maxsize=8)
def _grid(fft_size: int, cyclic_prefix: int, occupied: int) -> Grid:
    return Grid(PhyConfig(fft_size=fft_size, cyclic_prefix=cyclic_prefix, occupied=occupied))


def grid_of(config: PhyConfig) -> Grid:
    """The grid of a configuration, made once per numerology."""
    return _grid(config.fft_size, config.cyclic_prefix, config.occupied)


def to_samples(grid: NDArray[np.complex64], config: PhyConfig) -> NDArray[np.complex64]:
    """Modulate a grid: unitary inverse FFT, then the cyclic prefix in front of each symbol.

    Args:
        grid: complex64 (symbols, occupied).

    Returns:
        complex64 (symbols * symbol_samples,); mean power occupied / fft_size for unit-power symbols.
    """
    count, n, cp = len(grid), config.fft_size, config.cyclic_prefix
    half = config.occupied // 2
    spectrum = np.zeros((count, n), np.complex64)
    spectrum[:, n - half :] = grid[:, :half]
    spectrum[:, 1 : half + 1] = grid[:, half:]
    samples = np.empty((count, n + cp), np.complex64)
    samples[:, cp:] = scipy.fft.ifft(spectrum, axis=1, norm="ortho", overwrite_x=True)
    samples[:, :cp] = samples[:, n:]
    return samples.ravel()


@njit(cache=True, nogil=True)
def _windows(samples, start, stride, count, size, step, origin, constant, out):  # type: ignore[no-untyped-def]
    """Cut ``count`` windows, take the constant off and turn each sample by exp(-j * step * (index - origin))."""
    turn = complex(np.cos(step), -np.sin(step))
    turn4 = (turn * turn) * (turn * turn)
    for s in range(count):
        at = start + s * stride
        angle = step * (at - origin)
        p0 = complex(np.cos(angle), -np.sin(angle))
        p1 = p0 * turn
        p2 = p1 * turn
        p3 = p2 * turn
        # Four independent recurrences, so that no multiplication waits for another; sizes are multiples of 4.
        for i in range(0, size, 4):
            out[s, i] = (samples[at + i] - constant) * p0
            out[s, i + 1] = (samples[at + i + 1] - constant) * p1
            out[s, i + 2] = (samples[at + i + 2] - constant) * p2
            out[s, i + 3] = (samples[at + i + 3] - constant) * p3
            p0 *= turn4
            p1 *= turn4
            p2 *= turn4
            p3 *= turn4


def to_grid(
    samples: NDArray[np.complex64],
    start: int,
    count: int,
    stride: int,
    timing: tuple[float, float, complex],
    config: PhyConfig,
    out: NDArray[np.complex64] | None = None,
) -> NDArray[np.complex64]:
    """Demodulate symbols: cut the windows, take the carrier offset out, unitary FFT.

    Args:
        samples: complex64; must cover every window.
        start: index of the first sample of the first window (behind its cyclic prefix).
        count: number of symbols.
        stride: samples from one window to the next.
        timing: carrier offset in subcarriers, the sample index at which its phase is zero, and what is added to every
            sample.
        out: complex64 (count, occupied) to put the result in; None makes an array.

    Returns:
        complex64 (count, occupied).
    """
    n, half = config.fft_size, config.occupied // 2
    if start < 0 or start + (count - 1) * stride + n > samples.size:
        raise IndexError("the samples do not cover the OFDM symbols")
    cfo, origin, constant = timing
    windows = np.empty((count, n), np.complex64)
    step = 2.0 * np.pi * cfo / n
    _windows(samples, start, stride, count, n, step, float(origin), np.complex64(constant), windows)
    spectrum = scipy.fft.fft(windows, axis=1, norm="ortho", overwrite_x=True)
    grid = np.empty((count, config.occupied), np.complex64) if out is None else out
    grid[:, :half] = spectrum[:, n - half :]
    grid[:, half:] = spectrum[:, 1 : half + 1]
    return grid
