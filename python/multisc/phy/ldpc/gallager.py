"""Regular Gallager codes as pyldpc constructs them: the codes of the JSCC literature's older baselines."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.ldpc.decoder import Decoder, DecodeResult
from multisc.phy.ldpc.graph import graph_of_matrix

MAX_BITS = 4096


class GallagerBlock:
    """Encoder and decoder of one code word of a regular Gallager code.

    pyldpc makes the matrices, always from the same seed; coding and decoding are ours.

    Args:
        n: length, at most 4096, a multiple of ``dc``.
        dv: ones per column, at least 2.
        dc: ones per row, more than ``dv``.

    Attributes:
        k: message bits, a little more than n (1 - dv/dc), as some checks are redundant.
        checks: parity-check matrix, uint8 (checks, n); generator: systematic, uint8 (n, k).

    Raises:
        BadInputError: when the numbers make no code.
    """

    def __init__(self, n: int, dv: int, dc: int) -> None:
        check_numbers(n, dv, dc)
        self.checks, self.generator = _matrices(n, dv, dc)
        self.n, self.k = self.generator.shape
        self._decoder = Decoder(graph_of_matrix(self.checks), np.arange(n, dtype=np.int32), self.k)

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode uint8 (B, k) of 0 and 1 into uint8 (B, n).

        Raises:
            BadInputError: when the shape is not (B, k).
        """
        bits = np.asarray(bits, np.uint8)
        if bits.ndim != 2 or bits.shape[1] != self.k:
            raise BadInputError(f"bits of shape {bits.shape}: must be (blocks, {self.k})")
        # Sums stay below 2^24, so float32 products are exact and run in BLAS.
        sums = bits.astype(np.float32) @ self.generator.T.astype(np.float32)
        return (sums.astype(np.int32) & 1).astype(np.uint8)

    def decode(
        self,
        llr: NDArray[np.float32],
        algorithm: str = "spa",
        schedule: str = "flooding",
        iterations: int = 50,
        early_stop: bool = True,
    ) -> DecodeResult:
        """Decode float32 LLRs of shape (B, n); see :meth:`multisc.phy.ldpc.decoder.Decoder.decode`."""
        return self._decoder.decode(llr, algorithm, schedule, iterations, early_stop)


def check_numbers(n: int, dv: int, dc: int) -> None:
    """Raise BadInputError for numbers that make no code, without making it."""
    if not (2 <= dv < dc <= n <= MAX_BITS and n % dc == 0):
        raise BadInputError(
            f"Gallager code {n}:{dv}:{dc}: needs 2 <= DV < DC <= N <= {MAX_BITS} and N a multiple of DC"
        )


@lru_cache(maxsize=8)
def _matrices(n: int, dv: int, dc: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    import pyldpc  # heavy, and only this code needs it

    checks, generator = pyldpc.make_ldpc(n, dv, dc, systematic=True, sparse=True, seed=0)
    checks, generator = np.asarray(checks, np.uint8), np.asarray(generator, np.uint8)
    k = generator.shape[1]
    if not np.array_equal(generator[:k], np.eye(k, dtype=np.uint8)):
        raise BadInputError(f"Gallager code {n}:{dv}:{dc}: pyldpc gives no systematic code for these numbers")
    return checks, generator
