"""One code block of 5G NR: LDPC encoding, rate matching and bit interleaving (TS 38.212 clauses 5.3.2, 5.4.2)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.ldpc.decoder import Decoder, DecodeResult
from multisc.phy.ldpc.encoder import Encoder
from multisc.phy.ldpc.graph import CORE_ROWS, PUNCTURED_COLUMNS, base_graph, lifting_size, select_base_graph
from multisc.phy.ldpc.kernels import KNOWN_ZERO, PUNCTURED

# Table 5.4.2.1-2: numerators of k0 over 66 (base graph 1) and 50 (base graph 2), with Ncb = N.
_START = {1: (0, 17, 33, 56), 2: (0, 13, 25, 43)}
MAX_CODED_BITS = 1 << 20


@njit(cache=True, nogil=True)
def _add_repeats(llr, index, summed):  # type: ignore[no-untyped-def]
    """Add up the ratios of each bit that was sent several times; what is not finite counts as in ``nan_to_num``."""
    largest = np.finfo(np.float32).max
    total = np.empty(summed.shape[1])
    for row in range(len(llr)):
        total[:] = 0.0
        for i in range(index.size):
            value = llr[row, i]
            if value == value:
                total[index[i]] += min(max(value, -largest), largest)
        for i in range(total.size):
            summed[row, i] = total[i]


class NrLdpcBlock:
    """Encoder and decoder of one code block.

    Args:
        k: bits of the block, K' (with its CRC, if it has one).
        n: bits after rate matching, E; a multiple of ``bits_per_symbol``.
        rv: redundancy version 0..3.
        bits_per_symbol: Qm of the bit interleaver of clause 5.4.2.2; 1 leaves the order alone.
        graph: base graph 1 or 2; None selects it from k and k/n (clause 7.2.2).
        transport_bits: B, bits of the transport block the block is part of, which sets Kb; None means k.

    Attributes:
        graph, kb, z: base graph, Kb and lifting size in use.

    Raises:
        BadInputError: when the numbers are out of range.
    """

    def __init__(
        self,
        k: int,
        n: int,
        rv: int = 0,
        bits_per_symbol: int = 1,
        graph: int | None = None,
        transport_bits: int | None = None,
    ) -> None:
        if rv not in (0, 1, 2, 3):
            raise BadInputError(f"redundancy version {rv}: must be 0, 1, 2 or 3")
        if k < 1:
            raise BadInputError(f"LDPC code of {k} information bits: must be 1 or more")
        if not k < n <= MAX_CODED_BITS:
            raise BadInputError(f"LDPC code of {k} bits in {n}: the coded length must be {k + 1} to {MAX_CODED_BITS}")
        if n % bits_per_symbol:
            raise BadInputError(f"coded length {n}: must be a multiple of the {bits_per_symbol} bits of a symbol")
        self.k, self.n, self.rv = k, n, rv
        self.graph = graph or select_base_graph(k, k / n)
        base = base_graph(self.graph)
        self.kb, self.z = lifting_size(self.graph, transport_bits or k, k)
        z, systematic = self.z, base.systematic
        self._systematic = systematic

        buffer = (base.columns - PUNCTURED_COLUMNS) * z
        bits = np.roll(np.arange(buffer) + PUNCTURED_COLUMNS * z, -self._start(buffer))
        filler = (bits >= k) & (bits < systematic * z)
        selected = np.resize(bits[~filler], n)
        # Clause 5.4.2.2 writes row by row into Qm rows and reads column by column.
        self._selected = selected.reshape(bits_per_symbol, -1).T.ravel()

        lifted = base.lift(z)
        last = max(systematic + CORE_ROWS, int(selected.max()) // z + 1) - systematic
        self._encoder = Encoder(lifted.select(range(last), range(systematic + last)), systematic)

        # What the decoder need not see: columns of fillers, which bind nothing; extension checks whose own parity
        # bits are not sent, which tell nothing; and those that check nothing but fillers.
        filled = -(-k // z)
        informative = np.unique(base.elements[base.elements[:, 1] < filled, 0])
        parity = np.arange(CORE_ROWS) + systematic
        checked = np.unique(base.elements[np.isin(base.elements[:, 1], parity), 0])
        sent = np.unique(selected // z) - systematic
        extension = [r for r in range(CORE_ROWS, last) if r in sent and (r in informative or r in checked)]
        columns = [*range(filled), *parity, *(systematic + r for r in extension)]
        position = np.full(base.columns * z, -1)
        position[(np.array(columns)[:, None] * z + np.arange(z)).ravel()] = np.arange(len(columns) * z)

        # Repeated bits are added up first; each distinct bit then has one received value.
        self._distinct = distinct = min(n, bits.size - int(filler.sum()))
        index = np.resize(np.arange(distinct), n).reshape(bits_per_symbol, -1).T.ravel()
        self._combine = index if n > distinct else None
        received = np.argsort(index) if n == distinct else np.arange(distinct)
        place = position[selected[:distinct]]
        source = np.full(len(columns) * z, PUNCTURED, np.int32)
        source[k : filled * z] = KNOWN_ZERO
        source[place[place >= 0]] = received[place >= 0]
        self._decoder = Decoder(lifted.select([*range(CORE_ROWS), *extension], columns), source, k)

    def _start(self, buffer: int) -> int:
        """k0 of Table 5.4.2.1-2 with Ncb = N."""
        units = 66 if self.graph == 1 else 50
        return int(Fraction(_START[self.graph][self.rv] * buffer, units * self.z)) * self.z

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode uint8 (B, k) of 0 and 1 into uint8 (B, n).

        Raises:
            BadInputError: when the shape is not (B, k).
        """
        bits = np.asarray(bits, np.uint8)
        if bits.ndim != 2 or bits.shape[1] != self.k:
            raise BadInputError(f"bits of shape {bits.shape}: must be (blocks, {self.k})")
        padded = np.zeros((bits.shape[0], self._systematic * self.z), np.uint8)
        padded[:, : self.k] = bits
        return self._encoder.encode(padded)[:, self._selected]

    def decode(
        self,
        llr: NDArray[np.float32],
        algorithm: str = "normalised-minsum",
        schedule: str = "layered",
        iterations: int = 20,
        early_stop: bool = True,
    ) -> DecodeResult:
        """Decode float32 LLRs of shape (B, n); see :meth:`multisc.phy.ldpc.decoder.Decoder.decode`."""
        llr = np.asarray(llr, np.float32)
        if llr.ndim != 2 or llr.shape[1] != self.n:
            raise BadInputError(f"LLRs of shape {llr.shape}: must be (blocks, {self.n})")
        if self._combine is not None:
            summed = np.empty((llr.shape[0], self._distinct), np.float32)
            _add_repeats(np.ascontiguousarray(llr), self._combine, summed)
            llr = summed
        return self._decoder.decode(llr, algorithm, schedule, iterations, early_stop)
