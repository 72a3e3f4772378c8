"""Symbols and soft bits: BPSK to 256-QAM after TS 38.211 5.1, and real features as analog symbols.

Square QAM is two independent Gray-labelled amplitude modulations, so each dimension is demapped by itself: 256-QAM
costs 16 distances per dimension, not 256. The kernels are compiled by numba, release the GIL and start no threads.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.errors import BadInputError

BITS_PER_SYMBOL = {"bpsk": 1, "qpsk": 2, "16qam": 4, "64qam": 6, "256qam": 8}
METHODS = ("exact", "maxlog")
_BLOCK = 512  # values that the exact demapper treats at a time
_NOISE_FLOOR = 1e-9  # a noiseless channel gives large, finite ratios
_LARGEST = np.finfo(np.float32).max  # beyond it, or not comparable: not finite


def bits_per_symbol(name: str) -> int:
    """Return how many bits one symbol carries.

    Raises:
        BadInputError: for a name that is no digital modulation.
    """
    try:
        return BITS_PER_SYMBOL[name]
    except KeyError:
        raise BadInputError(f"modulation {name!r}: must be one of {', '.join(BITS_PER_SYMBOL)}") from None


def constellation(name: str) -> NDArray[np.complex64]:
    """Return the points by label, complex64 of shape (2**bits,), unit mean power.

    The label is the symbol's bits read as an integer, first bit most significant.
    """
    bits = bits_per_symbol(name)
    labels = (np.arange(1 << bits)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return map_bits(labels.astype(np.uint8).ravel(), name)


def map_bits(bits: NDArray[np.uint8], name: str) -> NDArray[np.complex64]:
    """Map bits to symbols of unit mean power (TS 38.211 5.1.2 to 5.1.6).

    Even bits of a symbol set its real part, odd bits its imaginary part; BPSK lies on the diagonal, as in
    the standard.

    Args:
        bits: uint8 of 0 and 1, shape (n * bits_per_symbol,).
        name: a digital modulation.

    Returns:
        complex64 of shape (n,).

    Raises:
        BadInputError: for an unknown modulation, or a number of bits that does not divide into symbols.
    """
    per_symbol = bits_per_symbol(name)
    flat = np.ascontiguousarray(bits, np.uint8).ravel()
    if flat.size % per_symbol:
        raise BadInputError(f"{flat.size} bits do not divide into symbols of {per_symbol} bits ({name})")
    levels = _amplitudes(_dimension_bits(name))
    out = np.empty(flat.size // per_symbol, np.complex64)
    if name == "bpsk":
        out.real = out.imag = levels[flat]
    else:
        _map_square(flat, per_symbol // 2, levels, out.view(np.float32))
    return out


def demap(
    symbols: NDArray[np.complex64],
    noise_variance: float | NDArray[np.floating],
    name: str,
    method: str = "exact",
) -> NDArray[np.float32]:
    """Return the log-likelihood ratios log(p(0)/p(1)) of the bits of received symbols.

    The symbols are equalised: y = x + n, with x of unit mean power and complex Gaussian n. Bits are equally likely.

    Args:
        symbols: complex, shape (n,).
        noise_variance: N0 of the complex noise, a scalar or one per symbol; at least 0. Infinity erases a symbol: its
            ratios are 0. So are those of a symbol or a variance that is not a number.
        name: a digital modulation.
        method: "exact" (log of the sums of likelihoods) or "maxlog" (the nearest point of each sum only; two to five
            times as fast). They are the same for BPSK and QPSK, and beyond magnitudes of 80, where "exact" takes the
            max-log value (at most log 2 off).

    Returns:
        float32 of shape (n * bits_per_symbol,), positive where 0 is the likelier bit.

    Raises:
        BadInputError: for an unknown modulation or method, a negative variance, or one of another shape.
    """
    per_symbol = bits_per_symbol(name)
    if method not in METHODS:
        raise BadInputError(f"demapping method {method!r}: must be one of {', '.join(METHODS)}")
    flat = np.ascontiguousarray(symbols, np.complex64).ravel()
    variance = np.ascontiguousarray(noise_variance, np.float32).ravel()
    if variance.size not in (1, flat.size):
        raise BadInputError(f"{variance.size} noise variances for {flat.size} symbols")
    if (variance < 0).any():
        raise BadInputError("the noise variance is negative: it must be at least 0")
    out = np.empty(flat.size * per_symbol, np.float32)
    parts = flat.view(np.float32)
    if name == "bpsk":
        _demap_bpsk(parts, variance, out)
    elif name == "qpsk":
        slopes, _ = _maxlog_lines(1)  # one bit: the same line everywhere, through the origin
        _demap_qpsk(parts, variance, slopes[0, 0], _grid_scale(1), out)
    elif method == "maxlog":
        slopes, offsets = _maxlog_lines(per_symbol // 2)
        _demap_maxlog(parts, variance, slopes, offsets, _grid_scale(per_symbol // 2), out)
    else:
        dimension = per_symbol // 2
        slopes, offsets = _maxlog_lines(dimension)
        _demap_exact(parts, variance, _ascending_labels(dimension), slopes, offsets, _grid_scale(dimension), out)
    return out


def map_features(values: NDArray[np.floating]) -> tuple[NDArray[np.complex64], float]:
    """Map real features to analog symbols of unit mean power, two features to one symbol.

    Args:
        values: real, finite, shape (n,).

    Returns:
        symbols: complex64 of shape (ceil(n/2),): features 0, 2, 4 ... are the real parts, 1, 3, 5 ... the imaginary
            parts; a last odd place is 0. Mean power 1 (0 if all features are 0, or subnormal in float32).
        gain: root-mean-square magnitude of the unscaled symbols, exactly representable in float32: the factor by
            which the receiver multiplies to get features back.

    Raises:
        BadInputError: when a feature is not finite, or too large for float32.
    """
    flat = np.asarray(values, np.float64).ravel()
    if not np.isfinite(flat).all():
        raise BadInputError("cannot map features: a value is not finite")
    padded = np.zeros(flat.size + flat.size % 2)
    padded[: flat.size] = flat
    pairs = padded.view(np.complex128)
    peak = float(np.abs(padded).max(initial=0.0))
    if peak == 0.0:
        return np.zeros(pairs.size, np.complex64), 0.0
    scaled = pairs / peak  # so that squares neither overflow nor vanish
    magnitude = peak * np.sqrt(np.mean(scaled.real**2 + scaled.imag**2))
    limits = np.finfo(np.float32)
    if magnitude < limits.tiny:  # float32 has no normal number for the gain: as good as silence
        return np.zeros(pairs.size, np.complex64), 0.0
    if magnitude > limits.max:
        raise BadInputError("cannot map features: their magnitude is outside the range of float32")
    gain = float(np.float32(magnitude))
    return (pairs / gain).astype(np.complex64), gain


def demap_features(symbols: NDArray[np.complex64], gain: float, count: int) -> NDArray[np.float32]:
    """Scale analog symbols back to real features.

    The scaling is plain (unbiased), not the linear least-squares one that shrinks by 1 / (1 + N0): what a decoder
    gets is the sent feature plus noise, the channel that decoders are trained on. An erased symbol should come as 0,
    the mean of features.

    Args:
        symbols: complex, shape (n,); equalised. Parts that are not finite count as 0.
        gain: as ``map_features`` returned it; finite, at least 0.
        count: how many features to return, at most 2 n.

    Returns:
        float32 of shape (count,).

    Raises:
        BadInputError: for a gain or a count outside its range.
    """
    flat = np.ascontiguousarray(symbols, np.complex64).ravel()
    if not (np.isfinite(gain) and gain >= 0):
        raise BadInputError(f"feature gain {gain}: must be a finite number, at least 0")
    if not 0 <= count <= 2 * flat.size:
        raise BadInputError(f"{count} features do not fit {flat.size} symbols of two")
    parts = flat.view(np.float32)[:count]
    return np.where(np.isfinite(parts), parts, np.float32(0)) * np.float32(gain)


def _dimension_bits(name: str) -> int:
    return max(1, bits_per_symbol(name) // 2)


def _integer_levels(bits: int) -> NDArray[np.int64]:
    """Odd integer level of each label, TS 38.211 5.1: s0 (2^(m-1) - s1 (2^(m-2) - ...)) with s = 1 - 2 b."""
    labels = (np.arange(1 << bits)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    signs = 1 - 2 * labels
    level = signs[:, -1]
    for i in range(bits - 2, -1, -1):
        level = signs[:, i] * ((1 << (bits - 1 - i)) - level)
    return level


@cache
def _grid_scale(bits: int) -> np.float32:
    """Return the factor from received amplitude to the grid of odd integers; unit power over two dimensions."""
    return np.float32(np.sqrt(2.0 * np.mean(_integer_levels(bits) ** 2.0)))


@cache
def _amplitudes(bits: int) -> NDArray[np.float32]:
    """Amplitude of each label in one of two dimensions, so that both together have unit mean power."""
    return (_integer_levels(bits) / float(_grid_scale(bits))).astype(np.float32)


@cache
def _ascending_labels(bits: int) -> NDArray[np.uint8]:
    """Bits of each level from the lowest to the highest, uint8 of shape (2**bits, bits)."""
    order = np.argsort(_integer_levels(bits))
    return ((order[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)


@cache
def _maxlog_lines(bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Max-log ratios as straight lines over the unit intervals of the integer grid.

    Between two integers the nearest level of either bit value does not change, so N0 * ratio is slope * u + offset,
    with u the amplitude on the grid.

    Returns:
        slopes and offsets, float32 of shape (2 * 2**bits, bits): interval, bit.
    """
    levels = np.sort(_integer_levels(bits))
    labels = _ascending_labels(bits)
    middle = np.arange(2 * levels.size) - levels.size + 0.5
    distance = np.abs(middle[:, None] - levels)
    slopes = np.empty((middle.size, bits), np.float32)
    offsets = np.empty_like(slopes)
    power = float(_grid_scale(bits)) ** 2
    for b in range(bits):
        zero = levels[np.where(labels[:, b] == 0, distance, np.inf).argmin(axis=1)]
        one = levels[np.where(labels[:, b] == 1, distance, np.inf).argmin(axis=1)]
        slopes[:, b] = 2.0 * (zero - one) / power
        offsets[:, b] = (one**2 - zero**2) / power
    return slopes, offsets


@njit(cache=True, nogil=True)
def _map_square(bits, half, levels, out):  # type: ignore[no-untyped-def]
    """Bits to interleaved real and imaginary amplitudes; ``half`` bits per dimension."""
    for n in range(out.size // 2):
        real = 0
        imaginary = 0
        at = n * 2 * half
        for b in range(half):
            real = 2 * real + (bits[at + 2 * b] & 1)
            imaginary = 2 * imaginary + (bits[at + 2 * b + 1] & 1)
        out[2 * n] = levels[real]
        out[2 * n + 1] = levels[imaginary]


@njit(inline="always", error_model="numpy")
def _precision(variance, n):  # type: ignore[no-untyped-def]
    """1 / N0 of symbol n; 0 where it is erased."""
    v = variance[0] if variance.size == 1 else variance[n]
    inverse = np.float32(1.0) / max(v, np.float32(_NOISE_FLOOR))
    return inverse if v <= _LARGEST else np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _demap_qpsk(parts, variance, slope, scale, out):  # type: ignore[no-untyped-def]
    for n in range(parts.size // 2):
        precision = _precision(variance, n)
        real, imaginary = parts[2 * n] * scale, parts[2 * n + 1] * scale
        out[2 * n] = slope * real * precision if abs(real) <= _LARGEST else np.float32(0.0)
        out[2 * n + 1] = slope * imaginary * precision if abs(imaginary) <= _LARGEST else np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _demap_bpsk(parts, variance, out):  # type: ignore[no-untyped-def]
    for n in range(out.size):
        value = np.float32(2.8284271) * (parts[2 * n] + parts[2 * n + 1]) * _precision(variance, n)
        out[n] = value if np.isfinite(value) else np.float32(0.0)


@njit(cache=True, nogil=True)
def _demap_maxlog(parts, variance, slopes, offsets, scale, out):  # type: ignore[no-untyped-def]
    intervals, bits = slopes.shape
    top = np.float32(intervals - 1)
    middle = np.float32(intervals // 2)
    for n in range(parts.size // 2):
        precision = _precision(variance, n)
        for dimension in range(2):
            u = parts[2 * n + dimension] * scale
            at = 2 * bits * n + dimension
            if not np.isfinite(u):
                for b in range(bits):
                    out[at + 2 * b] = np.float32(0.0)
                continue
            interval = int(min(max(np.floor(u) + middle, np.float32(0.0)), top))
            for b in range(bits):
                out[at + 2 * b] = (slopes[interval, b] * u + offsets[interval, b]) * precision


@njit(cache=True, nogil=True)
def _exp(x):  # type: ignore[no-untyped-def]
    """Exponential of x <= 0 in single precision, 0 below -80; branch-free so that loops over it become SIMD."""
    t = max(x, np.float32(-80.0)) * np.float32(1.44269504)
    whole = np.floor(t + np.float32(0.5))
    f = t - whole
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power if x > np.float32(-80.0) else np.float32(0.0)


@njit(cache=True, nogil=True)
def _log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a positive normal float32, absolute error below 1e-6; branch-free like ``_exp``."""
    word = np.float32(x).view(np.int32)
    exponent = np.int32((word - np.int32(0x3F3504F3)) >> np.int32(23))  # mantissa in [sqrt(1/2), sqrt(2))
    m = np.int32(word - np.int32(exponent << np.int32(23))).view(np.float32)
    z = (m - np.float32(1.0)) / (m + np.float32(1.0))  # log m = 2 artanh z
    q = z * z
    p = np.float32(2.0 / 9.0)
    p = p * q + np.float32(2.0 / 7.0)
    p = p * q + np.float32(2.0 / 5.0)
    p = p * q + np.float32(2.0 / 3.0)
    p = p * q + np.float32(2.0)
    return p * z + np.float32(exponent) * np.float32(0.69314718)


@njit(cache=True, nogil=True, error_model="numpy")
def _demap_exact(parts, variance, labels, slopes, offsets, scale, out):  # type: ignore[no-untyped-def]
    """Ratios of sums of likelihoods, in blocks that stay in cache, each step a SIMD loop over the block.

    Likelihoods are taken relative to that of the nearest level. Where those of one bit value fall below exp(-80), the
    sums have one term that counts and the max-log line gives the ratio.
    """
    count, bits = labels.shape
    half = np.float32(count - 1)
    grid = np.float32(1.0) / (scale * scale)
    amplitude = np.empty(_BLOCK, np.float32)
    nearest = np.empty(_BLOCK, np.float32)
    inverse = np.empty(_BLOCK, np.float32)
    weight = np.empty(_BLOCK, np.float32)
    sums = np.empty((2 * bits, _BLOCK), np.float32)
    for start in range(0, parts.size, _BLOCK):
        size = min(_BLOCK, parts.size - start)
        for i in range(size):
            u = parts[start + i] * scale
            precision = _precision(variance, (start + i) >> 1)
            if not np.isfinite(u):
                u = np.float32(0.0)
                precision = np.float32(0.0)
            amplitude[i] = u
            inverse[i] = precision * grid
            index = min(max(np.floor((u + half + np.float32(1.0)) * np.float32(0.5)), np.float32(0.0)), half)
            nearest[i] = np.float32(2.0) * index - half
        sums[:, :size] = np.float32(0.0)
        for k in range(count):
            level = np.float32(2 * k - count + 1)
            for i in range(size):
                apart = level - nearest[i]
                over = amplitude[i] - nearest[i]
                weight[i] = _exp(-apart * (apart - np.float32(2.0) * over) * inverse[i])
            for b in range(bits):
                row = sums[2 * b + labels[k, b]]
                for i in range(size):
                    row[i] += weight[i]
        for b in range(bits):
            zero = sums[2 * b]
            one = sums[2 * b + 1]
            for i in range(size):
                weight[i] = _log(max(zero[i], np.float32(1e-36)) / max(one[i], np.float32(1e-36)))
            for i in range(size):
                value = weight[i]
                if min(zero[i], one[i]) == np.float32(0.0):
                    u = amplitude[i]
                    top = np.float32(2 * count - 1)
                    interval = int(min(max(np.floor(u) + np.float32(count), np.float32(0.0)), top))
                    value = (slopes[interval, b] * u + offsets[interval, b]) * inverse[i] / grid
                at = start + i
                out[bits * (at & ~1) + 2 * b + (at & 1)] = value
