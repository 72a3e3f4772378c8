"""Orthogonal channels: how the streams of a burst share its payload's resources.

The payload's data subcarriers, OFDM symbols or Walsh codes are *units* of equal capacity. Each stream gets as many as
its symbols need, spread over the band (or the time) by a fixed stride; the units left over carry padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.sequences import qpsk

WALSH_LENGTH = 16
PADDING_SEED = 0x504144


def spread_order(units: int) -> NDArray[np.int64]:
    """The order in which units are dealt to the streams: multiples of a stride near 0.618 units, coprime to it.

    Returns:
        int64 (units,), a permutation.
    """
    stride = max(1, round(0.618 * units))
    while gcd(stride, units) != 1:
        stride += 1
    return np.arange(units) * stride % units


def capacity(mode: str, symbols: int, data_carriers: int) -> tuple[int, int]:
    """Units of a payload and the symbols each one carries, for a number of OFDM symbols."""
    if mode == "fdm":
        return data_carriers, symbols
    if mode == "tdm":
        return symbols, data_carriers
    return WALSH_LENGTH, symbols * data_carriers // WALSH_LENGTH


def payload_symbols(mode: str, counts: Sequence[int], data_carriers: int) -> int:
    """The fewest OFDM symbols that carry ``counts`` symbols of each stream; 0 when there is nothing to carry."""
    total = sum(counts)
    if total == 0:
        return 0
    if mode == "tdm":
        return sum(-(-c // data_carriers) for c in counts)
    symbols = max(1, -(-total // data_carriers))
    while not fits(mode, counts, symbols, data_carriers):
        symbols += 1
    return symbols


def fits(mode: str, counts: Sequence[int], symbols: int, data_carriers: int) -> bool:
    """Whether ``counts`` symbols of each stream have room in a payload of ``symbols`` OFDM symbols."""
    units, each = capacity(mode, symbols, data_carriers)
    if each == 0:
        return sum(counts) == 0
    return sum(-(-c // each) for c in counts) <= units


@lru_cache(maxsize=1)
def walsh() -> NDArray[np.float32]:
    """The orthonormal Walsh-Hadamard matrix in natural (Sylvester) order, float32 (16, 16)."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < WALSH_LENGTH:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(WALSH_LENGTH))


@lru_cache(maxsize=32)
def _padding(count: int) -> NDArray[np.complex64]:
    return qpsk(PADDING_SEED, count)


@lru_cache(maxsize=64)  # the bursts of an image mostly share their layout
def _stream_units(layout: Multiplexer) -> list[NDArray[np.int64]]:
    """The units of each stream, ascending."""
    units, each = capacity(layout.mode, layout.symbols, layout.data_carriers)
    order = spread_order(units) if units else np.zeros(0, np.int64)
    need = [-(-c // each) if each else 0 for c in layout.counts]
    edges = np.concatenate([[0], np.cumsum(need)])
    return [np.sort(order[a:b]) for a, b in pairwise(edges)]


@dataclass(frozen=True)
class Multiplexer:
    """The mapping of one burst's payload.

    Args:
        mode: "fdm", "tdm" or "cdm".
        counts: symbols of each stream in this burst.
        symbols: OFDM symbols of the payload.
        data_carriers: data subcarriers of an OFDM symbol.

    Raises:
        BadInputError: when the streams do not fit.
    """

    mode: str
    counts: tuple[int, ...]
    symbols: int
    data_carriers: int

    def __post_init__(self) -> None:
        if not fits(self.mode, self.counts, self.symbols, self.data_carriers):
            raise BadInputError(f"{sum(self.counts)} symbols do not fit a payload of {self.symbols} OFDM symbols")

    def _fill(self, array: NDArray, streams: Sequence[NDArray]) -> None:
        """Write each stream into its units of ``array`` (slots, units), slot after slot."""
        for units, values in zip(_stream_units(self), streams, strict=True):
            if units.size:
                full, rest = divmod(values.size, units.size)
                array[:full, units] = values[: full * units.size].reshape(full, -1)
                if rest:
                    array[full, units[:rest]] = values[full * units.size :]

    def _pick(self, array: NDArray) -> list[NDArray]:
        """Read each stream from its units of ``array`` (slots, units)."""
        picked = []
        for units, count in zip(_stream_units(self), self.counts, strict=True):
            slots = -(-count // units.size) if units.size else 0
            picked.append(np.take(array[:slots], units, axis=1).ravel()[:count])
        return picked

    def map(self, streams: Sequence[NDArray[np.complex64]]) -> NDArray[np.complex64]:
        """Lay the streams' symbols out on the payload.

        Args:
            streams: complex64 arrays of ``counts`` symbols.

        Returns:
            complex64 (symbols, data_carriers); what no stream uses is filled with fixed QPSK values.
        """
        payload = _padding(self.symbols * self.data_carriers).reshape(self.symbols, self.data_carriers).copy()
        if self.mode == "fdm":
            self._fill(payload, streams)
        elif self.mode == "tdm":
            self._fill(payload.T, streams)
        else:
            flat = payload.ravel()
            slots = flat.size // WALSH_LENGTH
            codes = flat[: slots * WALSH_LENGTH].reshape(slots, WALSH_LENGTH)
            self._fill(codes, streams)
            codes[:] = codes @ walsh()
        return payload

    def unmap(
        self, payload: NDArray[np.complex64], variance: NDArray[np.float32]
    ) -> list[tuple[NDArray[np.complex64], NDArray[np.float32]]]:
        """Take the streams' symbols and noise variances off an equalised payload.

        Args:
            payload: complex64 (symbols, data_carriers).
            variance: float32 of that shape; inf where nothing was received.

        Returns:
            For each stream, complex64 (count,) and float32 (count,).
        """
        if self.mode == "fdm":
            picked = zip(self._pick(payload), self._pick(variance), strict=True)
        elif self.mode == "tdm":
            picked = zip(self._pick(payload.T), self._pick(variance.T), strict=True)
        else:
            slots = payload.size // WALSH_LENGTH
            chips = payload.ravel()[: slots * WALSH_LENGTH].reshape(slots, WALSH_LENGTH)
            noise = variance.ravel()[: slots * WALSH_LENGTH].reshape(slots, WALSH_LENGTH).mean(axis=1, keepdims=True)
            codes = chips @ walsh()
            spread = np.broadcast_to(noise, codes.shape)
            picked = zip(self._pick(codes), self._pick(spread), strict=True)
        return [(np.ascontiguousarray(s), np.ascontiguousarray(v)) for s, v in picked]
