"""What all channel impairments have in common, and how they are chained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError

Samples = NDArray[np.complex64]
EMPTY: Samples = np.zeros(0, np.complex64)


class Impairment:
    """One effect on a stream of complex baseband samples.

    An impairment keeps its state from call to call: the samples that come out, put together, are the same bit for bit
    however the input was cut into calls. What is random is drawn from a generator of its own.
    """

    def process(self, samples: Samples) -> Samples:
        """Take the next samples, complex of shape (n,), and return the next ones, complex64.

        As many come out as went in, except from a clock offset.
        """
        raise NotImplementedError

    def finish(self) -> Samples:
        """Return what is still inside at the end of the stream: the tail of a delay or of an echo."""
        return EMPTY


class Chain(Impairment):
    """Impairments one after the other.

    Args:
        stages: in the order in which the signal meets them; none at all leaves the samples as they are.
    """

    def __init__(self, stages: Sequence[Impairment]) -> None:
        self.stages = list(stages)

    def process(self, samples: Samples) -> Samples:
        """Pass samples through every stage."""
        out = as_samples(samples)
        for stage in self.stages:
            out = stage.process(out)
        return out

    def finish(self) -> Samples:
        """Return the tails of all stages, each passed through the stages that follow it."""
        tail = EMPTY
        for stage in self.stages:
            tail = np.concatenate([stage.process(tail), stage.finish()])
        return tail


def as_samples(samples: NDArray) -> Samples:
    """Return samples as a contiguous complex64 array of shape (n,).

    Raises:
        BadInputError: for an array of another number of dimensions.
    """
    array = np.asarray(samples)
    if array.ndim != 1:
        raise BadInputError(f"samples of shape {array.shape}: must be one-dimensional")
    return np.ascontiguousarray(array, np.complex64)


def in_range(name: str, value: float, low: float, high: float, unit: str = "") -> float:
    """Return a number inside a closed range.

    Raises:
        BadInputError: when it lies outside or is not a number.
    """
    if not low <= value <= high:
        raise BadInputError(f"{name} {value}: must be {low:g} to {high:g}{' ' + unit if unit else ''}")
    return float(value)
