"""Estimates of the channel over frequency, and of how it changes over a burst."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.phy.config import PhyConfig
from multisc.phy.ofdm import PILOT_PERIOD, grid_of
from multisc.phy.sync import BACKOFF

_EIGENVALUE_FLOOR = 1e-6
_BLOCK = 2 * PILOT_PERIOD  # symbols from which a change is estimated: each pilot column occurs twice
_SIGNIFICANCE = 4.0  # deviations of the noise that a change must exceed
_PROFILE_FLOOR = 1e-3  # of the strongest delay: what a delay without power may still change by


@njit(cache=True, nogil=True, error_model="numpy")
def _project(basis, across, weight, raw):  # type: ignore[no-untyped-def]
    """Sum of the orthonormal rows of ``basis``, each times its weight and its share of ``raw``.

    Too small a product for a threaded BLAS, whose order of summation may also differ from run to run. Complex numbers
    come as real and imaginary parts in turn; ``across`` is the basis (columns, 2, rows), real parts, then imaginary.
    """
    rows, columns = weight.size, len(across)
    share_real, share_imaginary = np.zeros(rows), np.zeros(rows)
    for c in range(columns):
        x, y = raw[2 * c], raw[2 * c + 1]
        real, imaginary = across[c, 0], across[c, 1]
        for r in range(rows):
            share_real[r] += real[r] * x + imaginary[r] * y
        for r in range(rows):
            share_imaginary[r] += real[r] * y - imaginary[r] * x
    out = np.zeros(2 * columns, np.float32)
    for r in range(rows):
        u, v = np.float32(weight[r] * share_real[r]), np.float32(weight[r] * share_imaginary[r])
        row = basis[r]
        for c in range(columns):
            x, y = row[2 * c], row[2 * c + 1]
            out[2 * c] += u * x - v * y
            out[2 * c + 1] += u * y + v * x
    return out


@njit(cache=True, nogil=True)
def _block_means(difference, starts, place, means):  # type: ignore[no-untyped-def]
    """Mean difference at each pilot column over the ``_BLOCK`` symbols from each start.

    ``place`` (PILOT_PERIOD, pilots) tells which of the columns of ``means`` the pilots of a symbol fall on.
    """
    weight = np.float32(PILOT_PERIOD / _BLOCK)
    for block in range(starts.size):
        for s in range(starts[block], starts[block] + _BLOCK):
            columns = place[s % PILOT_PERIOD]
            for p in range(columns.size):
                means[columns[p], block] += difference[s, p] * weight


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
        rows = np.ascontiguousarray(basis[:, keep].T.astype(np.complex64))
        self._basis = rows.view(np.float32)
        self._across = np.ascontiguousarray(np.stack([rows.real.T, rows.imag.T], axis=1))
        self._values = values[keep]  # they sum to the number of subcarriers: mean power 1 per subcarrier

    def smooth(self, raw: NDArray[np.complex64], noise: float) -> NDArray[np.complex64]:
        """Smooth a raw estimate.

        Args:
            raw: complex64 (occupied,), least squares per subcarrier.
            noise: variance of its error per subcarrier.

        Returns:
            complex64 (occupied,).
        """
        power = float(np.mean(raw.real**2 + raw.imag**2)) - noise
        ratio = noise / max(power, 1e-3 * noise, 1e-30)
        weight = self._values / (self._values + ratio)
        return _project(self._basis, self._across, weight, raw.view(np.float32)).view(np.complex64)


@lru_cache(maxsize=8)
def _smoother(fft_size: int, cyclic_prefix: int, occupied: int) -> ChannelSmoother:
    return ChannelSmoother(PhyConfig(fft_size=fft_size, cyclic_prefix=cyclic_prefix, occupied=occupied))


def smoother_of(config: PhyConfig) -> ChannelSmoother:
    """The smoother of a configuration, made once per numerology."""
    return _smoother(config.fft_size, config.cyclic_prefix, config.occupied)


class ChannelTracker:
    """Changes of the channel over a burst, from its scattered pilots.

    Every eight symbols the pilots give the difference to the reference on every third subcarrier; it is smoothed over
    frequency under the reference's own delay profile and joined linearly over time. A difference that noise explains
    is taken for none.
    """

    def __init__(self, config: PhyConfig) -> None:
        grid = grid_of(config)
        self._columns = np.sort(grid.pilot_columns.ravel())
        self._place = np.searchsorted(self._columns, grid.pilot_columns)
        delays = np.arange(-2, config.cyclic_prefix + BACKOFF + 3)
        self._response = np.exp(-2j * np.pi * np.outer(grid.carriers, delays) / config.fft_size)
        self._pilot_response = self._response[self._columns]
        self._gram = self._pilot_response.conj().T @ self._pilot_response

    def follow(
        self, reference: NDArray[np.complex64], difference: NDArray[np.complex64]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float64], float]:
        """Estimate the channel at several times.

        Args:
            reference: complex64 (occupied,), the channel over the burst's beginning.
            difference: complex64 (symbols, pilots), the channel at the pilots of the burst's symbols from the first
                on, drift taken out, less the reference there.

        Returns:
            The channel at n times, complex64 (n, occupied); the times, float64 (n,), counted in symbols from the
            first; and the part of the pilots' noise that the fit took away, 0 to 1. One time if nothing changes.
        """
        count = len(difference)
        still = reference[None], np.zeros(1), 0.0
        if count < _BLOCK:
            return still
        starts = np.arange(0, count - _BLOCK + 1, _BLOCK)
        if starts[-1] < count - _BLOCK:
            starts = np.append(starts, count - _BLOCK)
        apart = difference[PILOT_PERIOD:] - difference[:-PILOT_PERIOD]  # the same columns, one period later
        noise = 0.5 * float(np.mean(apart.real**2 + apart.imag**2)) * PILOT_PERIOD / _BLOCK
        means = np.zeros((self._columns.size, starts.size), np.complex128)
        _block_means(difference, starts, self._place, means)
        changes = means.T
        power = float(np.mean(changes.real**2 + changes.imag**2)) - noise
        if power <= _SIGNIFICANCE * noise / np.sqrt(changes.size):
            return still
        profile = np.abs(self._response.conj().T @ reference) ** 2
        profile += _PROFILE_FLOOR * profile.max()
        shape = np.sqrt(profile / profile.sum())
        normal = shape[:, None] * self._gram * shape
        inverse = np.linalg.inv(normal + noise / power * np.eye(shape.size))
        matched = shape * (changes @ self._pilot_response.conj())
        smooth = (matched @ inverse.T * shape) @ self._response.T
        freedom = float(np.sum(inverse * normal.T).real)
        taken = min(freedom * len(starts) / difference.size, 0.9)
        return (reference + smooth).astype(np.complex64), starts + 0.5 * (_BLOCK - 1), taken


@lru_cache(maxsize=8)
def _tracker(fft_size: int, cyclic_prefix: int, occupied: int) -> ChannelTracker:
    return ChannelTracker(PhyConfig(fft_size=fft_size, cyclic_prefix=cyclic_prefix, occupied=occupied))


def tracker_of(config: PhyConfig) -> ChannelTracker:
    """The tracker of a configuration, made once per numerology."""
    return _tracker(config.fft_size, config.cyclic_prefix, config.occupied)
