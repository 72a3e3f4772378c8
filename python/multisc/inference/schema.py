"""Checks of the values in a message: every field has a type and bounds, and nothing else gets through.

A check is a function of a value and of the name of its place; it returns the value, or raises ``WireError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from multisc.errors import InferenceError

Check = Callable[[Any, str], Any]

DTYPES = {"u1": np.dtype("|u1"), "b1": np.dtype("|b1"), "i4": np.dtype("<i4"), "i8": np.dtype("<i8"),
          "f4": np.dtype("<f4"), "f8": np.dtype("<f8")}  # fmt: skip
MAX_DIMENSIONS = 4
MAX_NESTING = 6


class WireError(InferenceError):
    """A message that breaks the protocol: malformed, out of bounds, or of another version."""


class OversizedError(WireError):
    """A message, or a part of one, that is larger than the limit."""


class VersionError(WireError):
    """A message of another version of the protocol."""


def fields(tree: Any, where: str, **checks: Check) -> dict[str, Any]:
    """Check a map that must have exactly the named fields."""
    if not isinstance(tree, dict):
        raise WireError(f"{where}: must be a map")
    if tree.keys() != checks.keys():
        odd = sorted(repr(key)[:40] for key in tree.keys() ^ checks.keys())
        raise WireError(f"{where}: missing or unknown field {', '.join(odd[:4])}")
    return {name: check(tree[name], f"{where}.{name}") for name, check in checks.items()}


def text(limit: int, allowed: Callable[[str], bool] = lambda _: True) -> Check:
    """A string of at most ``limit`` characters that ``allowed`` accepts."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > limit or not allowed(value):
            raise WireError(f"{where}: must be a string of at most {limit} characters of the right alphabet")
        return value

    return check


def choice(options: Sequence[str]) -> Check:
    """One of the given strings."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in options:
            raise WireError(f"{where}: must be one of {', '.join(options)}")
        return value

    return check


def integer(low: int, high: int) -> Check:
    """An integer of [low, high]; a boolean is not one."""

    def check(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise WireError(f"{where}: must be an integer of {low} to {high}")
        return value

    return check


def number(low: float = -math.inf, high: float = math.inf, nan: bool = False) -> Check:
    """A real number of [low, high], or NaN where that is allowed."""

    def check(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WireError(f"{where}: must be a number")
        if not (low <= value <= high or (nan and math.isnan(value))):
            raise WireError(f"{where}: must be a number of {low} to {high}")
        return float(value)

    return check


def boolean(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise WireError(f"{where}: must be true or false")
    return value


def blob(limit: int) -> Check:
    """A byte string of at most ``limit`` bytes."""

    def check(value: Any, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) > limit:
            raise WireError(f"{where}: must be at most {limit} bytes")
        return value

    return check


def optional(check: Check) -> Check:
    """Nil, or what ``check`` accepts."""
    return lambda value, where: None if value is None else check(value, where)


def items(check: Check, limit: int) -> Check:
    """A list of at most ``limit`` values."""

    def check_list(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or len(value) > limit:
            raise WireError(f"{where}: must be a list of at most {limit}")
        return [check(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return check_list


def mapping(check: Check, limit: int) -> Check:
    """A map of at most ``limit`` values whose keys are strings of 1 to 64 characters."""

    def check_map(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > limit:
            raise WireError(f"{where}: must be a map of at most {limit}")
        if not all(isinstance(key, str) and 1 <= len(key) <= 64 for key in value):
            raise WireError(f"{where}: keys must be strings of 1 to 64 characters")
        return {key: check(item, f"{where}.{key}") for key, item in value.items()}

    return check_map


def array(*dtypes: str, shape: tuple[int | None, ...] | None = None, longest: int | None = None) -> Check:
    """An array of one of the dtypes; ``shape`` fixes dimensions (None: any), ``longest`` bounds each of them."""

    def check(value: Any, where: str) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.dtype not in [DTYPES[name] for name in dtypes]:
            raise WireError(f"{where}: must be an array of {' or '.join(dtypes)}")
        if shape is not None and (
            value.ndim != len(shape)
            or any(want is not None and have != want for have, want in zip(value.shape, shape, strict=True))
        ):
            raise WireError(f"{where}: shape {value.shape} does not fit {shape}")
        if longest is not None and not all(1 <= side <= longest for side in value.shape):
            raise WireError(f"{where}: shape {value.shape}: every side must be 1 to {longest}")
        return value

    return check


def anything(value: Any, where: str, nesting: int = MAX_NESTING) -> Any:
    """A plain value: nil, boolean, number, string, bytes, array, or lists and string-keyed maps of these."""
    if value is None or isinstance(value, bool | int | float | str | bytes | np.ndarray):
        return value
    if nesting == 0 or not isinstance(value, list | dict):
        raise WireError(f"{where}: holds a value of a type that is not sent, or nested too deeply")
    if isinstance(value, list):
        return [anything(item, where, nesting - 1) for item in value]
    if not all(isinstance(key, str) for key in value):
        raise WireError(f"{where}: keys must be strings")
    return {key: anything(item, where, nesting - 1) for key, item in value.items()}
