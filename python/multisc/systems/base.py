"""What a system is: two functions around a list of streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.fec import check_code
from multisc.streams import Encoded, ReceivedImage, Reconstruction

Options = Mapping[str, Any]
T = TypeVar("T")


class System(Protocol):
    """A way to send a picture. The physical layer between the two functions knows nothing of it."""

    name: str

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """Turn a picture, uint8 of shape (H, W, 3), into streams.

        Raises:
            BadInputError: for an option or a picture that the system cannot use.
        """
        ...

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """Turn what arrived into a picture and text, or an outage; streams may hold errors or be missing.

        Raises:
            BadInputError: for an option that the system cannot use.
        """
        ...


@runtime_checkable
class BatchSystem(System, Protocol):
    """A system whose models work on several pictures at once, which is faster than one after the other."""

    def encode_many(self, images: Sequence[NDArray[np.uint8]], options: Options) -> list[Encoded]:
        """As ``encode``, for each of several pictures with the same options."""
        ...

    def decode_many(self, received: Sequence[ReceivedImage], options: Options) -> list[Reconstruction]:
        """As ``decode``, for each of several receptions with the same options."""
        ...


class SystemRunner(Protocol):
    """Runs systems by name; ``multisc.inference.backend.Backend`` is one."""

    def encode(self, system: str, image: NDArray[np.uint8], options: Options) -> Encoded:
        """Run a system's transmitter; see ``System.encode``."""
        ...

    def decode(self, system: str, received: ReceivedImage, options: Options) -> Reconstruction:
        """Run a system's receiver; see ``System.decode``."""
        ...


# What people are asked for; every default of an option is of one of these types.
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def parse_options(kind: type[T], options: Options, system: str) -> T:
    """Build the options dataclass of a system from what the command line or the network gave.

    Raises:
        BadInputError: for a name the system does not have or a value of the wrong type.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise BadInputError(f"{system} has no option {unknown[0]!r}: it has {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, value in options.items():
        wanted = type(known[name].default)
        if wanted is float and type(value) is int:
            value = float(value)
        if wanted is str and type(value) in (int, float):
            value = str(value)  # a number is as good as the word for it: cbr=0.25, chroma=444
        if type(value) is not wanted:
            raise BadInputError(f"{system}: option {name} is {value!r}: must be {_KINDS[wanted]}")
        values[name] = value
    return kind(**values)


def check_codes(options: object, *names: str) -> None:
    """Refuse options that name no code of ``multisc.phy.fec``.

    Raises:
        BadInputError: naming the first one that does not.
    """
    for name in names:
        try:
            check_code(getattr(options, name))
        except BadInputError as error:
            raise BadInputError(f"option {name}: {error}") from error
