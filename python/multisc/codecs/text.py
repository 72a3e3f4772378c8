"""The text channel of Multi-SC: tokens as rows of a language model's embedding table, projected and quantised.

Multi-SC sends "the parameters associated with the text feature" (eq. 2) and reads them back with the same model
(eq. 4). Here the feature of a token is its row of the input-embedding table. Both ends hold the table, centre and
whiten it and project it on ``dimensions`` axes; a token travels as its projected row and is received as the nearest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError

MAX_TOKENS = 256
# The multiple of the standard deviation at which a uniform quantiser of 1, 2, ... 8 bits loses least of a Gaussian.
_LIMITS = (1.596, 1.991, 2.345, 2.681, 2.995, 3.289, 3.566, 3.829)
_CHUNK_ROWS = 16384


def default_dimensions(tokens: int) -> int:
    """Return the even number of one-bit coefficients per token that suits a table of so many rows.

    2.6 bits for each bit of the token's index: uncoded QPSK at an Es/N0 of 0 dB then gets about one token in eight
    wrong, which a corrector can mend, and at 6 dB or more hardly any.
    """
    return 2 * math.ceil(1.3 * math.log2(tokens))


class TextCodec:
    """Turns token ids into coefficients for the channel, and noisy coefficients into the likeliest token ids.

    The projection is fixed by the table and the seed: the whitened table times an orthonormal basis drawn at random.
    Whitening is the symmetric one, (covariance)^(-1/2), since it changes smoothly with the table: sender and receiver
    agree even when their linear algebra rounds differently.

    Args:
        table: input embeddings of the language model, float of shape (V, D), V and D at least 2.
        dimensions: coefficients per token, 1 to D; None for ``default_dimensions(V)`` or D, whichever is less.
        bits: bits per coefficient, 1 to 8. At equal bits per token, more dimensions of one bit each lose fewer tokens
            than fewer of several.
        seed: of the basis.

    Attributes:
        quantiser: how the coefficients become bits; coefficients have unit variance over the table.
        codebook: what arrives of each token without noise, float32 of shape (V, dimensions).

    Raises:
        BadInputError: for a table or a number of dimensions outside its range.
    """

    def __init__(
        self,
        table: NDArray[np.floating],
        dimensions: int | None = None,
        bits: int = 1,
        seed: int = 0,
    ) -> None:
        table = np.asarray(table)
        if table.ndim != 2 or min(table.shape) < 2:
            raise BadInputError(
                f"embedding table of shape {table.shape}: must be (tokens, dimensions), at least 2 each"
            )
        if dimensions is None:
            dimensions = min(default_dimensions(len(table)), table.shape[1])
        if not 1 <= dimensions <= table.shape[1]:
            raise BadInputError(
                f"{dimensions} coefficients per token: must be 1 to {table.shape[1]}, the table's width"
            )
        if not np.isfinite(table).all():
            raise BadInputError("embedding table: an entry is not finite")
        self.dimensions = dimensions
        self.quantiser = Quantiser(bits, _LIMITS[bits - 1] if 1 <= bits <= len(_LIMITS) else 1.0)
        self._coefficients = _project(table, dimensions, seed)
        self.codebook = self.quantiser.dequantise(self.quantiser.quantise(self._coefficients)).reshape(-1, dimensions)

    @property
    def bits_per_token(self) -> int:
        """Channel bits that one token takes."""
        return self.dimensions * self.quantiser.bits

    def coefficients(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the coefficients of tokens.

        Args:
            ids: token ids, at most ``MAX_TOKENS``.

        Returns:
            float32 array of shape (len(ids) * dimensions,), unit variance over the table.

        Raises:
            BadInputError: for too many tokens or one that the table does not have.
        """
        if len(ids) > MAX_TOKENS:
            raise BadInputError(f"text of {len(ids)} tokens: at most {MAX_TOKENS} can be sent")
        index = np.asarray(ids, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self._coefficients)):
            raise BadInputError(f"token id outside the embedding table of {len(self._coefficients)} rows")
        return self._coefficients[index].ravel()

    def tokens(self, coefficients: NDArray[np.floating]) -> list[int]:
        """Return the likeliest token of each group of received coefficients.

        Soft-dequantised coefficients are shrunk towards zero, the more the noisier they are: y = a q + noise. Nearest
        rows to y itself would favour rows of small norm, so the nearest a q is sought, with a from the received
        energy (for a least-squares estimate E[y q] = E[y y], hence a = E[y y] / E[q q]).

        Args:
            coefficients: as received, shape (n * dimensions,), from ``quantiser.expect`` or ``dequantise``.

        Returns:
            n token ids.

        Raises:
            BadInputError: when the coefficients are not whole tokens, too many, or not finite.
        """
        flat = np.asarray(coefficients, np.float32).ravel()
        if flat.size % self.dimensions:
            raise BadInputError(f"{flat.size} coefficients do not divide into tokens of {self.dimensions}")
        received = flat.reshape(-1, self.dimensions)
        if len(received) > MAX_TOKENS:
            raise BadInputError(f"text of {len(received)} tokens: at most {MAX_TOKENS} can be received")
        if not np.isfinite(flat).all():
            raise BadInputError("a received coefficient is not finite")
        if not len(received):
            return []
        shrinkage = min(1.0, float(np.mean(received**2)) / float(np.mean(self.codebook**2)))
        best = np.full(len(received), -np.inf, np.float32)
        ids = np.zeros(len(received), np.int64)
        for start in range(0, len(self.codebook), _CHUNK_ROWS):
            rows = self.codebook[start : start + _CHUNK_ROWS]
            score = received @ rows.T - (0.5 * shrinkage) * np.sum(rows**2, axis=1)
            winner = score.argmax(axis=1)
            value = score[np.arange(len(received)), winner]
            better = value > best
            best[better], ids[better] = value[better], winner[better] + start
        return ids.tolist()


def _project(table: NDArray[np.floating], dimensions: int, seed: int) -> NDArray[np.float32]:
    """Centre and whiten a table (V, D), rotate, keep ``dimensions`` axes; unit variance per axis, float32."""
    table = table.astype(np.float32)
    mean = table.mean(axis=0, dtype=np.float64)
    # Accumulated in pieces: a table of 151k rows in float64 would be needlessly large.
    covariance = np.zeros((table.shape[1], table.shape[1]))
    for start in range(0, len(table), _CHUNK_ROWS):
        centred = table[start : start + _CHUNK_ROWS] - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / len(table))
    # Directions with no variance carry nothing; the floor keeps them from becoming pure rounding noise.
    floor = max(values[-1] * 1e-6, np.finfo(np.float64).tiny)
    whiten = (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T
    gaussian = np.random.default_rng(seed).standard_normal((table.shape[1], dimensions))
    basis, triangle = np.linalg.qr(gaussian)
    projection = whiten @ (basis * np.sign(np.diag(triangle)))
    return np.concatenate(
        [(table[i : i + _CHUNK_ROWS] - mean) @ projection for i in range(0, len(table), _CHUNK_ROWS)]
    ).astype(np.float32)
