"""Uniform quantisation of real coefficients to bits, and the way back from bits or from soft bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError

MAX_BITS = 8


@dataclass(frozen=True)
class Quantiser:
    """Mid-rise uniform quantiser over [-limit, limit] with Gray-labelled levels.

    Gray labels make one wrong bit at a level's edge move the value by one step.

    Args:
        bits: bits per coefficient, 1 to 8.
        limit: largest magnitude that is represented; values beyond are clipped. Positive and finite.

    Raises:
        BadInputError: for a number of bits or a limit outside its range.
    """

    bits: int
    limit: float

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise BadInputError(f"quantiser bits {self.bits}: must be 1 to {MAX_BITS}")
        if not (np.isfinite(self.limit) and self.limit > 0):
            raise BadInputError(f"quantiser limit {self.limit}: must be a positive number")

    @property
    def levels(self) -> NDArray[np.float32]:
        """The reconstruction levels, ascending, float32 of shape (2**bits,)."""
        count = 1 << self.bits
        step = 2.0 * self.limit / count
        return ((np.arange(count) + 0.5) * step - self.limit).astype(np.float32)

    def _labels(self) -> NDArray[np.uint8]:
        """The bits of each level in ascending order, uint8 of shape (2**bits, bits), first bit most significant."""
        index = np.arange(1 << self.bits)
        gray = index ^ (index >> 1)
        return ((gray[:, None] >> np.arange(self.bits - 1, -1, -1)) & 1).astype(np.uint8)

    def quantise(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Quantise real values.

        Args:
            values: real array of any shape; must be finite.

        Returns:
            uint8 array of 0 and 1, shape (values.size * bits,), in the order of ``values.ravel()``.

        Raises:
            BadInputError: when a value is not finite.
        """
        flat = np.asarray(values, np.float64).ravel()
        if not np.isfinite(flat).all():
            raise BadInputError("cannot quantise: a coefficient is not finite")
        count = 1 << self.bits
        scaled = (flat + self.limit) * (count / (2.0 * self.limit))
        index = np.clip(np.floor(scaled), 0, count - 1).astype(np.intp)
        return self._labels()[index].ravel()

    def dequantise(self, bits: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the level of each label.

        Args:
            bits: uint8 array of 0 and 1; its size is a multiple of ``self.bits``.

        Returns:
            float32 array of shape (bits.size / self.bits,).

        Raises:
            BadInputError: when the number of bits is not a multiple of ``self.bits``.
        """
        labels = self._split(np.asarray(bits, np.uint8)).astype(np.intp)
        binary = np.bitwise_xor.accumulate(labels, axis=1)
        index = binary @ (1 << np.arange(self.bits - 1, -1, -1))
        return self.levels[index]

    def expect(self, llrs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the mean of each coefficient given soft bits: the least-squares dequantiser.

        Levels are taken as equally likely, bits as independent.

        Args:
            llrs: log-likelihood ratios log(p(0)/p(1)) of the bits; size a multiple of ``self.bits``.

        Returns:
            float32 array of shape (llrs.size / self.bits,).

        Raises:
            BadInputError: when the number of ratios is not a multiple of ``self.bits``.
        """
        ratios = self._split(np.clip(np.asarray(llrs, np.float64), -40.0, 40.0))
        sign = 1.0 - 2.0 * self._labels().astype(np.float64)
        score = 0.5 * ratios @ sign.T
        score -= score.max(axis=1, keepdims=True)
        weight = np.exp(score)
        weight /= weight.sum(axis=1, keepdims=True)
        return (weight @ self.levels.astype(np.float64)).astype(np.float32)

    def _split(self, flat: NDArray) -> NDArray:
        if flat.size % self.bits:
            raise BadInputError(f"{flat.size} bits do not divide into coefficients of {self.bits} bits")
        return flat.reshape(-1, self.bits)
