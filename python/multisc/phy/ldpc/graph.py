"""Quasi-cyclic Tanner graphs, and the two base graphs of 5G NR (TS 38.212 clause 5.3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError

# Table 5.3.2-1: set index i_LS -> lifting sizes, a * 2^j with a the first entry's odd part.
LIFTING_SETS: tuple[tuple[int, ...], ...] = (
    (2, 4, 8, 16, 32, 64, 128, 256),
    (3, 6, 12, 24, 48, 96, 192, 384),
    (5, 10, 20, 40, 80, 160, 320),
    (7, 14, 28, 56, 112, 224),
    (9, 18, 36, 72, 144, 288),
    (11, 22, 44, 88, 176, 352),
    (13, 26, 52, 104, 208),
    (15, 30, 60, 120, 240),
)
LIFTING_SIZES: tuple[int, ...] = tuple(sorted(z for sizes in LIFTING_SETS for z in sizes))
CORE_ROWS = 4
PUNCTURED_COLUMNS = 2


@dataclass(frozen=True, eq=False)
class QuasiCyclicGraph:
    """A parity-check matrix made of circulant permutation blocks; any sparse matrix is one with lifting size 1.

    Element e stands for ``lifting`` ones: check ``row * lifting + r`` meets bit
    ``column * lifting + (r + shift) % lifting``.

    Args:
        lifting: size of a block.
        columns: number of block columns.
        row_start: int32 (rows + 1,), where the elements of each block row begin.
        column: int32 (elements,), block column of each element, row by row.
        shift: int32 (elements,), 0 <= shift < lifting.
    """

    lifting: int
    columns: int
    row_start: NDArray[np.int32]
    column: NDArray[np.int32]
    shift: NDArray[np.int32]

    @property
    def rows(self) -> int:
        """Number of block rows."""
        return self.row_start.size - 1

    @property
    def bits(self) -> int:
        """Length of a code word."""
        return self.columns * self.lifting

    def select(self, rows: Sequence[int], columns: Sequence[int]) -> QuasiCyclicGraph:
        """Return the subgraph of some block rows and columns, both renumbered in the given order."""
        renumbered = {old: new for new, old in enumerate(columns)}
        start, column, shift = [0], [], []
        for row in rows:
            for e in range(self.row_start[row], self.row_start[row + 1]):
                if int(self.column[e]) in renumbered:
                    column.append(renumbered[int(self.column[e])])
                    shift.append(int(self.shift[e]))
            start.append(len(column))
        return QuasiCyclicGraph(
            self.lifting,
            len(columns),
            np.array(start, np.int32),
            np.array(column, np.int32),
            np.array(shift, np.int32),
        )

    def dense(self) -> NDArray[np.uint8]:
        """Return the parity-check matrix, uint8 (rows * lifting, columns * lifting); for tests and small codes."""
        z = self.lifting
        matrix = np.zeros((self.rows * z, self.columns * z), np.uint8)
        for row in range(self.rows):
            for e in range(self.row_start[row], self.row_start[row + 1]):
                r = np.arange(z)
                matrix[row * z + r, self.column[e] * z + (r + self.shift[e]) % z] ^= 1
        return matrix


def graph_of_matrix(matrix: NDArray) -> QuasiCyclicGraph:
    """Return the graph, with lifting size 1, of a parity-check matrix of shape (checks, bits)."""
    rows, columns = np.nonzero(np.asarray(matrix))
    start = np.searchsorted(rows, np.arange(matrix.shape[0] + 1)).astype(np.int32)
    return QuasiCyclicGraph(1, matrix.shape[1], start, columns.astype(np.int32), np.zeros(columns.size, np.int32))


@dataclass(frozen=True, eq=False)
class BaseGraph:
    """Base graph 1 or 2.

    Args:
        number: 1 or 2.
        rows: 46 or 42.
        systematic: block columns of information, 22 or 10; ``rows`` columns of parity follow.
        elements: int32 (316 or 197, 10): row, column, V for i_LS = 0..7.
    """

    number: int
    rows: int
    systematic: int
    elements: NDArray[np.int32]

    @property
    def columns(self) -> int:
        """Number of block columns, 68 or 52."""
        return self.rows + self.systematic

    def lift(self, z: int) -> QuasiCyclicGraph:
        """Return the graph of a lifting size (clause 5.3.2: P(i,j) = V(i,j) mod Z).

        Raises:
            BadInputError: when the size is not one of Table 5.3.2-1.
        """
        for index, sizes in enumerate(LIFTING_SETS):
            if z in sizes:
                row, column = self.elements[:, 0], self.elements[:, 1]
                start = np.searchsorted(row, np.arange(self.rows + 1)).astype(np.int32)
                shift = self.elements[:, 2 + index] % z
                return QuasiCyclicGraph(z, self.columns, start, np.ascontiguousarray(column), shift.astype(np.int32))
        raise BadInputError(f"lifting size {z}: must be one of {', '.join(map(str, LIFTING_SIZES))}")


@cache
def base_graph(number: int) -> BaseGraph:
    """Return base graph 1 or 2.

    Raises:
        BadInputError: for another number.
    """
    if number not in (1, 2):
        raise BadInputError(f"base graph {number}: must be 1 or 2")
    text = resources.files(__package__).joinpath("nr_base_graphs.txt").read_text()
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    elements = np.array([list(map(int, line[1:])) for line in lines if int(line[0]) == number], np.int32)
    return BaseGraph(1, 46, 22, elements) if number == 1 else BaseGraph(2, 42, 10, elements)


def select_base_graph(payload_bits: int, rate: float) -> int:
    """Return the number of the base graph for a payload and a code rate (clauses 6.2.2 and 7.2.2)."""
    if payload_bits <= 292 or (payload_bits <= 3824 and rate <= 0.67) or rate <= 0.25:
        return 2
    return 1


def lifting_size(graph: int, transport_bits: int, block_bits: int) -> tuple[int, int]:
    """Return (Kb, Zc) of clause 5.2.2.

    Args:
        graph: base graph, 1 or 2.
        transport_bits: B, bits of the transport block with its CRC.
        block_bits: K', bits of one code block with its CRC.

    Raises:
        BadInputError: when the block is empty or larger than the largest lifting size can hold.
    """
    if graph == 1:
        kb = 22
    else:
        kb = 10 if transport_bits > 640 else 9 if transport_bits > 560 else 8 if transport_bits > 192 else 6
    if not 1 <= block_bits <= kb * LIFTING_SIZES[-1]:
        raise BadInputError(
            f"code block of {block_bits} bits: base graph {graph} takes 1 to {kb * LIFTING_SIZES[-1]}"
        )
    return kb, next(z for z in LIFTING_SIZES if kb * z >= block_bits)
