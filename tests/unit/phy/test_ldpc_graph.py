"""The base graphs, their lifting and the encoder against the structure TS 38.212 5.3.2 prescribes."""

import numpy as np
import pytest

from multisc.errors import BadInputError
from multisc.phy.ldpc.encoder import Encoder
from multisc.phy.ldpc.graph import (
    LIFTING_SETS,
    LIFTING_SIZES,
    QuasiCyclicGraph,
    base_graph,
    graph_of_matrix,
    lifting_size,
    select_base_graph,
)

SHAPE = {1: (46, 68, 316), 2: (42, 52, 197)}


def syndrome(graph: QuasiCyclicGraph, words: np.ndarray) -> np.ndarray:
    blocks = words.reshape(words.shape[0], graph.columns, graph.lifting)
    out = np.zeros((words.shape[0], graph.rows, graph.lifting), np.uint8)
    for row in range(graph.rows):
        for e in range(graph.row_start[row], graph.row_start[row + 1]):
            out[:, row] ^= np.roll(blocks[:, graph.column[e]], -int(graph.shift[e]), axis=1)
    return out


def test_lifting_sizes():
    assert len(LIFTING_SIZES) == 51
    assert LIFTING_SIZES[0] == 2
    assert LIFTING_SIZES[-1] == 384
    for sizes, odd in zip(LIFTING_SETS, (2, 3, 5, 7, 9, 11, 13, 15), strict=True):
        assert all(z == odd << j for j, z in enumerate(sizes))
        assert 2 * sizes[-1] > 384


@pytest.mark.parametrize("number", [1, 2])
def test_structure(number):
    base = base_graph(number)
    rows, columns, elements = SHAPE[number]
    assert (base.rows, base.columns, base.elements.shape[0]) == (rows, columns, elements)
    mask = np.zeros((rows, columns), bool)
    mask[base.elements[:, 0], base.elements[:, 1]] = True
    assert mask.sum() == elements
    k = base.systematic
    # Extension columns are an identity; the core is dual diagonal beside a first column of weight three.
    np.testing.assert_array_equal(mask[4:, k + 4 :], np.eye(rows - 4, dtype=bool))
    assert not mask[:4, k + 4 :].any()
    assert mask[:4, k].sum() == 3
    np.testing.assert_array_equal(mask[:4, k + 1 : k + 4], np.eye(4, 3, dtype=bool) | np.eye(4, 3, -1, dtype=bool))
    # The identities of the extension and the dual diagonal are not rotated, in any lifting set.
    values = base.elements[:, 2:]
    parity = base.elements[:, 1] > k
    own = parity & ((base.elements[:, 1] >= k + 4) | (base.elements[:, 0] < 4))
    assert not values[own].any()
    # Shifts lie below the set's largest lifting size.
    for index, sizes in enumerate(LIFTING_SETS):
        assert values[:, index].max() < sizes[-1]
        assert values[:, index].min() >= 0


@pytest.mark.parametrize("number", [1, 2])
def test_known_elements(number):
    """Elements that TS 38.212 prints at the tables' corners."""
    expected = {
        1: {(0, 0): [250, 307, 73, 223, 211, 294, 0, 135], (45, 10): [167, 15, 126, 29, 144, 235, 153, 93]},
        2: {(0, 0): [9, 174, 0, 72, 3, 156, 143, 145], (41, 11): [118, 60, 55, 81, 19, 8, 167, 230]},
    }[number]
    elements = base_graph(number).elements
    for (row, column), values in expected.items():
        found = elements[(elements[:, 0] == row) & (elements[:, 1] == column)]
        assert found.shape == (1, 10)
        assert found[0, 2:].tolist() == values


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("z", LIFTING_SIZES)
def test_encoder_satisfies_every_check(number, z):
    base = base_graph(number)
    graph = base.lift(z)
    bits = np.random.default_rng(z).integers(0, 2, (2, base.systematic * z), np.uint8)
    words = Encoder(graph, base.systematic).encode(bits)
    assert words.shape == (2, graph.bits)
    np.testing.assert_array_equal(words[:, : bits.shape[1]], bits)
    assert not syndrome(graph, words).any()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("z", [96, 256, 384])
def test_no_cycles_of_length_four(number, z):
    """Two block rows never share two columns at the same difference of shifts."""
    graph = base_graph(number).lift(z)
    rows = [
        {int(graph.column[e]): int(graph.shift[e]) for e in range(graph.row_start[r], graph.row_start[r + 1])}
        for r in range(graph.rows)
    ]
    for i, first in enumerate(rows):
        for second in rows[i + 1 :]:
            differences = [(first[c] - second[c]) % z for c in first.keys() & second.keys()]
            assert len(differences) == len(set(differences))


def test_dense_matrix_agrees_with_the_graph():
    graph = base_graph(2).lift(3)
    dense = graph.dense()
    words = np.random.default_rng(1).integers(0, 2, (4, graph.bits), np.uint8)
    np.testing.assert_array_equal((words @ dense.T % 2).reshape(4, graph.rows, 3), syndrome(graph, words))
    again = graph_of_matrix(dense)
    np.testing.assert_array_equal(again.dense(), dense)


@pytest.mark.parametrize(
    ("payload", "rate", "graph"),
    [
        (292, 0.9, 2),
        (293, 0.9, 1),
        (3824, 0.67, 2),
        (3824, 0.68, 1),
        (3825, 0.5, 1),
        (9000, 0.25, 2),
        (9000, 0.26, 1),
    ],
)
def test_base_graph_selection(payload, rate, graph):
    assert select_base_graph(payload, rate) == graph


@pytest.mark.parametrize(
    ("graph", "bits", "expected"),
    [
        (1, 8448, (22, 384)),
        (1, 6144, (22, 288)),
        (2, 3840, (10, 384)),
        (2, 641, (10, 72)),
        (2, 640, (9, 72)),
        (2, 561, (9, 64)),
        (2, 560, (8, 72)),
        (2, 512, (8, 64)),
        (2, 193, (8, 26)),
        (2, 192, (6, 32)),
        (2, 20, (6, 4)),
        (2, 1, (6, 2)),
    ],
)
def test_lifting_size_of_a_block(graph, bits, expected):
    assert lifting_size(graph, bits, bits) == expected


def test_bad_numbers_are_named():
    with pytest.raises(BadInputError, match="base graph 3"):
        base_graph(3)
    with pytest.raises(BadInputError, match="lifting size 17"):
        base_graph(1).lift(17)
    with pytest.raises(BadInputError, match="8449"):
        lifting_size(1, 8449, 8449)
    with pytest.raises(BadInputError, match="code block of 0"):
        lifting_size(2, 10, 0)
