"""Deep joint source-channel coding (Multi-SC [14]): a picture becomes analog symbols, with no bits between.

No cliff: the picture gets worse as the channel does, and something is shown as long as anything was received.
docs/explanation/deep-jscc.md.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.images import MAX_PIXELS
from multisc.models.jscc import EXPECTED_DB, Jscc
from multisc.models.profile import load_profile
from multisc.phy.transport import MAX_LENGTH
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream
from multisc.systems.base import Options, parse_options
from multisc.systems.budget import parse_cbr

STREAM = "features"


@dataclass(frozen=True)
class DeepJsccOptions:
    """What can be chosen for one picture; validated when built.

    Args:
        cbr: channel bandwidth ratio, channel uses over 3 H W: a fraction such as "1/6" or a number, of those that the
            checkpoint serves.
        snr_db: Es/N0 per channel use that the transmitter expects; NaN when not known, then 10 dB. The receiver goes
            by its own estimate.

    Raises:
        BadInputError: for a value outside its range.
    """

    cbr: str = "1/6"
    snr_db: float = math.nan

    def __post_init__(self) -> None:
        _ = self.ratio

    @property
    def ratio(self) -> Fraction:
        """The channel bandwidth ratio as a fraction that fits the side information."""
        return parse_cbr(self.cbr).limit_denominator(0xFFFF)

    @property
    def expected_db(self) -> int:
        """The Es/N0 that the transmitter expects, in whole dB as the side information tells it."""
        return round(EXPECTED_DB if math.isnan(self.snr_db) else min(max(self.snr_db, -100.0), 100.0))


@dataclass(frozen=True)
class SideInfo:
    """What the receiver must know of the picture, in the protected header (13 bytes, big endian)."""

    width: int
    height: int
    ratio: Fraction
    expected_db: int

    LAYOUT = struct.Struct(">IIHHb")

    def pack(self) -> bytes:
        """Return the 13 bytes."""
        ratio = (self.ratio.numerator, self.ratio.denominator)
        return self.LAYOUT.pack(self.width, self.height, *ratio, self.expected_db)

    @classmethod
    def unpack(cls, data: bytes) -> SideInfo:
        """Read the 13 bytes.

        Raises:
            BadInputError: when they are not 13 or say something impossible.
        """
        if len(data) != cls.LAYOUT.size:
            raise BadInputError(f"side information of {len(data)} bytes: deep-jscc sends {cls.LAYOUT.size}")
        width, height, numerator, denominator, expected_db = cls.LAYOUT.unpack(data)
        if not 0 < width * height <= MAX_PIXELS or not numerator or not denominator:
            raise BadInputError("side information of deep-jscc contradicts itself")
        return cls(width, height, Fraction(numerator, denominator), expected_db)


class DeepJscc:
    """The system; see the module's description.

    Args:
        jscc: encoder and decoder.
    """

    name = "deep-jscc"

    def __init__(self, jscc: Jscc) -> None:
        self._jscc = jscc

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``; one analog stream.

        Raises:
            BadInputError: also for a ratio that the checkpoint does not serve, and a picture that is smaller than
                the encoder's stride or has more features than a stream can hold.
        """
        chosen = parse_options(DeepJsccOptions, options, self.name)
        height, width = image.shape[:2]
        count = self._jscc.features((width, height), chosen.ratio)
        if count > MAX_LENGTH:
            raise BadInputError(
                f"cbr {chosen.cbr}: a picture of {width}x{height} pixels has {count} features, a stream at most "
                f"{MAX_LENGTH}; use a lower cbr"
            )
        features = self._jscc.encode(image, chosen.ratio, chosen.expected_db)
        facts = [
            f"{-(-count // 2)} channel uses at cbr {chosen.cbr}: {count} real features",
            f"the transmitter expects {chosen.expected_db} dB",
        ]
        side_info = SideInfo(width, height, chosen.ratio, chosen.expected_db)
        return Encoded([Stream(STREAM, features, "analog")], side_info.pack(), {"coding": facts})

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``; an outage only when nothing at all was received."""
        parse_options(DeepJsccOptions, options, self.name)
        stream = next((s for s in received.streams if s.name == STREAM), None)
        if stream is None or not stream.delivered:
            return Reconstruction(None, outage_reason="nothing of the features was received")
        info = SideInfo.unpack(received.side_info)
        size = (info.width, info.height)
        return Reconstruction(self._jscc.decode(stream.data, size, info.ratio, stream.snr_db, info.expected_db))


def deep_jscc(models: str) -> DeepJscc:
    """The system's factory.

    Raises:
        ModelError: when the checkpoint cannot be loaded.
    """
    profile = load_profile(models)
    return DeepJscc(Jscc.load(profile.deep_jscc, profile.device))
