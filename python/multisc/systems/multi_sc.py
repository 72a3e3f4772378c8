"""Multi-SC (Algorithm 1 of the paper) and its ablation with one caption.

Transmitter: the FCN cuts the main subject (eq. 1), LLaVA captions each block of the picture (eq. 2), each
caption becomes a text embedding. Receiver: embeddings become text again (eq. 4), BART corrects it (eq. 5),
IP-Adapter rebuilds the picture from the captions and the slice (eqs. 6 and 10).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.codecs import pixels
from multisc.codecs.text import TEXT_MODES, Reading, TextChannel, letters
from multisc.errors import BadInputError
from multisc.images import MAX_PIXELS
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.generator import MAX_BATCH, GenerationRequest, Generator
from multisc.models.profile import load_profile
from multisc.models.segmenter import Segmenter
from multisc.models.slice_denoiser import SliceDenoiser
from multisc.phy.transport import channel_uses
from multisc.streams import DIGITAL_MODULATIONS, Encoded, ReceivedImage, Reconstruction, Stream
from multisc.systems import budget, slices
from multisc.systems.base import Options, check_codes, parse_options

SLICE_CODECS = ("pixels", "bpg", "jscc")
MAX_CANDIDATES = 64
BLOCK_NAMES = {1: ("text",), 4: ("text-tl", "text-tr", "text-bl", "text-br")}


@dataclass(frozen=True)
class MultiScOptions:
    """What can be chosen for one picture; validated when built.

    Args:
        cbr: channel bandwidth ratio of slice and captions together, such as "1/48"; the slice takes what the captions
            leave. Empty for no such limit: then the slice has 64 pixels on its longer side, or, as BPG or by JSCC,
            as many channel uses as the quantised pixels of such a slice.
        slice_codec: one of ``SLICE_CODECS``, or empty for "jscc", which serves best; then a slice that is too thin
            for it, that has a ``slice_code``, or whose models lack deep JSCC, travels as "pixels", as in the paper.
        slice_size: limit of the slice's longer side in pixels, 8 to 1024; 0 for none but what ``cbr`` sets.
        slice_bits: bits per colour sample of quantised pixels, 1 to 8.
        slice_modulation, text_modulation: digital modulation of the streams; JSCC has none.
        slice_code, text_code: "none" or a code of ``multisc.phy.fec``; an empty ``slice_code`` is "none" for
            quantised pixels and "nr:1/2" for BPG, and JSCC has none. Unequal protection is a lower rate for the texts
            than for the slice.
        text_mode: how a caption travels, one of ``TEXT_MODES``: as the paper's embedding, token numbers or bytes.
        text_dimensions: coefficients per token, d of the projection, 1 to 255; 0 for what suits the model's table.
        text_bits: bits per coefficient, 1 to 8. Only the mode ``embedding`` leaves a choice of the two.
        ip_scale: weight lambda of the image prompt (eq. 10), 0 to 2.
        regional: whether each quarter of the picture attends to the caption of its own block before the others.
        steps: denoising steps, 1 to 200.
        candidates: pictures that the receiver generates, 1 to 64; it shows the one of which the captioner would most
            likely say what the received captions say.
        seed: seed of the diffusion, not negative.
        expected_db: Es/N0 per channel use that JSCC's transmitter expects, in whole dB, -30 to 60.
        draft: whether the receiver stops before correction and generation, which take seconds: there are the captions
            as received and the slice with its place, and no picture.

    Raises:
        BadInputError: for a value outside its range.
    """

    cbr: str = ""
    slice_codec: str = ""
    slice_size: int = 0
    slice_bits: int = 6
    slice_modulation: str = "qpsk"
    slice_code: str = ""
    text_mode: str = "embedding"
    text_dimensions: int = 0
    text_bits: int = 1
    text_modulation: str = "qpsk"
    text_code: str = "none"
    ip_scale: float = 1.0
    regional: bool = True
    steps: int = 20
    candidates: int = 1
    seed: int = 0
    expected_db: int = 10
    draft: bool = False

    def __post_init__(self) -> None:
        if self.cbr:
            budget.parse_cbr(self.cbr)
        if self.slice_codec and self.slice_codec not in SLICE_CODECS:
            raise BadInputError(f"option slice_codec is {self.slice_codec}: must be one of {', '.join(SLICE_CODECS)}")
        if self.slice_size and not slices.MIN_SIDE <= self.slice_size <= slices.MAX_SIDE:
            limits = f"0 or {slices.MIN_SIDE} to {slices.MAX_SIDE}"
            raise BadInputError(f"option slice_size is {self.slice_size}: must be {limits}")
        for name, low, high in (
            ("slice_bits", 1, 8),
            ("text_dimensions", 0, 255),
            ("text_bits", 1, 8),
            ("ip_scale", 0, 2),
            ("steps", 1, 200),
            ("candidates", 1, MAX_CANDIDATES),
            ("seed", 0, 2**63 - 1),
            ("expected_db", -30, 60),
        ):
            if not low <= getattr(self, name) <= high:
                raise BadInputError(f"option {name} is {getattr(self, name)}: must be {low} to {high}")
        if self.text_mode not in TEXT_MODES:
            raise BadInputError(f"option text_mode is {self.text_mode}: must be one of {', '.join(TEXT_MODES)}")
        for name in ("slice_modulation", "text_modulation"):
            if getattr(self, name) not in DIGITAL_MODULATIONS:
                raise BadInputError(f"option {name}: must be one of {', '.join(DIGITAL_MODULATIONS)}")
        if self.slice_codec == "jscc" and self.slice_code:
            raise BadInputError(f"option slice_code is {self.slice_code}: a slice by JSCC is analog and has no code")
        check_codes(self, "text_code", *(["slice_code"] if self.slice_code else []))


@dataclass(frozen=True)
class SideInfo:
    """What the receiver must know of the picture, in the protected header (21 bytes, big endian)."""

    width: int
    height: int
    box: pixels.Box
    slice_width: int
    slice_height: int
    slice_codec: str
    blocks: int
    text_mode: str
    text_dimensions: int
    expected_db: int

    LAYOUT = struct.Struct(">HHHHHHHHBBBBb")

    def pack(self) -> bytes:
        """Return the 21 bytes."""
        sizes = (self.width, self.height, *self.box, self.slice_width, self.slice_height)
        codecs = (SLICE_CODECS.index(self.slice_codec), self.blocks, TEXT_MODES.index(self.text_mode))
        return self.LAYOUT.pack(*sizes, *codecs, self.text_dimensions, self.expected_db)

    @classmethod
    def unpack(cls, data: bytes) -> SideInfo:
        """Read the 21 bytes.

        Raises:
            BadInputError: when they are not 21 or say something impossible.
        """
        if len(data) != cls.LAYOUT.size:
            raise BadInputError(f"side information of {len(data)} bytes: Multi-SC sends {cls.LAYOUT.size}")
        width, height, x, y, w, h, slice_width, slice_height, *codes = cls.LAYOUT.unpack(data)
        codec, blocks, mode, dimensions, expected_db = codes
        fits = 0 < w <= width - x and 0 < h <= height - y and width * height <= MAX_PIXELS
        fits = fits and 0 < slice_width <= slices.MAX_SIDE and 0 < slice_height <= slices.MAX_SIDE
        fits = fits and codec < len(SLICE_CODECS) and mode < len(TEXT_MODES)
        if not fits or blocks not in BLOCK_NAMES or not dimensions:
            raise BadInputError("side information of Multi-SC contradicts itself")
        piece = (slice_width, slice_height, SLICE_CODECS[codec])
        return cls(width, height, (x, y, w, h), *piece, blocks, TEXT_MODES[mode], dimensions, expected_db)


@dataclass(frozen=True)
class _Arrived:
    """What was delivered of a picture: side information, a reading of each caption, the slice if it is there."""

    side_info: SideInfo
    readings: list[Reading]
    received: slices.ReceivedSlice | None

    @property
    def texts(self) -> list[str]:
        return [reading.text for reading in self.readings]

    @property
    def piece(self) -> NDArray[np.uint8] | None:
        return self.received.piece if self.received else None

    @property
    def size(self) -> tuple[int, int]:
        return self.side_info.width, self.side_info.height

    def order(self, captions: Sequence[str], seed: int) -> GenerationRequest:
        """What the generator is to make of it, once the captions are corrected."""
        if self.received is None:
            return GenerationRequest(captions, None, None, self.size, seed)
        return GenerationRequest(
            captions, self.received.piece, self.side_info.box, self.size, seed, self.received.error
        )


def split(image: NDArray[np.uint8], blocks: int) -> list[NDArray[np.uint8]]:
    """Divide a picture into its blocks: the whole, or quarters top left, top right, bottom left, bottom right.

    Args:
        image: uint8 of shape (H, W, 3).
        blocks: 1 or 4.
    """
    if blocks == 1:
        return [image]
    middle_row, middle_column = image.shape[0] // 2, image.shape[1] // 2
    halves = (image[:middle_row], image[middle_row:])
    return [part for half in halves for part in (half[:, :middle_column], half[:, middle_column:])]


class MultiSc:
    """The system with four captions or with one.

    Args:
        name: its name on the command line.
        blocks: number of captions, 1 or 4.
        models: profile of the models (``multisc.models.profile``).

    Raises:
        ModelError: when a checkpoint cannot be loaded.
    """

    def __init__(self, name: str, blocks: int, models: str) -> None:
        profile = load_profile(models)
        self.name = name
        self._blocks = blocks
        self._profile = profile
        self._segmenter = profile.load(Segmenter, "fcn")
        self._captioner = profile.load(Captioner, "llava")
        self._corrector = profile.load(Corrector, "bart")
        self._tokens = self._corrector.tokens_of(self._captioner.processor.tokenizer, len(self._captioner.table))
        self._generator = profile.load(Generator, "stable-diffusion", "ip-adapter")

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``; the streams are the slice and the captions in the order of the blocks."""
        return self.encode_many([image], options)[0]

    def encode_many(self, images: Sequence[NDArray[np.uint8]], options: Options) -> list[Encoded]:
        """See ``BatchSystem.encode_many``: the captions of all blocks of all pictures are made in one batch."""
        chosen = parse_options(MultiScOptions, options, self.name)
        blocks = [block for image in images for block in split(image, self._blocks)]
        captions = self._captioner.caption(blocks)
        channel = TextChannel(self._captioner, chosen.text_mode, chosen.text_dimensions, chosen.text_bits)
        own = (captions[start : start + self._blocks] for start in range(0, len(captions), self._blocks))
        return [self._encode(image, ids, channel, chosen) for image, ids in zip(images, own, strict=True)]

    def _encode(
        self, image: NDArray[np.uint8], captions: list[list[int]], channel: TextChannel, chosen: MultiScOptions
    ) -> Encoded:
        height, width = image.shape[:2]
        subject = self._segmenter.segment(image)
        quantiser = channel.book.quantiser
        texts = [
            Stream(name, channel.coefficients(ids), chosen.text_modulation, chosen.text_code, quantiser)
            for name, ids in zip(BLOCK_NAMES[self._blocks], captions, strict=True)
        ]
        codec, coded = self._encode_slice(image, subject.box, chosen, sum(map(channel_uses, texts)))
        piece = coded.piece
        side_info = SideInfo(
            width,
            height,
            subject.box,
            piece.shape[1],
            piece.shape[0],
            codec,
            self._blocks,
            chosen.text_mode,
            channel.book.dimensions,
            chosen.expected_db,
        )
        preview = {
            "mask": np.where(subject.mask, 255, 0).astype(np.uint8),
            "box": list(subject.box),
            "label": subject.label,
            "slice": piece,
            "captions": [self._captioner.decode(ids) for ids in captions],
        }
        return Encoded([coded.stream, *texts], side_info.pack(), preview)

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``; nothing can be shown only when no stream was delivered."""
        return self.decode_many([received], options)[0]

    def decode_many(self, received: Sequence[ReceivedImage], options: Options) -> list[Reconstruction]:
        """See ``BatchSystem.decode_many``: captions are corrected, and pictures of one size made, in batches."""
        chosen = parse_options(MultiScOptions, options, self.name)
        arrived = [self._read(one, chosen) for one in received]
        shown = [one for one in arrived if one is not None]
        made = iter([self._draft(one) for one in shown] if chosen.draft else self._rebuild(shown, chosen))
        nothing = Reconstruction(None, outage_reason="no stream of the picture was delivered")
        return [nothing if one is None else next(made) for one in arrived]

    def _read(self, received: ReceivedImage, chosen: MultiScOptions) -> _Arrived | None:
        """Read captions and slice out of the streams; None when none of them was delivered."""
        side_info = SideInfo.unpack(received.side_info)
        streams = {stream.name: stream for stream in received.streams if stream.delivered}
        if not streams:
            return None
        bits = chosen.text_bits if side_info.text_mode == "embedding" else 1
        channel = TextChannel(self._captioner, side_info.text_mode, side_info.text_dimensions, bits)
        readings = [
            channel.read(streams[name].data) if name in streams else Reading.lost()
            for name in BLOCK_NAMES[side_info.blocks]
        ]
        found = None
        if slices.STREAM in streams:
            size = (side_info.slice_width, side_info.slice_height)
            sent_as = replace(chosen, slice_codec=side_info.slice_codec, expected_db=side_info.expected_db)
            found = self._slice_codec(sent_as).decode(streams[slices.STREAM], size)
        return _Arrived(side_info, readings, found)

    def _draft(self, arrived: _Arrived) -> Reconstruction:
        preview = {"box": list(arrived.side_info.box), "size": list(arrived.size), **_preview(arrived)}
        return Reconstruction(None, {"received": arrived.texts}, "a draft has no picture", preview)

    def _rebuild(self, arrived: list[_Arrived], chosen: MultiScOptions) -> list[Reconstruction]:
        captions = self._correct(arrived)
        if chosen.candidates == 1:
            orders = [one.order(texts, chosen.seed) for one, texts in zip(arrived, captions, strict=True)]
            pictures = self._generator.generate_all(orders, chosen.ip_scale, chosen.steps, regional=chosen.regional)
        else:
            pictures = [self._closest(one, texts, chosen) for one, texts in zip(arrived, captions, strict=True)]
        return [
            Reconstruction(picture, {"received": one.texts, "corrected": texts}, preview=_preview(one))
            for picture, one, texts in zip(pictures, arrived, captions, strict=True)
        ]

    def _correct(self, arrived: list[_Arrived]) -> list[list[str]]:
        """Correct the captions of all pictures, those in letters and those in tokens apart."""
        corrected: dict[tuple[int, int], str] = {}
        for in_bytes in (False, True):
            places = [
                (number, place)
                for number, one in enumerate(arrived)
                if (one.side_info.text_mode == "byte") == in_bytes
                for place in range(len(one.readings))
            ]
            readings = [arrived[number].readings[place] for number, place in places]
            alphabet = (None, letters) if in_bytes else (self._tokens, self._captioner.encode)
            corrected |= zip(places, self._corrector.correct_readings(readings, *alphabet), strict=True)
        return [
            [corrected[number, place] for place in range(len(one.readings))] for number, one in enumerate(arrived)
        ]

    def _closest(self, arrived: _Arrived, captions: list[str], chosen: MultiScOptions) -> NDArray[np.uint8]:
        """The candidate that the captioner finds to fit the captions best; the first when there are none."""

        def fit(picture: NDArray[np.uint8]) -> float:
            pairs = [pair for pair in zip(split(picture, len(captions)), captions, strict=True) if pair[1]]
            likelihoods = self._captioner.log_likelihood([block for block, _ in pairs], [text for _, text in pairs])
            return float(likelihoods.sum())

        seeds = range(chosen.seed, chosen.seed + chosen.candidates)
        best: tuple[float, NDArray[np.uint8]] | None = None
        for start in range(0, len(seeds), MAX_BATCH):
            orders = [arrived.order(captions, seed) for seed in seeds[start : start + MAX_BATCH]]
            made = self._generator.generate_all(orders, chosen.ip_scale, chosen.steps, regional=chosen.regional)
            for picture in made:
                found = fit(picture)
                if best is None or found > best[0]:
                    best = found, picture
        assert best is not None
        return best[1]

    def _encode_slice(
        self, image: NDArray[np.uint8], box: pixels.Box, chosen: MultiScOptions, text_uses: int
    ) -> tuple[str, slices.CodedSlice]:
        """Code the slice within what the budget leaves for it; return the codec's name, too."""
        side, uses = chosen.slice_size or slices.MAX_SIDE, sys.maxsize
        if chosen.cbr:
            uses = budget.channel_uses(budget.parse_cbr(chosen.cbr), *image.shape[:2])
            if uses <= text_uses:
                raise BadInputError(
                    f"cbr {chosen.cbr}: allows this picture {uses} channel uses; the captions alone take {text_uses}"
                )
            uses -= text_uses
        codecs = [chosen.slice_codec] if chosen.slice_codec else self._preferred(chosen)
        for number, name in enumerate(codecs, 1):
            codec = replace(chosen, slice_codec=name)
            allowed = (side, uses) if chosen.cbr else self._usual_limits(image, box, codec)
            try:
                return name, self._slice_codec(codec).encode(image, box, *allowed)
            except BadInputError as error:
                if number == len(codecs):
                    raise BadInputError(f"cbr {chosen.cbr}: {error}" if chosen.cbr else str(error)) from error
        raise AssertionError("there is always a codec")

    def _preferred(self, chosen: MultiScOptions) -> list[str]:
        """The codecs to try, the best first."""
        analog = "deep-jscc" in self._profile.sources and not chosen.slice_code
        return ["jscc", "pixels"] if analog else ["pixels"]

    def _usual_limits(self, image: NDArray[np.uint8], box: pixels.Box, chosen: MultiScOptions) -> tuple[int, int]:
        """Side and channel uses of a slice that no budget limits."""
        if chosen.slice_codec == "pixels":
            return chosen.slice_size or slices.USUAL_SIDE, sys.maxsize
        usual = pixels.crop(image, box, slices.USUAL_SIDE)
        uses = channel_uses(slices.PixelSlices(chosen.slice_bits, chosen.slice_modulation, "none").stream(usual))
        return chosen.slice_size or slices.MAX_SIDE, uses

    def _slice_codec(self, chosen: MultiScOptions) -> slices.SliceCodec:
        if chosen.slice_codec == "jscc":
            from multisc.models.jscc import Jscc

            return slices.JsccSlices(self._profile.load(Jscc, "deep-jscc"), chosen.expected_db)
        if chosen.slice_codec == "bpg":
            return slices.BpgSlices(chosen.slice_modulation, chosen.slice_code or "nr:1/2")
        denoiser = self._profile.load(SliceDenoiser, "slice-denoiser")
        return slices.PixelSlices(chosen.slice_bits, chosen.slice_modulation, chosen.slice_code or "none", denoiser)


def _preview(arrived: _Arrived) -> dict[str, Any]:
    return {} if arrived.piece is None else {"slice": arrived.piece}


def multi_sc(models: str) -> MultiSc:
    """Multi-SC with the picture in four blocks."""
    return MultiSc("multi-sc", 4, models)


def single_text(models: str) -> MultiSc:
    """The paper's single-text ablation: one caption of the whole picture."""
    return MultiSc("single-text", 1, models)
