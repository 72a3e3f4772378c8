"""Writing recordings: the file appears under its name when it is complete, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc import __version__
from multisc.errors import BadInputError, MultiscError
from multisc.files import printable, write_atomically
from multisc.recording.formats import DATA, FORMATS, META, format_of

SIGMF_VERSION = "1.2.0"


class RecordingWriter:
    """Writes a recording. A context manager: leaving it by an exception leaves no file behind.

    Args:
        path: with the ending .sigmf-meta or .sigmf-data, a SigMF recording of both; with one of a raw format
            (.cf32, .ci16, .ci8, .cu8), samples only.
        sample_rate: Hz, positive.
        format: one of ``FORMATS``; None takes it from the ending of a raw file, cf32 for SigMF.
        frequency: centre frequency, Hz, or None.
        description: of the recording, for people.

    Attributes:
        count: samples written.
        clipped: real and imaginary parts that were beyond the full scale of an integer format.

    Raises:
        BadInputError: for an ending or a format that is not known, a directory that is not there, or a sample rate
            outside its range.
        MultiscError: when the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: float,
        format: str | None = None,
        frequency: float | None = None,
        description: str = "",
    ) -> None:
        if not 0 < sample_rate <= 1e12:
            raise BadInputError(f"sample rate {sample_rate}: must be a positive number of Hz")
        target = Path(path)
        sigmf = target.suffix in (META, DATA)
        self._format = format_of(target, format or ("cf32" if sigmf else None))
        if not sigmf and format is not None and format_of(target, None) is not FORMATS[format]:
            raise BadInputError(f"{target.name}: its ending contradicts the format {format}")
        self._meta = target.with_suffix(META) if sigmf else None
        self._data = target.with_suffix(DATA) if sigmf else target
        self._part = self._data.with_name(f".{self._data.name}.{os.getpid()}.tmp")
        self._global = {"core:sample_rate": sample_rate, "core:description": description}
        self._capture: dict[str, Any] = {"core:sample_start": 0}
        if frequency is not None:
            self._capture["core:frequency"] = frequency
        self._annotations: list[dict[str, Any]] = []
        if not self._data.parent.is_dir():
            raise BadInputError(f"{printable(self._data)}: there is no such directory to write it into")
        self._digest = hashlib.sha512()
        self.count = 0
        self.clipped = 0
        try:
            self._file = open(self._part, "wb")  # noqa: SIM115
        except OSError as error:
            raise self._failure(error) from error

    @property
    def paths(self) -> list[Path]:
        """The files it writes."""
        return [self._data] if self._meta is None else [self._meta, self._data]

    def write(self, samples: NDArray[np.complex64]) -> None:
        """Append samples, complex of shape (n,).

        Raises:
            MultiscError: when the disk is full or the file cannot be written for another reason.
        """
        data, clipped = self._format.encode(samples)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failure(error) from error
        self._digest.update(data)
        self.count += samples.size
        self.clipped += clipped

    def annotate(self, start: int, count: int, label: str) -> None:
        """Mark samples in the metadata; without effect in a raw file.

        Args:
            start: first sample, in ascending order over calls.
            count: samples.
            label: a few words.
        """
        self._annotations.append({"core:sample_start": start, "core:sample_count": count, "core:label": label})

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                metadata = self._metadata()
                if self._meta is not None:
                    self._meta.unlink(missing_ok=True)  # never old metadata beside new data
                os.replace(self._part, self._data)
                if self._meta is not None:
                    write_atomically(self._meta, json.dumps(metadata, indent=2).encode() + b"\n")
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _metadata(self) -> dict[str, Any]:
        from sigmf.validate import validate  # late: it loads a schema, and reading needs none of it

        metadata = {
            "global": {
                "core:datatype": self._format.datatype,
                "core:version": SIGMF_VERSION,
                "core:recorder": f"gr-multisc {__version__}",
                "core:sha512": self._digest.hexdigest(),
                **self._global,
            },
            "captures": [self._capture],
            "annotations": self._annotations,
        }
        validate(metadata)
        return metadata

    def _failure(self, error: OSError) -> MultiscError:
        return MultiscError(f"{printable(self._data)}: cannot be written: {error.strerror or error}")
