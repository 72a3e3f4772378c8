"""Arguments that several commands share; a wrong one ends with one line and exit code 2."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from multisc.errors import BadInputError
from multisc.files import printable

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
MAX_SNRS = 1000
NEGATIVE_LIST = re.compile(r"-[\d.]+[,:]")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that names the input, without the usage before it.

    A list or range that begins below zero, such as ``-5,0`` or ``-5:10:5``, is a value as ``-5`` is, not an option.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``, by default those of the process."""
        joined: list[str] = []
        options = True  # until a bare "--"
        for word in sys.argv[1:] if args is None else args:
            options = options and word != "--"
            after_option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
            if options and after_option and NEGATIVE_LIST.match(word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_known_args(joined, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def finite_float(text: str) -> float:
    """Parse a number that is neither NaN nor infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def seed(text: str) -> int:
    """Parse a seed, 0 to 2**32 - 1."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number from 1 to a million."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10**6):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000000")
    return int(text)


def snr_values(text: str) -> tuple[float, ...]:
    """Parse Es/N0 values in dB, ascending, -30 to 60: ``FROM:TO:STEP``, or numbers with commas between them."""
    if ":" in text:
        parts = [finite_float(part) for part in text.split(":")]
        valid = len(parts) == 3 and -30 <= parts[0] <= parts[1] <= 60 and parts[2] > 0
        count = int((parts[1] - parts[0]) / parts[2] + 1e-9) + 1 if valid else 0
        values = [round(parts[0] + i * parts[2], 6) for i in range(min(count, MAX_SNRS + 1))]
    else:
        values = [finite_float(part) for part in text.split(",")]
    ascending = all(a < b for a, b in itertools.pairwise(values))
    if not (1 <= len(values) <= MAX_SNRS and ascending and values[0] >= -30 and values[-1] <= 60):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be FROM:TO:STEP or such as 0,5,10, ascending within -30 to 60 dB, "
            f"at most {MAX_SNRS} values"
        )
    return tuple(values)


def image_files(path: Path) -> tuple[Path, ...]:
    """Return an image file, or the image files in a directory by name.

    Raises:
        BadInputError: when there is nothing, or no image in the directory.
    """
    if not path.exists():
        raise BadInputError(f"{printable(path)}: no such file or directory")
    if not path.is_dir():
        return (path,)
    found = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()))
    if not found:
        raise BadInputError(f"{printable(path)}: no image in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def snr(text: str) -> dict[str, float]:
    """Parse Es/N0 in dB: one number for all streams, or ``name=number`` pairs by the start of a stream's name.

    Returns:
        The pairs; the key "" stands for every stream that no other key fits. ``slice=10,text=3`` gives
        {"slice": 10.0, "text": 3.0}. Values lie within -30 to 60 dB.
    """
    plan: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        if (equals and not name) or name in plan:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a number, or pairs such as slice=10,text=3")
        plan[name] = finite_float(value)
        if not -30 <= plan[name] <= 60:
            raise argparse.ArgumentTypeError(f"SNR of {plan[name]:g} dB: must be -30 to 60 dB")
    return plan


def snr_of(plan: dict[str, float], stream: str) -> float:
    """Es/N0 in dB of a stream after a plan of ``snr``: the longest key its name starts with.

    Raises:
        BadInputError: when no key fits the stream.
    """
    fitting = [key for key in plan if stream.startswith(key)]
    if not fitting:
        raise BadInputError(f"no SNR for stream {stream!r}: name it as in slice=10,text=3, or give one number")
    return plan[max(fitting, key=len)]


def check_snr_names(plan: dict[str, float], streams: Sequence[str]) -> None:
    """Refuse a plan that names a stream which is not there.

    Raises:
        BadInputError: when a key of the plan fits none of the streams.
    """
    for key in plan:
        if not any(stream.startswith(key) for stream in streams):
            raise BadInputError(f"--snr {key}={plan[key]:g}: no stream begins so; there are {', '.join(streams)}")


def option(text: str) -> tuple[str, Any]:
    """Parse ``name=value`` of a system's option; the value is JSON where it is, else a string."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: must be name=value")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    if not isinstance(parsed, str | int | float | bool):
        raise argparse.ArgumentTypeError(f"{text!r}: the value must be a number, a word, true or false")
    return name, parsed


def options(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Join what several ``--set`` gave; the last of a name counts."""
    return dict(pairs)
