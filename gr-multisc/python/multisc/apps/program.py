"""What the programs around a flowgraph share: a picture to send, waiting for blocks, an orderly end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from multisc import images
from multisc.errors import MultiscError

from ..blocks.message_block import Faults, collector


def picture(path: str | None) -> tuple[NDArray[np.uint8], str]:
    """Load the picture to send, or the photograph that ships with scikit-image, and say how it is called.

    Raises:
        BadInputError: when it cannot be read.
    """
    if path is not None:
        return images.load_image(path), path
    from skimage import data

    return np.asarray(data.chelsea()), "scikit-image: chelsea"


def raise_first(faults: Faults) -> None:
    """Raise what failed first in any block, if anything did.

    Raises:
        MultiscError: that.
    """
    error = faults.first
    if isinstance(error, MultiscError):
        raise error
    if error is not None:
        raise MultiscError(f"a block of the flowgraph failed: {type(error).__name__}: {error}") from error


def await_ends(name: str, faults: Faults, ends: Sequence[collector], timeout_s: float) -> None:
    """Wait until ``END`` has come to all of ``ends``.

    Raises:
        MultiscError: what failed first in any block, or that the time is over.
    """
    deadline = time.monotonic() + timeout_s
    for end in ends:
        while not end.done.wait(0.02) and faults.first is None:
            if time.monotonic() >= deadline:
                raise MultiscError(f"{name}: not finished after {timeout_s:g} s")
    raise_first(faults)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: an end that is itself cut short leaves threads that Python cannot exit with."""
    caught: list[int] = []
    usual = {
        number: signal.signal(number, lambda got, frame: caught.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
