"""The text channel of Multi-SC: captions as projected embeddings of their tokens, as token numbers or as bytes.

Multi-SC sends "the parameters associated with the text feature" (eq. 2) and reads them back with the same model
(eq. 4). Here the feature of a token is its row of the input-embedding table. Both ends hold the table, centre and
whiten it and project it on ``dimensions`` axes; a token travels as its projected row and is received as the likeliest
one. Token numbers and bytes are what one would send without the idea; they are there to compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError

TEXT_MODES = ("embedding", "token", "byte")
MAX_TOKENS = 256
MAX_BYTES = 1024
# The multiple of the standard deviation at which a uniform quantiser of 1, 2, ... 8 bits loses least of a Gaussian.
_LIMITS = (1.596, 1.991, 2.345, 2.681, 2.995, 3.289, 3.566, 3.829)
_CHUNK_ROWS = 16384
_CERTAIN = 1.0 - 1e-7  # the closest to certain that a received bit may be, log-likelihood ratio 17
_NOISE_FLOOR = 1e-3  # least noise of coefficients of several bits, over their energy
_ALTERNATIVES = 64
_SURE = 0.999
_KEPT = 2  # code books of a model: of 255 dimensions over Qwen1.5's 152k rows one takes 310 MB


def default_dimensions(tokens: int) -> int:
    """Return the even number of one-bit coefficients per token that suits a table of so many rows.

    2.6 bits for each bit of the token's index: uncoded QPSK at an Es/N0 of 0 dB then gets about one token in eight
    wrong, which a corrector can mend, and at 6 dB or more hardly any.
    """
    return 2 * math.ceil(1.3 * math.log2(tokens))


@dataclass(frozen=True)
class Reading:
    """What was received of a caption: its likeliest text and, place by place, what else it may be.

    Args:
        text: of the likeliest id in each place.
        ids: int64 of shape (n, k), the k likeliest ids of each place, the likeliest first.
        log_likelihoods: log p(received | id) - log p(received | first), float32 of shape (n, k).
    """

    text: str
    ids: NDArray[np.int64]
    log_likelihoods: NDArray[np.float32]

    @classmethod
    def lost(cls) -> Reading:
        """Return the reading of a caption that was not delivered: no text, no doubt."""
        return cls("", np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32))

    @property
    def certain(self) -> bool:
        """Whether every id is the sent one with a probability above 0.999, all ids being equally frequent."""
        return bool(np.log(np.exp(self.log_likelihoods).sum(axis=1)).sum() < -math.log(_SURE))

    def log_likelihood(self, ids: list[int]) -> float | None:
        """Return log p(received | ids) - log p(received | likeliest ids); None where it was another number of ids.

        An id that is not among a place's alternatives counts as the least likely of them.
        """
        if len(ids) != len(self.ids):
            return None
        found = self.ids == np.array(ids, np.int64).reshape(-1, 1)
        chosen = np.where(found, self.log_likelihoods, -np.inf).max(axis=1, initial=-np.inf)
        return float(np.where(found.any(axis=1), chosen, self.log_likelihoods[:, -1]).sum())


class CodeBook:
    """Ids as rows of coefficients that both ends hold; a noisy row is received as the likeliest id.

    Args:
        coefficients: one row an id, float32 of shape (V, d).
        quantiser: how the coefficients become bits.
        longest: ids of one text at most.

    Attributes:
        dimensions: d, coefficients per id.
        rows: what arrives of each id without noise, float32 of shape (V, d).
    """

    def __init__(self, coefficients: NDArray[np.float32], quantiser: Quantiser, longest: int) -> None:
        self.dimensions = coefficients.shape[1]
        self.quantiser = quantiser
        self._coefficients = coefficients
        self._longest = longest
        self.rows = quantiser.dequantise(quantiser.quantise(coefficients)).reshape(-1, self.dimensions)
        self._norms = np.sum(self.rows**2, axis=1)

    @property
    def bits_per_id(self) -> int:
        """Channel bits that one id takes."""
        return self.dimensions * self.quantiser.bits

    def coefficients(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the coefficients of ids.

        Args:
            ids: rows of the book, at most ``longest``.

        Returns:
            float32 array of shape (len(ids) * dimensions,).

        Raises:
            BadInputError: for too many ids or one that the book does not have.
        """
        if len(ids) > self._longest:
            raise BadInputError(f"text of {len(ids)} ids: at most {self._longest} can be sent")
        index = np.asarray(ids, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self._coefficients)):
            raise BadInputError(f"id outside the code book of {len(self._coefficients)} rows")
        return self._coefficients[index].ravel()

    def ids(self, coefficients: NDArray[np.floating]) -> list[int]:
        """Return the likeliest id of each group of received coefficients; see ``likeliest``."""
        return self.likeliest(coefficients, 1)[0][:, 0].tolist()

    def likeliest(
        self, coefficients: NDArray[np.floating], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the likeliest ids of each group of received coefficients, and how likely they are.

        One-bit coefficients tell how likely each bit is, and the likelihood of a row is exact. Of coefficients of
        several bits the least-squares estimate is shrunk towards zero, the more the noisier: y = a q + noise. The
        nearest rows to y itself would favour rows of small norm, so the nearest a q is sought, with a from the energy
        received (for a least-squares estimate E[y q] = E[y y], hence a = E[y y] / E[q q], noise a (1 - a) E[q q]).

        Args:
            coefficients: as received, shape (n * dimensions,), from ``quantiser.expect`` or ``dequantise``.
            count: ids wanted of each group, at least 1; the whole book if it has fewer.

        Returns:
            ids, int64 of shape (n, count), the likeliest first, and log p(received | id) - log p(received | first),
            float32 of the same shape, none above 0.

        Raises:
            BadInputError: when the coefficients are not whole rows, too many, or not finite.
        """
        flat = np.asarray(coefficients, np.float32).ravel()
        if flat.size % self.dimensions:
            raise BadInputError(f"{flat.size} coefficients do not divide into ids of {self.dimensions}")
        received = flat.reshape(-1, self.dimensions)
        if len(received) > self._longest:
            raise BadInputError(f"text of {len(received)} ids: at most {self._longest} can be received")
        if not np.isfinite(flat).all():
            raise BadInputError("a received coefficient is not finite")
        offset = np.zeros(len(self.rows), np.float32)  # rows of one-bit coefficients have one norm
        scale = 1.0
        if self.quantiser.bits == 1:
            # The mean of a bit is a hyperbolic tangent of half its log-likelihood ratio, and those may be added.
            level = self.quantiser.levels[1]
            received = np.arctanh(np.clip(received / level, -_CERTAIN, _CERTAIN))
            scale = 1.0 / level
        elif len(received):
            energy = float(self._norms.mean()) / self.dimensions
            shrinkage = min(1.0, float(np.mean(received**2)) / energy)
            offset = 0.5 * shrinkage * self._norms
            scale = 1.0 / (max(1.0 - shrinkage, _NOISE_FLOOR) * energy)
        count = min(count, len(self.rows))
        ids = np.zeros((len(received), 0), np.int64)
        score = np.zeros((len(received), 0), np.float32)
        for start in range(0, len(self.rows), _CHUNK_ROWS):
            here = received @ self.rows[start : start + _CHUNK_ROWS].T - offset[start : start + _CHUNK_ROWS]
            best = np.argpartition(-here, min(count, here.shape[1]) - 1, axis=1)[:, :count]
            ids, score = np.hstack([ids, best + start]), np.hstack([score, np.take_along_axis(here, best, 1)])
        order = np.argsort(-score, axis=1, kind="stable")[:, :count]
        ids, score = np.take_along_axis(ids, order, 1), np.take_along_axis(score, order, 1)
        return ids, (scale * (score - score[:, :1])).astype(np.float32)


class EmbeddingCodec(CodeBook):
    """Token ids as projected rows of a language model's embedding table.

    The projection is fixed by the table and the seed: the whitened table times an orthonormal basis drawn at random.
    Whitening is the symmetric one, (covariance)^(-1/2), since it changes smoothly with the table: sender and receiver
    agree even when their linear algebra rounds differently. Coefficients have unit variance over the table.

    Args:
        table: input embeddings of the language model, float of shape (V, D), V and D at least 2.
        dimensions: coefficients per token, 1 to D; None for ``default_dimensions(V)`` or D, whichever is less.
        bits: bits per coefficient, 1 to 8. At equal bits per token, more dimensions of one bit each lose fewer tokens
            than fewer of several.
        seed: of the basis.

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
        quantiser = Quantiser(bits, _LIMITS[bits - 1] if 1 <= bits <= len(_LIMITS) else 1.0)
        super().__init__(_project(table, dimensions, seed), quantiser, MAX_TOKENS)


class IndexCodec(CodeBook):
    """Ids as plain binary numbers, most significant bit first: bit 0 is the coefficient -1, bit 1 is 1.

    Args:
        count: of ids, at least 2.
        longest: ids of one text at most.
    """

    def __init__(self, count: int, longest: int) -> None:
        width = (count - 1).bit_length()
        bits = (np.arange(count)[:, None] >> np.arange(width - 1, -1, -1)) & 1
        super().__init__((2.0 * bits - 1.0).astype(np.float32), Quantiser(1, 2.0), longest)


class Words(Protocol):
    """What the text channel needs of a language model, such as ``multisc.models.captioner.Captioner``."""

    @property
    def table(self) -> NDArray[np.float32]:
        """Input embeddings, (V, D)."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""


_books: WeakKeyDictionary[Words, dict[tuple[int | None, int], EmbeddingCodec]] = WeakKeyDictionary()


class TextChannel:
    """A caption's way into coefficients and out of them, in one of ``TEXT_MODES``.

    Args:
        words: the language model that both ends hold; its table must not change.
        mode: ``embedding`` sends each token's projected row (the paper's), ``token`` its number in binary,
            ``byte`` the text itself in UTF-8.
        dimensions: coefficients per token, None or 0 for what suits the mode; only ``embedding`` leaves a choice.
        bits: bits per coefficient, 1 to 8; only ``embedding`` leaves a choice.

    Raises:
        BadInputError: for a mode that does not exist, or coefficients and bits that it does not have.
    """

    def __init__(self, words: Words, mode: str = "embedding", dimensions: int | None = None, bits: int = 1) -> None:
        if mode not in TEXT_MODES:
            raise BadInputError(f"text mode {mode!r}: must be one of {', '.join(TEXT_MODES)}")
        self.mode = mode
        self._words = words
        if mode == "embedding":
            self.book: CodeBook = _embedding_book(words, dimensions or None, bits)
            return
        self.book = IndexCodec(len(words.table), MAX_TOKENS) if mode == "token" else IndexCodec(256, MAX_BYTES)
        if dimensions not in (None, 0, self.book.dimensions) or bits != 1:
            raise BadInputError(
                f"text mode {mode}: sends {self.book.dimensions} coefficients of 1 bit, not {dimensions or 'some'} "
                f"of {bits}"
            )

    def coefficients(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return the coefficients of a caption's token ids.

        Raises:
            BadInputError: for a caption that is too long or has a token outside the table.
        """
        return self.book.coefficients(letters(self._words.decode(tokens)) if self.mode == "byte" else tokens)

    def read(self, coefficients: NDArray[np.floating]) -> Reading:
        """Return what received coefficients say, with up to 64 alternatives in each place.

        The text has no surrounding spaces, and what is no printable character in it is U+FFFD.

        Raises:
            BadInputError: when the coefficients are not whole tokens, too many, or not finite.
        """
        ids, log_likelihoods = self.book.likeliest(coefficients, _ALTERNATIVES)
        return Reading(self._say(ids[:, 0].tolist()), ids, log_likelihoods)

    def text(self, coefficients: NDArray[np.floating]) -> str:
        """Return the likeliest text alone; see ``read``."""
        return self._say(self.book.ids(coefficients))

    def _say(self, ids: list[int]) -> str:
        return printable(bytes(ids).decode(errors="replace") if self.mode == "byte" else self._words.decode(ids))


def _embedding_book(words: Words, dimensions: int | None, bits: int) -> EmbeddingCodec:
    """Return the code book of a model's table; the last ones are kept: whitening LLaVA-1.5's takes half a minute."""
    kept = _books.setdefault(words, {})
    key = dimensions, bits
    book = kept.pop(key, None) or EmbeddingCodec(words.table, dimensions, bits)
    kept[key] = book
    for old in list(kept)[:-_KEPT]:
        kept.pop(old, None)
    return book


def letters(text: str) -> list[int]:
    """Return the ids of a text in mode ``byte``: its UTF-8, without what cannot be said in it."""
    return list(text.encode(errors="ignore"))


def printable(text: str) -> str:
    """Return a text without surrounding spaces, what cannot be printed replaced by U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).strip()


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
