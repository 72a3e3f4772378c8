"""Sample formats: how a complex sample lies in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError

META, DATA, ARCHIVE = ".sigmf-meta", ".sigmf-data", ".sigmf"


@dataclass(frozen=True)
class SampleFormat:
    """Interleaved real and imaginary parts of one type.

    Args:
        datatype: SigMF's name of it.
        part: NumPy's type of a part.
        scale: value of a part that stands for 1.0.
        offset: value of a part that stands for 0.0.
    """

    datatype: str
    part: np.dtype
    scale: float = 1.0
    offset: float = 0.0

    @property
    def sample_bytes(self) -> int:
        """Bytes of one complex sample."""
        return 2 * self.part.itemsize

    def decode(self, data: bytes | memoryview) -> NDArray[np.complex64]:
        """Return the samples in whole samples' worth of bytes, complex64, full scale at magnitude 1 per part."""
        parts = np.frombuffer(data, self.part)
        if self.part.kind == "f":
            with np.errstate(invalid="ignore"):  # a signalling NaN of the file is counted later, not warned about
                return parts.astype(np.float32).view(np.complex64)
        values = parts.astype(np.float32)
        values -= np.float32(self.offset)
        values *= np.float32(1.0 / self.scale)
        return values.view(np.complex64)

    def encode(self, samples: NDArray[np.complex64]) -> tuple[bytes, int]:
        """Return the bytes of samples, and how many parts were beyond full scale and clipped."""
        parts = np.ascontiguousarray(samples, np.complex64).view(np.float32)
        if self.part.kind == "f":
            return parts.astype(self.part).tobytes(), 0
        limits = np.iinfo(self.part)
        values = np.rint(np.nan_to_num(parts).astype(np.float64) * self.scale + self.offset)
        clipped = int(((values < limits.min) | (values > limits.max)).sum())
        return np.clip(values, limits.min, limits.max).astype(self.part).tobytes(), clipped


_FORMATS = [
    SampleFormat("cf32_le", np.dtype("<f4")),
    SampleFormat("cf32_be", np.dtype(">f4")),
    SampleFormat("cf64_le", np.dtype("<f8")),
    SampleFormat("ci16_le", np.dtype("<i2"), 32768.0),
    SampleFormat("ci16_be", np.dtype(">i2"), 32768.0),
    SampleFormat("ci8", np.dtype("i1"), 128.0),
    SampleFormat("cu8", np.dtype("u1"), 128.0, 127.5),
]
BY_DATATYPE = {f.datatype: f for f in _FORMATS}
# What raw files are called; little-endian, as every program that writes them does.
FORMATS = {name: BY_DATATYPE.get(name) or BY_DATATYPE[f"{name}_le"] for name in ("cf32", "ci16", "ci8", "cu8")}
_SUFFIXES = {
    ".cf32": "cf32", ".cfile": "cf32", ".fc32": "cf32", ".ci16": "ci16", ".cs16": "ci16", ".sc16": "ci16",
    ".ci8": "ci8", ".cs8": "ci8", ".sc8": "ci8", ".cu8": "cu8",
}  # fmt: skip


def format_of(path: Path, name: str | None) -> SampleFormat:
    """Return the format of a raw file, by name or by the ending of the file's.

    Raises:
        BadInputError: for an unknown name, or an ending that says nothing.
    """
    if name is not None:
        if name not in FORMATS:
            raise BadInputError(f"sample format {name!r}: must be one of {', '.join(FORMATS)}")
        return FORMATS[name]
    if path.suffix.lower() not in _SUFFIXES:
        raise BadInputError(
            f"{path.name!r}: its ending does not tell its sample format: name it, one of {', '.join(FORMATS)}, "
            f"or use {META}"
        )
    return FORMATS[_SUFFIXES[path.suffix.lower()]]
