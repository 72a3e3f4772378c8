"""Systematic encoding of the 5G NR LDPC codes by back substitution (TS 38.212 clause 5.3.2)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from multisc.phy.ldpc.graph import CORE_ROWS, QuasiCyclicGraph


class Encoder:
    """Encoder of one lifted base graph, possibly without its last rows and columns.

    The sum of the four core rows leaves the first parity block alone, rotated by one shift; each of the other rows
    then gives one new parity block, the one in column ``systematic + row + 1`` of a core row and
    ``systematic + row`` of an extension row.

    Args:
        graph: lifted base graph, rows 0 to m-1 with m >= 4 and at least ``systematic + m`` columns.
        systematic: block columns of information.
    """

    def __init__(self, graph: QuasiCyclicGraph, systematic: int) -> None:
        self._graph = graph
        self._systematic = systematic
        last = graph.row_start[CORE_ROWS]
        first_parity = graph.shift[:last][graph.column[:last] == systematic]
        shifts, counts = np.unique(first_parity, return_counts=True)
        self._first_shift = int(shifts[counts % 2 == 1][0])

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode.

        Args:
            bits: uint8 (blocks, systematic * lifting) of 0 and 1.

        Returns:
            uint8 (blocks, (systematic + rows) * lifting): the words c followed by the parity w of clause 5.3.2.
        """
        graph, z = self._graph, self._graph.lifting
        word = np.zeros((bits.shape[0], (self._systematic + graph.rows) * z), np.uint8)
        word[:, : self._systematic * z] = bits
        _encode(word, graph.row_start, graph.column, graph.shift, z, self._systematic, self._first_shift)
        return word


@njit(cache=True, nogil=True)
def _add_row(word, total, row_start, column, shift, z, row, skip):  # type: ignore[no-untyped-def]
    """Add to ``total`` the rotated blocks that a row checks, but the one in column ``skip``."""
    for e in range(row_start[row], row_start[row + 1]):
        if column[e] == skip:
            continue
        first = column[e] * z
        s = shift[e]
        for r in range(z - s):
            total[r] ^= word[first + s + r]
        for r in range(s):
            total[z - s + r] ^= word[first + r]


@njit(cache=True, nogil=True)
def _encode(words, row_start, column, shift, z, systematic, first_shift):  # type: ignore[no-untyped-def]
    rows = row_start.size - 1
    total = np.empty(z, np.uint8)
    for b in range(words.shape[0]):
        word = words[b]
        first = systematic * z
        total[:] = 0
        for row in range(4):
            # The parity blocks are still zero, so this is the information's part of the four core checks.
            _add_row(word, total, row_start, column, shift, z, row, -1)
        for r in range(z):
            word[first + (r + first_shift) % z] = total[r]
        for row in range(rows):
            if row == 3:
                continue
            target = systematic + row + 1 if row < 3 else systematic + row
            total[:] = 0
            _add_row(word, total, row_start, column, shift, z, row, target)
            word[target * z : (target + 1) * z] = total
