"""A caption is all that is sent: VLM-CSC (Multi-SC [4]), and the text-only baseline of VLF-MSC.

Transmitter: a vision-language model describes the picture, BLIP in VLM-CSC, and the tokens travel as in Multi-SC.
Receiver: embeddings become text again, and Stable Diffusion makes a picture of the text alone. VLM-CSC as Multi-SC
compares it has no corrector. docs/explanation/vlf-msc.md.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.text import TEXT_MODES, TextChannel
from multisc.errors import BadInputError
from multisc.images import MAX_PIXELS
from multisc.models.blip import BlipCaptioner
from multisc.models.generator import Generator, Order
from multisc.models.profile import load_profile
from multisc.phy.transport import MAX_LENGTH, channel_uses
from multisc.streams import DIGITAL_MODULATIONS, Encoded, ReceivedImage, Reconstruction, Stream
from multisc.systems.base import Options, check_codes, parse_options
from multisc.systems.budget import channel_uses as uses_of_cbr
from multisc.systems.budget import parse_cbr

STREAM = "text"
MAX_DIMENSIONS = 255


@dataclass(frozen=True)
class CaptionOptions:
    """What can be chosen for one picture; validated when built.

    Args:
        channel_uses: at most so many, 1 to 2**23; as many dimensions a token as fit are sent. 0 for no such limit.
        cbr: the same limit as a channel bandwidth ratio, such as "1/1000"; empty for none.
        text_mode: how a caption travels, one of ``multisc.codecs.text.TEXT_MODES``.
        text_dimensions: coefficients per token, 1 to 255; 0 for what suits the model's table or the limit.
        text_bits: bits per coefficient, 1 to 8.
        text_modulation: digital modulation.
        text_code: "none" or a code of ``multisc.phy.fec``.
        steps: denoising steps, 1 to 200.
        seed: seed of the diffusion, not negative.

    Raises:
        BadInputError: for a value outside its range, or more than one of ``channel_uses``, ``cbr`` and
            ``text_dimensions``.
    """

    channel_uses: int = 0
    cbr: str = ""
    text_mode: str = "embedding"
    text_dimensions: int = 0
    text_bits: int = 1
    text_modulation: str = "qpsk"
    text_code: str = "none"
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_limit(self.channel_uses, self.cbr, self.text_dimensions, "text_dimensions")
        check_ranges(self, ("text_dimensions", 0, MAX_DIMENSIONS), ("text_bits", 1, 8))
        check_ranges(self, ("steps", 1, 200), ("seed", 0, 2**63 - 1))
        if self.text_mode not in TEXT_MODES:
            raise BadInputError(f"option text_mode is {self.text_mode}: must be one of {', '.join(TEXT_MODES)}")
        if self.text_modulation not in DIGITAL_MODULATIONS:
            raise BadInputError(f"option text_modulation: must be one of {', '.join(DIGITAL_MODULATIONS)}")
        check_codes(self, "text_code")


def check_ranges(options: object, *ranges: tuple[str, int, int]) -> None:
    """Refuse an option outside its range.

    Raises:
        BadInputError: naming the first one that is.
    """
    for name, low, high in ranges:
        if not low <= getattr(options, name) <= high:
            raise BadInputError(f"option {name} is {getattr(options, name)}: must be {low} to {high}")


def check_limit(uses: int, cbr: str, dimensions: int, name: str) -> None:
    """Check the options that limit the channel uses; at most one of the three may be set.

    Raises:
        BadInputError: when one is wrong, or two are set.
    """
    if cbr:
        parse_cbr(cbr)
    if not 0 <= uses <= MAX_LENGTH // 2:
        raise BadInputError(f"option channel_uses is {uses}: must be 0 to {MAX_LENGTH // 2}")
    if sum(map(bool, (uses, cbr, dimensions))) > 1:
        raise BadInputError(f"options channel_uses, cbr and {name}: each says how much is sent; give one of them")


def limit(uses: int, cbr: str, height: int, width: int) -> int | None:
    """Return the channel uses that a picture may take, None for any number."""
    return uses_of_cbr(parse_cbr(cbr), height, width) if cbr else uses or None


def too_few(cbr: str, allowed: int, needs: str) -> BadInputError:
    """Return the refusal of a limit that not even the least fits into."""
    return BadInputError(f"{f'cbr {cbr}: ' if cbr else ''}{allowed} channel uses allowed: {needs}")


def check_size(width: int, height: int, system: str) -> None:
    """Refuse a picture's size out of the side information that no picture can have.

    Raises:
        BadInputError: when it is none.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise BadInputError(f"side information of {system} contradicts itself")


class Describer(Protocol):
    """A model that captions pictures in tokens of its own table."""

    @property
    def table(self) -> NDArray[np.float32]:
        """Input embeddings, (V, D)."""

    def caption(self, images: list[NDArray[np.uint8]]) -> list[list[int]]:
        """Return the token ids of a description of each picture."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""


@dataclass(frozen=True)
class SideInfo:
    """What the receiver must know of the picture, in the protected header (6 bytes, big endian)."""

    width: int
    height: int
    text_mode: str
    text_dimensions: int

    LAYOUT = struct.Struct(">HHBB")

    def pack(self) -> bytes:
        """Return the 6 bytes."""
        return self.LAYOUT.pack(self.width, self.height, TEXT_MODES.index(self.text_mode), self.text_dimensions)

    @classmethod
    def unpack(cls, data: bytes, system: str) -> SideInfo:
        """Read the 6 bytes.

        Raises:
            BadInputError: when they are not 6 or say something impossible.
        """
        if len(data) != cls.LAYOUT.size:
            raise BadInputError(f"side information of {len(data)} bytes: {system} sends {cls.LAYOUT.size}")
        width, height, mode, dimensions = cls.LAYOUT.unpack(data)
        check_size(width, height, system)
        if mode >= len(TEXT_MODES) or not dimensions:
            raise BadInputError(f"side information of {system} contradicts itself")
        return cls(width, height, TEXT_MODES[mode], dimensions)


class CaptionOnly:
    """The system; see the module's description.

    Args:
        name: its name on the command line.
        describer: makes the caption, and holds the table that both ends know.
        generator: makes the picture.
    """

    def __init__(self, name: str, describer: Describer, generator: Generator) -> None:
        self.name = name
        self._describer = describer
        self._generator = generator

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``; one stream, the caption.

        Raises:
            BadInputError: also for a limit that the caption does not fit into.
        """
        return self.encode_many([image], options)[0]

    def encode_many(self, images: Sequence[NDArray[np.uint8]], options: Options) -> list[Encoded]:
        """See ``BatchSystem.encode_many``: all pictures are captioned in one batch."""
        chosen = parse_options(CaptionOptions, options, self.name)
        captions = self._describer.caption(list(images))
        return [self._encode(image, tokens, chosen) for image, tokens in zip(images, captions, strict=True)]

    def _encode(self, image: NDArray[np.uint8], tokens: list[int], chosen: CaptionOptions) -> Encoded:
        height, width = image.shape[:2]
        channel, stream = self._fit(tokens, chosen, limit(chosen.channel_uses, chosen.cbr, height, width))
        side_info = SideInfo(width, height, channel.mode, channel.book.dimensions)
        uses = channel_uses(stream)
        facts = [f"{len(tokens)} tokens of {channel.book.dimensions} coefficients: {uses} channel uses"]
        preview = {"captions": [self._describer.decode(tokens)], "coding": facts}
        return Encoded([stream], side_info.pack(), preview)

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``; an outage only when nothing at all was received."""
        return self.decode_many([received], options)[0]

    def decode_many(self, received: Sequence[ReceivedImage], options: Options) -> list[Reconstruction]:
        """See ``BatchSystem.decode_many``: pictures of one size are made in one batch."""
        chosen = parse_options(CaptionOptions, options, self.name)
        orders = [self._order(one, chosen) for one in received]
        made = iter(self._generator.generate_all([order for order in orders if order], steps=chosen.steps))
        nothing = Reconstruction(None, outage_reason="nothing of the caption was received")
        return [Reconstruction(next(made), {"received": list(o.captions)}) if o else nothing for o in orders]

    def _order(self, received: ReceivedImage, chosen: CaptionOptions) -> Order | None:
        """What the generator is to make of what arrived; None when nothing did."""
        side_info = SideInfo.unpack(received.side_info, self.name)
        stream = next((s for s in received.streams if s.name == STREAM and s.delivered), None)
        if stream is None:
            return None
        dimensions = side_info.text_dimensions
        channel = TextChannel(self._describer, side_info.text_mode, dimensions, chosen.text_bits)
        text = channel.text(stream.data)
        return Order([text], None, None, (side_info.width, side_info.height), chosen.seed)

    def _fit(self, tokens: list[int], chosen: CaptionOptions, allowed: int | None) -> tuple[TextChannel, Stream]:
        """The caption as a stream, with as many coefficients a token as the limit allows."""

        def code(dimensions: int) -> tuple[TextChannel, Stream]:
            channel = TextChannel(self._describer, chosen.text_mode, dimensions, chosen.text_bits)
            coefficients = channel.coefficients(tokens)
            modulation, quantiser = chosen.text_modulation, channel.book.quantiser
            return channel, Stream(STREAM, coefficients, modulation, chosen.text_code, quantiser)

        channel, stream = code(chosen.text_dimensions)
        if allowed is None:
            return channel, stream
        if chosen.text_mode == "embedding":
            rows, width = self._describer.table.shape
            # Fewer bits than the tokens' numbers have cannot tell them apart.
            least = -(-(rows - 1).bit_length() // chosen.text_bits)
            choices = range(least, min(width, MAX_DIMENSIONS) + 1)
            bits = stream.quantiser.bits if stream.quantiser else 1

            def uses(dimensions: int) -> int:
                blank = np.zeros(len(tokens) * dimensions * bits, np.uint8)
                return channel_uses(Stream(STREAM, blank, chosen.text_modulation, chosen.text_code))

            channel, stream = code(choices[max(0, bisect_right(choices, allowed, key=uses) - 1)])
        if channel_uses(stream) > allowed:
            needs = f"the caption of {len(tokens)} tokens takes at least {channel_uses(stream)}"
            raise too_few(chosen.cbr, allowed, needs)
        return channel, stream


def vlm_csc(models: str) -> CaptionOnly:
    """VLM-CSC: the caption is BLIP's.

    Raises:
        ModelError: when a checkpoint cannot be loaded.
    """
    profile = load_profile(models)
    describer = profile.load(BlipCaptioner, "blip")
    return CaptionOnly("vlm-csc", describer, profile.load(Generator, "stable-diffusion", "ip-adapter"))
