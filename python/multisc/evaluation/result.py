"""``result.json``: all that is known of one transmitted image. docs/reference/result.md describes every field.

The classes mirror the file, field by field. They convert and check what they are given, so that a ``Result`` that
exists can be written: every number is finite, every null is one that the schema allows, and the parts agree.
Only ``timings_s`` differs between two runs with the same input and seed.
"""

from __future__ import annotations

import json
import math
import os
import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from multisc import __version__
from multisc.errors import BadInputError
from multisc.files import printable, write_atomically

SCHEMA = "multisc-result/1"
MAX_FILE_BYTES = 16 * 1024 * 1024

Scalar = str | bool | int | float | None
T = TypeVar("T")


class _Checked:
    """Converts every field to the type it is declared with, or refuses it."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _convert(getattr(self, name), hint, name))


@dataclass(frozen=True)
class ImageInfo(_Checked):
    """The source image; on a receiver that does not know it, what the header says.

    Args:
        path: as given by the user, None when the source is not known.
        width, height: in pixels, positive; both None at a receiver that has no picture to show.
    """

    path: str | None
    width: int | None
    height: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = (self.width, self.height)
        known = [side for side in sides if side is not None]
        _require(len(known) in (0, 2) and all(s > 0 for s in known), "image: width and height must be positive")


@dataclass(frozen=True)
class ChannelInfo(_Checked):
    """What lay between transmitter and receiver.

    Args:
        kind: "awgn", "rayleigh", "rician", "tdl", "radio", "recording".
        seed: of the noise and the fading; None when nothing is simulated.
        snr_db: Es/N0 asked for, one number for all streams; None when streams have their own or nothing is simulated.
        snr_measured_db: Es/N0 of sent against received samples, known only in simulation.
        snr_estimated_db: Es/N0 as the receiver estimates it.
        sample_rate_hz, cfo_hz: sample rate; carrier offset put in.
        cfo_estimated_hz: carrier offset that the receiver found.
        parameters: further parameters of the channel by name.
    """

    kind: str
    seed: int | None = None
    snr_db: float | None = None
    snr_measured_db: float | None = None
    snr_estimated_db: float | None = None
    sample_rate_hz: float | None = None
    cfo_hz: float | None = None
    cfo_estimated_hz: float | None = None
    parameters: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamResult(_Checked):
    """One stream.

    Args:
        name, modulation, code: as sent.
        kind: "digital" or "analog".
        symbols: payload channel uses.
        delivered: whether any of it was received.
        bits: payload bits before the code; None for an analog stream.
        bit_errors: payload bits that differ after decoding; None for an analog stream, one that was not delivered, or
            when the sent bits are not known.
        snr_db, snr_measured_db, snr_estimated_db: Es/N0 asked, measured in simulation, estimated by the receiver.
        crc_ok: verdict of the CRC, None when the stream has none.
    """

    name: str
    kind: str
    modulation: str
    code: str
    symbols: int
    delivered: bool
    bits: int | None = None
    bit_errors: int | None = None
    snr_db: float | None = None
    snr_measured_db: float | None = None
    snr_estimated_db: float | None = None
    crc_ok: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"stream {self.name}"
        _require(self.kind in ("digital", "analog"), f"{where}: kind must be digital or analog")
        _require(self.symbols >= 0, f"{where}: symbols must not be negative")
        _require(
            (self.bits is None) == (self.kind == "analog"), f"{where}: a digital stream has bits, an analog none"
        )
        errors_fit = self.bit_errors is None or (self.bits is not None and 0 <= self.bit_errors <= self.bits)
        _require(errors_fit, f"{where}: bit errors must be 0 to the number of bits")


@dataclass(frozen=True)
class TextInfo(_Checked):
    """Captions by stage, in the order of the blocks; empty where the system has none."""

    sent: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result(_Checked):
    """One transmitted image.

    Args:
        system: name of the system.
        models: profile or directory of the models.
        image, channel, streams, text: see their classes.
        channel_uses: payload data symbols of all streams.
        channel_uses_total: these and preamble, header, pilots and padding.
        outage_reason: one line why the receiver has nothing to show; None when it shows a picture.
        metrics: values by name, None where there is none.
        metrics_reasons: for each None among them, why, in one line.
        options: the system's options that were set.
        receiver: counters of the receiver: bursts received and sent, headers that failed, ...
        timings_s: seconds by stage.
        files: files beside ``result.json`` by what they are; paths relative to its directory.
        radio: the front end and how it fared; None when nothing was on the air.
    """

    system: str
    models: str
    image: ImageInfo
    channel: ChannelInfo
    streams: list[StreamResult]
    channel_uses: int
    channel_uses_total: int
    outage_reason: str | None
    text: TextInfo
    metrics: dict[str, float | None]
    metrics_reasons: dict[str, str]
    options: dict[str, Scalar] = field(default_factory=dict)
    receiver: dict[str, Scalar] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    radio: dict[str, Scalar] | None = None
    version: str = __version__

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.channel_uses <= self.channel_uses_total, "channel_uses must be 0 to channel_uses_total")
        _require(self.outage_reason != "", "outage_reason must be null or say why")
        empty = {name for name, value in self.metrics.items() if value is None}
        _require(empty == set(self.metrics_reasons), "metrics: each null needs a reason and each reason a null")
        _require(all(self.metrics_reasons.values()), "metrics_reasons: a reason is empty")
        _require(len({s.name for s in self.streams}) == len(self.streams), "streams: two have the same name")
        _require(all(v >= 0 for v in self.timings_s.values()), "timings_s: a time is negative")

    @property
    def outage(self) -> bool:
        """Whether the receiver has nothing it can show."""
        return self.outage_reason is not None

    @property
    def cbr(self) -> float | None:
        """Channel bandwidth ratio: payload channel uses per colour sample; None if the image's size is not known."""
        if self.image.width is None or self.image.height is None:
            return None
        return self.channel_uses / (3 * self.image.width * self.image.height)

    def to_dict(self) -> dict[str, Any]:
        """The object of ``result.json``, in the order in which it is written."""
        own = asdict(self)
        first = ("version", "system", "models", "options", "image", "channel", "receiver", "streams")
        uses = ("channel_uses", "channel_uses_total")
        return {
            "schema": SCHEMA,
            **{name: own[name] for name in (*first, *uses)},
            "cbr": self.cbr,
            "outage": self.outage,
            **{n: own[n] for n in ("outage_reason", "text", "metrics", "metrics_reasons", "timings_s", "files")},
            "radio": own["radio"],
        }

    def to_json(self) -> str:
        """The text of ``result.json``: strict JSON without NaN or infinity, indented by 2."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write ``result.json``, whole or not at all.

        Raises:
            MultiscError: when the file cannot be written.
        """
        # A path that is not UTF-8 has lone surrogates, for which the escape is the JSON spelling.
        write_atomically(path, self.to_json().encode("utf-8", "backslashreplace"))

    @classmethod
    def from_dict(cls, data: Any) -> Result:
        """Check and take in the object of a ``result.json``.

        Raises:
            BadInputError: when it is not one of schema ``multisc-result/1``, or contradicts itself.
        """
        _require(isinstance(data, dict), "must be an object")
        schema = data.get("schema")
        _require(schema == SCHEMA, f"schema is {schema!r}, must be {SCHEMA!r}")
        derived = {"schema", "cbr", "outage"}
        stored = {"radio": None, **data}  # which files from before there were radios have not
        result = _build(cls, {name: value for name, value in stored.items() if name not in derived}, "result")
        _require(data.get("outage") is result.outage, "outage contradicts outage_reason")
        cbr = _convert(data.get("cbr"), float | None, "cbr")
        agrees = math.isclose(cbr, result.cbr, rel_tol=1e-9) if cbr and result.cbr else cbr == result.cbr
        _require(agrees, "cbr contradicts channel_uses and the image's size")
        return result

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Result:
        """Read a ``result.json``.

        Raises:
            BadInputError: when the file cannot be read or is none.
        """
        name = printable(path)
        try:
            size = Path(path).stat().st_size
            if size > MAX_FILE_BYTES:
                raise BadInputError(f"{name}: {size:,} bytes, at most {MAX_FILE_BYTES:,} are accepted")
            data = json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
            return cls.from_dict(data)
        except OSError as error:
            raise BadInputError(f"{name}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{name}: not strict JSON: {error}") from error
        except BadInputError as error:
            raise BadInputError(f"{name}: {error}") from error


def finite(value: float | None) -> float | None:
    """A number for a field that may be null: None for None, NaN and infinity, which stand for "not known"."""
    return None if value is None or not math.isfinite(value) else float(value)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BadInputError(message)


def _build(kind: type[T], data: Any, where: str) -> T:
    """Make a dataclass of an object whose keys are its fields."""
    if not isinstance(data, dict):
        raise BadInputError(f"{where}: must be an object")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if strange := sorted(set(map(str, data)) ^ known):
        raise BadInputError(f"{where}: missing or unknown field {strange[0]!r}")
    return kind(**data)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type ``hint``: NumPy scalars become Python's, and integers floats where these belong.

    Raises:
        BadInputError: when it is of another type or not finite.
    """
    if isinstance(value, np.generic):
        value = value.item()
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [kind for kind in inner if kind is not types.NoneType]
        return _convert(value, next((kind for kind in kinds if kind is type(value)), kinds[0]), where)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise BadInputError(f"{where}: must be a list")
        return [_convert(item, inner[0], f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise BadInputError(f"{where}: must be an object")
        return {key: _convert(item, inner[1], f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise BadInputError(f"{where}: is {value!r}, must be of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise BadInputError(f"{where}: is {value}, must be finite")
    return value
