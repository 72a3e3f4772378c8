"""Writing a file whole or not at all, so that a reader or a killed run never leaves half of one."""

from __future__ import annotations

import os
from pathlib import Path

from multisc.errors import BadInputError, MultiscError


def printable(path: str | os.PathLike[str]) -> str:
    """A path as one line of text: as it is, or quoted and escaped when it holds control characters."""
    text = os.fspath(path)
    return text if text and text.isprintable() else repr(text)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place; the file at ``path`` is the old one or the new one.

    Raises:
        MultiscError: when it cannot be written (no such directory, no permission, disk full).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MultiscError(f"{printable(path)}: cannot be written: {reason}") from error


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder for results, and those it lies in; an existing one is kept.

    Raises:
        BadInputError: when it cannot be made or written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{printable(path)}: cannot be made: {error.strerror or error}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise BadInputError(f"{printable(path)}: cannot be written to")
