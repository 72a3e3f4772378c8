"""VLF-MSC: one vision-language feature is sent once and drives text and picture alike; and its two baselines.

Transmitter: BLIP-2's Q-Former makes y, N tokens of D values; of each, the d strongest dimensions are sent, as analog
symbols or quantised. Receiver: the noisy y drives BLIP-2's language model, through its language projection, and the
diffusion model, through a trained projection into the cross-attention.

``text-only`` sends the caption that y's text branch makes at the transmitter, and makes the picture of the text.
``image-only`` sends the embedding that an IP-Adapter takes as its image prompt, repeated as often as the channel uses
allow, makes the picture from it alone and captions that picture. docs/explanation/vlf-msc.md.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from multisc.codecs.feature import TRANSPORTS, FeatureCodec
from multisc.errors import BadInputError, ModelError
from multisc.models.blip2 import Blip2
from multisc.models.feature_prompt import FeatureGenerator
from multisc.models.generator import Generator
from multisc.models.profile import Profile, load_profile
from multisc.phy.transport import channel_uses
from multisc.streams import DIGITAL_MODULATIONS, Encoded, ReceivedImage, ReceivedStream, Reconstruction, Stream
from multisc.systems.base import Options, check_codes, parse_options
from multisc.systems.vlm_csc import CaptionOnly, check_limit, check_ranges, check_size, limit, too_few

STREAM = "feature"
MAX_REPEATS = 0xFFFF


@dataclass(frozen=True)
class VlfOptions:
    """What can be chosen for one picture; validated when built.

    Args:
        channel_uses: at most so many; as many dimensions as fit are sent. 0 for no such limit.
        cbr: the same limit as a channel bandwidth ratio, such as "1/1000"; empty for none.
        tokens: N, tokens of y that are sent, at most those that the model has; 0 for all.
        dimensions: d, of each token, at most those that the model has; 0 for a quarter of them, or for what the limit
            allows.
        transport: "analog" or "digital".
        bits: of a quantised coefficient, 1 to 8.
        modulation: of quantised coefficients.
        code: of quantised coefficients: "none" or a code of ``multisc.phy.fec``.
        steps: denoising steps, 1 to 200.
        seed: seed of the diffusion, not negative.

    Raises:
        BadInputError: for a value outside its range, or two of ``channel_uses``, ``cbr`` and ``dimensions``.
    """

    channel_uses: int = 0
    cbr: str = ""
    tokens: int = 0
    dimensions: int = 0
    transport: str = "analog"
    bits: int = 2
    modulation: str = "qpsk"
    code: str = "none"
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_limit(self.channel_uses, self.cbr, self.dimensions, "dimensions")
        check_ranges(self, ("tokens", 0, 255), ("dimensions", 0, 0xFFFF), ("bits", 1, 8))
        check_ranges(self, ("steps", 1, 200), ("seed", 0, 2**63 - 1))
        if self.transport not in TRANSPORTS:
            raise BadInputError(f"option transport is {self.transport}: must be one of {', '.join(TRANSPORTS)}")
        if self.modulation not in DIGITAL_MODULATIONS:
            raise BadInputError(f"option modulation: must be one of {', '.join(DIGITAL_MODULATIONS)}")
        check_codes(self, "code")


@dataclass(frozen=True)
class SideInfo:
    """What the receiver must know of picture and feature, in the protected header (8 bytes, big endian)."""

    width: int
    height: int
    transport: str
    tokens: int
    dimensions: int

    LAYOUT = struct.Struct(">HHBBH")

    def pack(self) -> bytes:
        """Return the 8 bytes."""
        transport = TRANSPORTS.index(self.transport)
        return self.LAYOUT.pack(self.width, self.height, transport, self.tokens, self.dimensions)

    @classmethod
    def unpack(cls, data: bytes) -> SideInfo:
        """Read the 8 bytes.

        Raises:
            BadInputError: when they are not 8 or say something impossible.
        """
        if len(data) != cls.LAYOUT.size:
            raise BadInputError(f"side information of {len(data)} bytes: vlf-msc sends {cls.LAYOUT.size}")
        width, height, transport, tokens, dimensions = cls.LAYOUT.unpack(data)
        check_size(width, height, "vlf-msc")
        if transport >= len(TRANSPORTS) or not tokens or not dimensions:
            raise BadInputError("side information of vlf-msc contradicts itself")
        return cls(width, height, TRANSPORTS[transport], tokens, dimensions)


class VlfMsc:
    """The system; see the module's description.

    Args:
        blip2: at both ends: picture to y, y to text.
        generator: y to picture; it holds the statistics of y, too.

    Raises:
        ModelError: when the two are of different models.
    """

    name = "vlf-msc"

    def __init__(self, blip2: Blip2, generator: FeatureGenerator) -> None:
        self._blip2, self._generator = blip2, generator
        self._statistics = generator.statistics
        made, taken = (blip2.tokens, blip2.width), (self._statistics.tokens, self._statistics.width)
        if made != taken:
            raise ModelError(
                f"the vlf-projection takes a feature of {taken[0]} x {taken[1]}, BLIP-2 makes one of {made[0]} x "
                f"{made[1]}; train one for this BLIP-2: multisc train vlf"
            )

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``; one stream, the feature.

        Raises:
            BadInputError: also for more tokens or dimensions than the feature has, and a limit that not even one
                dimension fits into.
        """
        chosen = parse_options(VlfOptions, options, self.name)
        height, width = image.shape[:2]
        feature = self._blip2.feature([image])[0]
        allowed = limit(chosen.channel_uses, chosen.cbr, height, width)
        tokens = chosen.tokens or self._statistics.tokens
        dimensions = chosen.dimensions or max(1, self._statistics.width // 4)
        if allowed is not None:
            dimensions = self._fitting(chosen, tokens, allowed)
        codec = FeatureCodec(self._statistics, tokens, dimensions, chosen.transport, chosen.bits)
        stream = _stream(chosen, codec.coefficients(feature), codec)
        side_info = SideInfo(width, height, chosen.transport, tokens, dimensions)
        facts = [f"{chosen.transport} feature of {tokens} x {dimensions}: {channel_uses(stream)} channel uses"]
        said = self._blip2.decode(self._blip2.describe(feature[None])[0])
        return Encoded([stream], side_info.pack(), {"captions": [said], "coding": facts})

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``; an outage only when nothing at all was received."""
        chosen = parse_options(VlfOptions, options, self.name)
        side_info = SideInfo.unpack(received.side_info)
        stream = _delivered(received)
        if stream is None:
            return Reconstruction(None, outage_reason="nothing of the feature was received")
        codec = FeatureCodec(self._statistics, side_info.tokens, side_info.dimensions, side_info.transport)
        feature = self._statistics.restore(codec.whitened(stream.data, stream.snr_db))
        size = (side_info.width, side_info.height)
        text = self._blip2.decode(self._blip2.describe(feature[None])[0])
        image = self._generator.generate(feature, size, seed=chosen.seed, steps=chosen.steps)
        return Reconstruction(image, {"received": [text]})

    def _fitting(self, chosen: VlfOptions, tokens: int, allowed: int) -> int:
        """The most dimensions that the limit allows."""

        def uses(dimensions: int) -> int:
            count = min(tokens, self._statistics.tokens) * dimensions
            codec = FeatureCodec(self._statistics, 1, 1, chosen.transport, chosen.bits)
            return channel_uses(_stream(chosen, np.zeros(count, np.float32), codec))

        choices = range(1, self._statistics.width + 1)
        if uses(1) > allowed:
            needs = f"one dimension of {tokens} tokens takes {uses(1)}; allow more, or send fewer tokens"
            raise too_few(chosen.cbr, allowed, needs)
        return choices[bisect_right(choices, allowed, key=uses) - 1]


def _stream(chosen: VlfOptions, coefficients: NDArray[np.float32], codec: FeatureCodec) -> Stream:
    if codec.quantiser is None:
        return Stream(STREAM, coefficients, "analog")
    return Stream(STREAM, coefficients, chosen.modulation, chosen.code, codec.quantiser)


def _delivered(received: ReceivedImage) -> ReceivedStream | None:
    return next((stream for stream in received.streams if stream.name == STREAM and stream.delivered), None)


@dataclass(frozen=True)
class ImageOptions:
    """What can be chosen for one picture of ``image-only``; validated when built.

    Args:
        channel_uses: at most so many; the embedding is repeated as often as fits. 0 for sending it once.
        cbr: the same limit as a channel bandwidth ratio, such as "1/1000"; empty for none.
        steps: denoising steps, 1 to 200.
        seed: seed of the diffusion, not negative.

    Raises:
        BadInputError: for a value outside its range, or both limits.
    """

    channel_uses: int = 0
    cbr: str = ""
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_limit(self.channel_uses, self.cbr, 0, "dimensions")
        check_ranges(self, ("steps", 1, 200), ("seed", 0, 2**63 - 1))


class ImageOnly:
    """The image-only baseline; see the module's description.

    Args:
        generator: makes the embedding, and the picture from it.
        blip2: captions the rebuilt picture.
    """

    name = "image-only"
    LAYOUT = struct.Struct(">HHHH")  # width, height, values of the embedding, copies

    def __init__(self, generator: Generator, blip2: Blip2) -> None:
        self._generator, self._blip2 = generator, blip2

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``; one analog stream.

        Raises:
            BadInputError: also for a limit that the embedding does not fit into.
        """
        chosen = parse_options(ImageOptions, options, self.name)
        height, width = image.shape[:2]
        values = self._generator.embed(image)[0].float().cpu().numpy()
        allowed = limit(chosen.channel_uses, chosen.cbr, height, width)
        copies = 1 if allowed is None else min(MAX_REPEATS, 2 * allowed // values.size)
        if allowed is not None and not copies:
            raise too_few(chosen.cbr, allowed, f"the embedding of {values.size} values takes {-(-values.size // 2)}")
        stream = Stream(STREAM, np.tile(values, copies).astype(np.float32), "analog")
        facts = [f"embedding of {values.size} values, sent {copies} times: {channel_uses(stream)} channel uses"]
        said = self._blip2.decode(self._blip2.caption([image])[0])
        side_info = self.LAYOUT.pack(width, height, values.size, copies)
        return Encoded([stream], side_info, {"captions": [said], "coding": facts})

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``; an outage only when nothing at all was received.

        Raises:
            BadInputError: for side information or a number of values that is not this system's.
        """
        chosen = parse_options(ImageOptions, options, self.name)
        if len(received.side_info) != self.LAYOUT.size:
            raise BadInputError(
                f"side information of {len(received.side_info)} bytes: image-only sends {self.LAYOUT.size}"
            )
        width, height, count, copies = self.LAYOUT.unpack(received.side_info)
        check_size(width, height, self.name)
        stream = _delivered(received)
        if stream is None:
            return Reconstruction(None, outage_reason="nothing of the embedding was received")
        if not count * copies or stream.data.size != count * copies or not np.isfinite(stream.data).all():
            raise BadInputError(f"{stream.data.size} values received where {copies} copies of {count} are announced")
        values = stream.data.reshape(copies, count).mean(axis=0)
        if count != self._generator.embedding_width:
            raise BadInputError(
                f"embedding of {count} values received: this model takes {self._generator.embedding_width}"
            )
        prompt = torch.from_numpy(values.astype(np.float32))[None]
        image = self._generator.draw(prompt, (width, height), seed=chosen.seed, steps=chosen.steps)
        text = self._blip2.decode(self._blip2.caption([image])[0])
        return Reconstruction(image, {"received": [text]})


def vlf_msc(models: str) -> VlfMsc:
    """VLF-MSC's factory.

    Raises:
        ModelError: when a checkpoint cannot be loaded, or there is no projection yet.
    """
    profile = load_profile(models)
    if "vlf-projection" not in profile.sources:
        raise ModelError(
            f"models {models}: no vlf-projection, which must be trained for these models: "
            f"multisc train vlf --models {models} --data DIR"
        )
    return VlfMsc(profile.load(Blip2, "blip2"), profile.load(FeatureGenerator, "stable-diffusion", "vlf-projection"))


def text_only(models: str) -> CaptionOnly:
    """The text-only baseline's factory.

    Raises:
        ModelError: when a checkpoint cannot be loaded.
    """
    profile = load_profile(models)
    return CaptionOnly("text-only", profile.load(Blip2, "blip2"), _generator(profile))


def image_only(models: str) -> ImageOnly:
    """The image-only baseline's factory.

    Raises:
        ModelError: when a checkpoint cannot be loaded.
    """
    profile = load_profile(models)
    return ImageOnly(_generator(profile), profile.load(Blip2, "blip2"))


def _generator(profile: Profile) -> Generator:
    return profile.load(Generator, "stable-diffusion", "ip-adapter")
