"""A system of one's own: a small copy of the picture as quantised pixels, enlarged at the receiver.

.venv/bin/python examples/thumbnail_system.py

docs/how-to/adding-a-system.md goes through it line by line.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.codecs import pixels
from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream
from multisc.systems.base import Options, parse_options

SIDE_INFO = struct.Struct(">HHHH")  # width and height of the picture and of its small copy


@dataclass(frozen=True)
class ThumbnailOptions:
    """What can be chosen with --set.

    Args:
        side: pixels of the copy's longer side, 8 to 512.
        bits: per colour sample, 1 to 8.
        code: "none" or a code of ``multisc.phy.fec``.
    """

    side: int = 48
    bits: int = 6
    code: str = "none"

    def __post_init__(self) -> None:
        if not 8 <= self.side <= 512:
            raise BadInputError(f"option side is {self.side}: must be 8 to 512")


class Thumbnail:
    """The system: an encoder and a decoder around one stream."""

    name = "thumbnail"

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """Make the small copy and the stream that carries it."""
        chosen = parse_options(ThumbnailOptions, options, self.name)
        height, width = image.shape[:2]
        small = pixels.crop(image, (0, 0, width, height), chosen.side)
        stream = Stream("pixels", pixels.to_coefficients(small), "qpsk", chosen.code, Quantiser(chosen.bits, 1.0))
        return Encoded([stream], SIDE_INFO.pack(width, height, small.shape[1], small.shape[0]))

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """Enlarge what arrived, errors and all; without anything there is nothing to show."""
        parse_options(ThumbnailOptions, options, self.name)
        stream = received.streams[0]
        if not stream.delivered:
            return Reconstruction(None, outage_reason="nothing of the pixels was received")
        width, height, small_width, small_height = SIDE_INFO.unpack(received.side_info)
        small = pixels.from_coefficients(stream.data, (small_width, small_height))
        return Reconstruction(np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)))


def thumbnail(models: str = "") -> Thumbnail:
    """The factory that the registry names; this system has no models."""
    return Thumbnail()


if __name__ == "__main__":
    from skimage import data

    from multisc.channel import ChannelConfig
    from multisc.evaluation.metrics import psnr_db
    from multisc.evaluation.sweep import pass_through
    from multisc.phy.config import PhyConfig
    from multisc.phy.units import time_noise_variance

    system, picture = thumbnail(), np.asarray(data.chelsea())
    for snr_db in (0.0, 5.0, 10.0, 20.0):
        encoded = system.encode(picture, {})
        channel = ChannelConfig(noise_variance=time_noise_variance(snr_db), seed=1)
        passage = pass_through(encoded, system.name, PhyConfig(), channel)
        shown = system.decode(passage.received, {}) if passage.received else Reconstruction(None)
        quality = "outage" if shown.image is None else f"PSNR {psnr_db(picture, shown.image):.2f} dB"
        cbr = passage.channel_uses / picture.size
        print(f"{snr_db:4g} dB: {passage.channel_uses} channel uses, CBR {cbr:.4f}, {quality}")
