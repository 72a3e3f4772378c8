"""The streams of an image: what a system hands to the physical layer and gets back from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError

DIGITAL_MODULATIONS = ("bpsk", "qpsk", "16qam", "64qam", "256qam")
MODULATIONS = (*DIGITAL_MODULATIONS, "analog")
MAX_STREAMS = 16
MAX_NAME = 15
MAX_SIDE_INFO = 64


@dataclass(frozen=True)
class Stream:
    """One payload of an image, with its own modulation and code, on its own orthogonal channel.

    Args:
        name: 1 to 15 characters of [a-z0-9-].
        data: coefficients, float32 of shape (n,), for an analog stream or with a quantiser;
            bits, uint8 of 0 and 1, shape (n,), for a digital stream without a quantiser.
        modulation: one of ``MODULATIONS``.
        code: "none" or a code that ``multisc.phy.fec`` knows, such as "nr:1/2"; "none" when analog.
        quantiser: how coefficients become bits; None for bits and for analog streams.

    Raises:
        BadInputError: when the parts do not fit together.
    """

    name: str
    data: NDArray
    modulation: str = "qpsk"
    code: str = "none"
    quantiser: Quantiser | None = None

    def __post_init__(self) -> None:
        valid = self.name and len(self.name) <= MAX_NAME
        if not valid or not all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in self.name):
            raise BadInputError(f"stream name {self.name!r}: must be 1 to {MAX_NAME} characters of a-z, 0-9, -")
        if self.modulation not in MODULATIONS:
            raise BadInputError(f"modulation {self.modulation!r}: must be one of {', '.join(MODULATIONS)}")
        wanted = np.float32 if self.kind == "analog" or self.quantiser else np.uint8
        if self.data.ndim != 1 or self.data.dtype != wanted:
            raise BadInputError(f"stream {self.name}: data must be one-dimensional {np.dtype(wanted)}")
        if self.kind == "analog" and (self.quantiser is not None or self.code != "none"):
            raise BadInputError(f"stream {self.name}: an analog stream has neither quantiser nor code")

    @property
    def kind(self) -> Literal["digital", "analog"]:
        """Whether the stream carries bits or real features."""
        return "analog" if self.modulation == "analog" else "digital"

    def bits(self) -> NDArray[np.uint8]:
        """The bits of a digital stream, uint8 of 0 and 1, quantised if need be.

        Raises:
            BadInputError: for an analog stream.
        """
        if self.kind == "analog":
            raise BadInputError(f"stream {self.name} is analog: it has no bits")
        return self.quantiser.quantise(self.data) if self.quantiser else self.data


@dataclass(frozen=True)
class ReceivedStream:
    """A stream as it came out of the receiver, delivered with errors or not at all.

    Args:
        name: as sent.
        data: as ``Stream.data`` of the sent stream, estimated: coefficients (float32) or hard bits (uint8).
        delivered: whether any of it was received; when False, ``data`` holds no information.
        crc_ok: verdict of the CRC, None when the stream has none.
        snr_db: estimated Es/N0 on this stream's channel uses; NaN when unknown.
        llrs: soft bits log(p(0)/p(1)) before the FEC decoder, float32; empty for an analog stream.
    """

    name: str
    data: NDArray
    delivered: bool = True
    crc_ok: bool | None = None
    snr_db: float = float("nan")
    llrs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class Encoded:
    """What a system's transmitter makes of an image.

    Args:
        streams: the payloads, in the order of their orthogonal channels; 1 to 16.
        side_info: at most 64 bytes of the system's own, carried in the protected header (sizes, positions).
        preview: facts for the report that are *not* sent: arrays (uint8 pictures) and lists of strings by name.
    """

    streams: list[Stream]
    side_info: bytes = b""
    preview: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.streams) <= MAX_STREAMS:
            raise BadInputError(f"{len(self.streams)} streams: must be 1 to {MAX_STREAMS}")
        if len(self.side_info) > MAX_SIDE_INFO:
            raise BadInputError(f"side information of {len(self.side_info)} bytes: at most {MAX_SIDE_INFO}")
        if len({s.name for s in self.streams}) != len(self.streams):
            raise BadInputError("two streams of one image have the same name")


@dataclass(frozen=True)
class ReceivedImage:
    """All that arrived of one image: the input of a system's receiver."""

    streams: list[ReceivedStream]
    side_info: bytes


@dataclass(frozen=True)
class Reconstruction:
    """What a system's receiver shows.

    Args:
        image: uint8 of shape (H, W, 3), or None on an outage.
        text: lists of strings by stage: "received", "corrected".
        outage_reason: empty unless ``image`` is None; then one line why nothing can be shown.
        preview: further arrays (uint8 pictures) for the report.
    """

    image: NDArray[np.uint8] | None
    text: dict[str, list[str]] = field(default_factory=dict)
    outage_reason: str = ""
    preview: dict[str, Any] = field(default_factory=dict)

    @property
    def outage(self) -> bool:
        """Whether the receiver has nothing it can show."""
        return self.image is None
