"""Drift of phase and clock over a burst, from its pilots.

Phases follow phase(s, k) = m0 + m1 t + k (m2 + m3 t) in radians, with t the time in OFDM symbols from the middle of
the long training and k the signed subcarrier: m1 is what the carrier correction left, m3 the clock offset. Pilot
products are z = Y conj(H X): received, times the conjugate of what the channel estimate expects.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Standard deviations the model's parameters may be expected to have: radians, radians per symbol, and the same per
# subcarrier of a 256-point FFT (20 ppm of clock offset turn neighbouring subcarriers apart by 1.5e-4 per symbol).
PRIOR = (0.5, 0.15, 2e-3, 2e-4)
_LONGEST_MEAN = 16  # symbols to either side in a mean of phases


@njit(cache=True, nogil=True)
def fit_line(z, weight, times, carriers, noise, prior, model):  # type: ignore[no-untyped-def]
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
def _sliding(values, half, out):  # type: ignore[no-untyped-def]
    """Sums of the values at most ``half`` away."""
    total = 0.0j
    low = 0
    high = 0
    for s in range(values.size):
        while high < values.size and high <= s + half:
            total += values[high]
            high += 1
        while low < s - half:
            total -= values[low]
            low += 1
        out[s] = total


@njit(cache=True, nogil=True)
def _smooth(common, expected, out):  # type: ignore[no-untyped-def]
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
    half = _LONGEST_MEAN
    if walk > 0.0:
        half = min(half, int(np.sqrt(expected / walk)))
    mean = np.empty(symbols, np.complex128)
    _sliding(common, half, mean)
    for s in range(symbols):
        out[s] = np.arctan2(mean[s].imag, mean[s].real)


@njit(cache=True, nogil=True)
def _turned(z, times, carriers, model, symbols, out, common):  # type: ignore[no-untyped-def]
    """Pilot products with the model taken out, and their sums over each symbol."""
    for s in range(symbols):
        base = model[0] + model[1] * times[s]
        slope = model[2] + model[3] * times[s]
        total = 0.0j
        for p in range(z.shape[1]):
            angle = base + slope * carriers[s, p]
            value = z[s, p] * complex(np.cos(angle), -np.sin(angle))
            out[s, p] = value
            total += value
        common[s] = total


@njit(cache=True, nogil=True)
def track(z, weight, times, carriers, noise, prior, model, phase):  # type: ignore[no-untyped-def]
    """Follow phase and clock over a whole burst, starting from a model that fits its first symbols.

    The clock is fitted to phases relative to those of the neighbouring symbols, so that fading and phase noise, which
    turn all subcarriers alike, do not disturb it. ``model`` is updated; ``phase`` becomes the phase of each symbol at
    k = 0.
    """
    symbols, pilots = z.shape
    value = np.empty((symbols, pilots), np.complex128)
    common = np.zeros(symbols, np.complex128)
    near = np.zeros(symbols, np.complex128)
    stretch = min(16, symbols)
    while True:
        _turned(z, times, carriers, model, stretch, value, common)
        _sliding(common[:stretch], 2, near)
        n00 = 1.0 / (prior[2] * prior[2])
        n01 = 0.0
        n11 = 1.0 / (prior[3] * prior[3])
        r0 = -model[2] * n00
        r1 = -model[3] * n11
        for s in range(stretch):
            size = abs(near[s])
            if size == 0.0:
                continue
            back = np.conj(near[s]) / size
            a2 = 0.0
            b1 = 0.0
            for p in range(pilots):
                k = carriers[s, p]
                a2 += weight[s, p] * k * k
                b1 += (value[s, p] * back).imag * k
            t = times[s]
            n00 += a2 * 2.0 / noise
            n01 += a2 * t * 2.0 / noise
            n11 += a2 * t * t * 2.0 / noise
            r0 += b1 * 2.0 / noise
            r1 += b1 * t * 2.0 / noise
        determinant = n00 * n11 - n01 * n01
        model[2] += (r0 * n11 - r1 * n01) / determinant
        model[3] += (r1 * n00 - r0 * n01) / determinant
        if stretch == symbols:
            break
        stretch = min(2 * stretch, symbols)

    # A straight line through the phases takes out what is left of the carrier offset.
    _turned(z, times, carriers, model, symbols, value, common)
    _sliding(common, _LONGEST_MEAN // 2, near)
    level = 0.0
    sums = np.zeros(5)
    for s in range(symbols):
        if s > 0:
            step = near[s] * np.conj(near[s - 1])
            level += np.arctan2(step.imag, step.real)
        else:
            level = np.arctan2(near[0].imag, near[0].real)
        w = abs(common[s])
        t = times[s]
        sums += w * np.array([1.0, t, t * t, level, level * t])
    determinant = sums[0] * sums[2] - sums[1] * sums[1]
    if symbols > 2 and determinant > 0.0:
        offset = (sums[3] * sums[2] - sums[4] * sums[1]) / determinant
        rate = (sums[4] * sums[0] - sums[3] * sums[1]) / determinant
        model[0] += offset
        model[1] += rate
        for s in range(symbols):
            angle = offset + rate * times[s]
            common[s] *= complex(np.cos(angle), -np.sin(angle))
    expected = 0.5 * noise * symbols / max(weight.sum(), 1e-30)
    _smooth(common, expected, phase)
    for s in range(symbols):
        phase[s] += model[0] + model[1] * times[s]
