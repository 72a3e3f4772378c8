"""Reading recordings: metadata is checked against the data before the first sample is handed out."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError, MultiscError
from multisc.files import printable
from multisc.recording.formats import ARCHIVE, BY_DATATYPE, DATA, FORMATS, META, SampleFormat, format_of

MAX_METADATA = 16 << 20  # bytes
MAX_RATE = 1e12  # Hz
BLOCK = 1 << 16  # samples
_LEAST, _LARGEST = 1e-20, 1e12  # magnitudes that parts of real recordings have
_JUDGED = 64  # non-zero parts that it takes to judge a format


@dataclass(frozen=True)
class Recording:
    """A recording that can be read.

    Args:
        path: the file with the samples.
        format: how they lie in it.
        count: number of complex samples, at least 1.
        sample_rate: Hz; None when the file does not tell.
        frequency: centre frequency of the first capture, Hz; None when the file does not tell.
        notes: what is odd about the metadata without being wrong, one line each.
    """

    path: Path
    format: SampleFormat
    count: int
    sample_rate: float | None = None
    frequency: float | None = None
    notes: list[str] = field(default_factory=list)

    def blocks(self, size: int = BLOCK) -> Iterator[NDArray[np.complex64]]:
        """Read the samples from the beginning, ``size`` at a time, complex64.

        What is not a number or infinite is handed on as it is: the receiver counts it.

        Raises:
            MultiscError: when the file can no longer be read, or has shrunk.
        """
        left = self.count
        try:
            with open(self.path, "rb") as file:
                while left:
                    wanted = min(size, left) * self.format.sample_bytes
                    data = file.read(wanted)
                    if len(data) < wanted:
                        raise MultiscError(f"{printable(self.path)}: became shorter while it was read")
                    left -= min(size, left)
                    yield self.format.decode(data)
        except OSError as error:
            raise MultiscError(f"{printable(self.path)}: cannot be read: {error.strerror}") from error


def open_recording(
    path: str | os.PathLike[str], format: str | None = None, sample_rate: float | None = None
) -> Recording:
    """Find out what a recording holds.

    Args:
        path: a SigMF recording (its metadata or its data file), or a raw file.
        format: of a raw file, one of ``FORMATS``; None takes it from the file's ending. SigMF metadata tells it.
        sample_rate: of a raw file, Hz, if known.

    Raises:
        BadInputError: when a file is missing, empty, of no whole number of samples, or does not look like its format;
            when metadata is malformed, asks for what is not supported, or contradicts the data or the arguments.
    """
    name = printable(path)
    try:
        file = Path(os.fsdecode(path))
        if file.suffix == ARCHIVE:
            raise BadInputError(f"{name}: is a SigMF archive: unpack it with tar -xf, and give the {META} file")
        if file.suffix in (META, DATA):
            recording = _open_sigmf(file.with_suffix(META), file.with_suffix(DATA))
            _agree(recording, format, sample_rate)
        else:
            if sample_rate is not None and not 0 < sample_rate <= MAX_RATE:
                raise BadInputError(f"sample rate {sample_rate}: must be a positive number of Hz")
            layout = format_of(file, format)
            recording = Recording(file, layout, _count(file, layout), sample_rate)
        _check_plausible(recording)
        return recording
    except OSError as error:
        what = printable(error.filename) if error.filename else name
        raise BadInputError(f"{what}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path that no file system takes
        raise BadInputError(f"{name}: cannot be read: {error}") from error


def _agree(recording: Recording, format: str | None, sample_rate: float | None) -> None:
    """Refuse arguments that contradict the metadata."""
    name = printable(recording.path)
    if format is not None and FORMATS.get(format) != recording.format:
        raise BadInputError(f"{name}: format {format} was given, its metadata says {recording.format.datatype}")
    if sample_rate is not None and recording.sample_rate not in (None, sample_rate):
        raise BadInputError(
            f"{name}: sample rate {sample_rate:g} was given, its metadata says {recording.sample_rate:g}"
        )


def _count(path: Path, layout: SampleFormat) -> int:
    if not path.is_file():
        raise BadInputError(f"{printable(path)}: {'is not a regular file' if path.exists() else 'no such file'}")
    size = path.stat().st_size
    if size == 0:
        raise BadInputError(f"{printable(path)}: is empty")
    if size % layout.sample_bytes:
        raise BadInputError(
            f"{printable(path)}: {size:,} bytes are no whole number of {layout.datatype} samples of "
            f"{layout.sample_bytes} bytes: cut short, or of another format"
        )
    return size // layout.sample_bytes


def _check_plausible(recording: Recording) -> None:
    """Refuse floating-point files whose values can only be something else.

    Integers taken for floats have exponents all over their range.

    Raises:
        BadInputError: when most parts of the first block are not finite or beyond any magnitude a receiver delivers.
    """
    if recording.format.part.kind != "f":
        return
    parts = np.abs(next(recording.blocks()).view(np.float32))
    parts = parts[parts != 0]
    odd = int((~((parts >= _LEAST) & (parts <= _LARGEST))).sum())
    if parts.size >= _JUDGED and 2 * odd > parts.size:
        raise BadInputError(
            f"{printable(recording.path)}: does not look like {recording.format.datatype}: {odd:,} of the first "
            f"{parts.size:,} values are not finite or outside {_LEAST:g} to {_LARGEST:g}; is it of another format?"
        )


def _open_sigmf(meta: Path, data: Path) -> Recording:
    metadata = _load(meta)
    name = printable(meta)
    main = _section(metadata, "global", dict, name)
    datatype = main.get("core:datatype")
    if not isinstance(datatype, str) or datatype not in BY_DATATYPE:
        raise BadInputError(f"{name}: core:datatype is {_short(datatype)}, must be one of {', '.join(BY_DATATYPE)}")
    usual = {"num_channels": 1, "trailing_bytes": 0, "metadata_only": False, "dataset": data.name}
    for key, value in usual.items():
        if (claimed := main.get(f"core:{key}", value)) != value:
            raise BadInputError(f"{name}: core:{key} is {_short(claimed)}, only {value!r} is supported")
    rate = _number(main, "core:sample_rate", name)
    if rate is not None and not 0 < rate <= MAX_RATE:
        raise BadInputError(f"{name}: core:sample_rate is {rate:g}, must be a positive number of Hz")
    layout = BY_DATATYPE[datatype]
    count = _count(data, layout)
    captures = _segments(metadata, "captures", name)
    for capture in captures:
        if capture.get("core:header_bytes", 0) != 0:
            raise BadInputError(f"{name}: captures with core:header_bytes are not supported")
        if capture["core:sample_start"] >= count:
            raise BadInputError(
                f"{name}: a capture starts at sample {capture['core:sample_start']:,}, the data has {count:,}"
            )
    _check_hash(main.get("core:sha512"), data, name)
    frequency = _number(captures[0], "core:frequency", name) if captures else None
    notes = []
    beyond = sum(a["core:sample_start"] + _length(a, name) > count for a in _segments(metadata, "annotations", name))
    if beyond:
        notes.append(f"{name}: {beyond} annotations reach beyond the data: it may have been cut short")
    return Recording(data, layout, count, rate, frequency, notes)


def _load(path: Path) -> dict[str, Any]:
    name = printable(path)
    if not path.is_file():
        raise BadInputError(f"{name}: {'is not a regular file' if path.exists() else 'no such file'}")
    if path.stat().st_size > MAX_METADATA:
        raise BadInputError(f"{name}: {path.stat().st_size:,} bytes of metadata, at most {MAX_METADATA:,}")
    try:
        metadata = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{name}: not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(metadata, dict):
        raise BadInputError(f"{name}: must be a JSON object with global, captures and annotations")
    return metadata


def _section(metadata: dict[str, Any], key: str, kind: type, name: str) -> Any:
    value = metadata.get(key, kind())
    if not isinstance(value, kind):
        raise BadInputError(f"{name}: {key} must be a JSON {'object' if kind is dict else 'array'}")
    return value


def _segments(metadata: dict[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    """Return captures or annotations, each with a sample_start of at least 0, in ascending order."""
    segments = _section(metadata, key, list, name)
    last = 0
    for segment in segments:
        start = segment.get("core:sample_start") if isinstance(segment, dict) else None
        if type(start) is not int or start < last:
            raise BadInputError(f"{name}: {key} need core:sample_start, whole numbers in ascending order")
        last = start
    return segments


def _length(annotation: dict[str, Any], name: str) -> int:
    length = annotation.get("core:sample_count", 0)
    if type(length) is not int or length < 0:
        raise BadInputError(f"{name}: core:sample_count is {_short(length)}, must be a whole number, at least 0")
    return length


def _number(section: dict[str, Any], key: str, name: str) -> float | None:
    value = section.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_as_float(value)):
        raise BadInputError(f"{name}: {key} is {_short(value)}, must be a finite number")
    return _as_float(value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_hash(claimed: Any, data: Path, name: str) -> None:
    if claimed is None:
        return
    digest = hashlib.sha512()
    with open(data, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if not isinstance(claimed, str) or claimed.lower() != digest.hexdigest():
        raise BadInputError(f"{name}: core:sha512 is not that of {data.name}: one of them was changed or cut short")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
