"""Iterative decoding of quasi-cyclic LDPC codes, many code words at a time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.ldpc import kernels
from multisc.phy.ldpc.graph import QuasiCyclicGraph

ALGORITHMS = {
    "spa": kernels.SUM_PRODUCT,
    "minsum": kernels.MIN_SUM,
    "offset-minsum": kernels.OFFSET_MIN_SUM,
    "normalised-minsum": kernels.NORMALISED_MIN_SUM,
}
SCHEDULES = ("layered", "flooding")
# Lanes that a group of code words should fill: enough to hide loop overhead, few enough to stay in the cache.
GROUP_LANES = 256
# Below this many message updates a second thread costs more than it brings.
THREAD_WORK = 400_000


@dataclass(frozen=True)
class DecodeResult:
    """Outcome of decoding B code words.

    Args:
        bits: decided message bits, uint8 (B, k).
        parity_ok: whether all parity checks hold, bool (B,).
        iterations: iterations used, int32 (B,).
    """

    bits: NDArray[np.uint8]
    parity_ok: NDArray[np.bool_]
    iterations: NDArray[np.int32]


class Decoder:
    """Decoder of one code. Thread-safe: its tables are read-only.

    Args:
        graph: the parity checks; each has at least two bits.
        source: int32 (graph.bits,): for each bit of the code word the index of its received value, or
            ``PUNCTURED`` (never sent) or ``KNOWN_ZERO`` (filler).
        message_bits: how many bits from the start of the code word are wanted.

    Raises:
        BadInputError: when a check has fewer than two bits or the table does not fit the graph.
    """

    def __init__(self, graph: QuasiCyclicGraph, source: NDArray[np.int32], message_bits: int) -> None:
        degrees = np.diff(graph.row_start)
        if source.shape != (graph.bits,) or degrees.min(initial=2) < 2:
            raise BadInputError(
                "LDPC graph: every check needs two bits or more, and every bit an entry in the source table"
            )
        self.graph = graph
        self.message_bits = message_bits
        self._source = np.ascontiguousarray(source, np.int32)
        self._received = int(source.max(initial=-1)) + 1
        # Layered decoding leaves a column rotated as its last check read it; each read turns it by the difference.
        step = np.empty(graph.column.size, np.int32)
        rotation = np.zeros(graph.columns, np.int32)
        rotation[graph.column] = graph.shift  # the last assignment stands
        last = rotation.copy()
        for e, (c, s) in enumerate(zip(graph.column, graph.shift, strict=True)):
            step[e] = (s - last[c]) % graph.lifting
            last[c] = s
        self._step = step
        self._rotation = rotation
        self._check_shift = ((graph.shift - rotation[graph.column]) % graph.lifting).astype(np.int32)
        # The sum of a bit's messages and its channel value must fit 16 bits.
        heaviest = int(np.bincount(graph.column).max(initial=1))
        self._message_limit = min(kernels.MESSAGE_LIMIT, (32767 - kernels.CHANNEL_LIMIT) // heaviest)

    def decode(
        self,
        llr: NDArray[np.float32],
        algorithm: str = "normalised-minsum",
        schedule: str = "layered",
        iterations: int = 20,
        early_stop: bool = True,
    ) -> DecodeResult:
        """Decode.

        Args:
            llr: float32 (B, received), log(p(0)/p(1)) of the received bits; NaN counts as erased.
            algorithm: "spa" (sum-product), "minsum", "offset-minsum" (offset 0.5) or "normalised-minsum" (0.75).
            schedule: "layered" or "flooding".
            iterations: at most this many, 1 or more.
            early_stop: whether a code word whose checks hold is left as it is.

        Raises:
            BadInputError: for an unknown name, a wrong shape or fewer than one iteration.
        """
        if algorithm not in ALGORITHMS:
            raise BadInputError(f"decoder {algorithm!r}: must be one of {', '.join(ALGORITHMS)}")
        if schedule not in SCHEDULES:
            raise BadInputError(f"schedule {schedule!r}: must be one of {', '.join(SCHEDULES)}")
        if iterations < 1:
            raise BadInputError(f"{iterations} iterations: must be 1 or more")
        llr = np.ascontiguousarray(llr, np.float32)
        if llr.ndim != 2 or llr.shape[1] < self._received:
            raise BadInputError(f"LLRs of shape {llr.shape}: must be (blocks, {self._received})")
        blocks = llr.shape[0]
        result = DecodeResult(
            np.empty((blocks, self.message_bits), np.uint8), np.empty(blocks, np.bool_), np.empty(blocks, np.int32)
        )
        if algorithm == "spa":
            like = np.array([kernels.KNOWN_LLR, 3.0e4, -3.0e4], np.float32)
            limit: np.generic = np.float32(kernels.MAX_LLR)
        else:
            like = np.array([kernels.POSTERIOR_LIMIT, kernels.POSTERIOR_LIMIT, -kernels.POSTERIOR_LIMIT], np.int16)
            limit = np.int16(self._message_limit)
        graph, rule = self.graph, ALGORITHMS[algorithm]
        work = blocks * graph.column.size * graph.lifting * iterations
        threads = _processors() if work >= THREAD_WORK else 1
        group = max(1, min(GROUP_LANES // graph.lifting, -(-blocks // threads)))

        def part(begin: int, end: int) -> None:
            out = result.bits[begin:end], result.parity_ok[begin:end], result.iterations[begin:end]
            rules = (graph.lifting, group, rule, iterations, early_stop, like, limit)
            if schedule == "layered":
                tables = (graph.row_start, graph.column, self._step, self._check_shift, self._rotation)
                kernels.decode_layered(llr[begin:end], self._source, *out, *tables, *rules)
            else:
                checks = (graph.row_start, graph.column, graph.shift)
                kernels.decode_flooding(llr[begin:end], self._source, *out, *checks, *rules)  # type: ignore[call-arg]

        # Several parts per thread even out code words that need more iterations than others.
        groups = -(-blocks // group)
        size = group * max(1, groups // (4 * threads) if threads > 1 else groups)
        parts = [(begin, min(begin + size, blocks)) for begin in range(0, blocks, size)]
        if len(parts) > 1:
            list(_pool().map(lambda span: part(*span), parts))
        elif parts:
            part(0, blocks)
        return result


def _processors() -> int:
    return len(os.sched_getaffinity(0))


@cache
def _pool() -> ThreadPoolExecutor:
    # Plain threads over kernels that release the interpreter lock: unlike Numba's own pool they may be entered from
    # several threads at once, as the blocks of a flowgraph do.
    return ThreadPoolExecutor(_processors(), thread_name_prefix="ldpc")
