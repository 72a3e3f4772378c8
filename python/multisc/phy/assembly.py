"""Putting the bursts of an image together again, whichever transmitters they came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.grid import Segment
from multisc.phy.header import StreamEntry
from multisc.phy.receiver import ReceivedBurst
from multisc.phy.transport import StreamDescriptor, demodulate
from multisc.streams import ReceivedImage, ReceivedStream


@dataclass(frozen=True)
class AssembledImage:
    """All that arrived of one image.

    Args:
        image_id: from the header.
        system: name of the system.
        side_info: the system's own bytes.
        image_streams: streams the image was sent with; fewer in ``streams`` if no burst of some transmitter arrived.
        complete: whether every burst arrived whole.
        streams: descriptor, symbols complex64 (descriptor.symbols,), noise variance float32 of that shape, inf where
            nothing arrived; in the order of their positions in the image.
        indices: position of each of these streams in the image.
        bursts_received: different bursts that arrived.
        bursts_total: bursts that were sent, as far as the headers tell.
        snr_db: mean Es/N0 of the bursts.
        cfo: mean carrier offset of the bursts in subcarriers.
    """

    image_id: int
    system: str
    side_info: bytes
    image_streams: int
    complete: bool
    streams: list[tuple[StreamDescriptor, NDArray[np.complex64], NDArray[np.float32]]]
    indices: list[int]
    bursts_received: int
    bursts_total: int
    snr_db: float
    cfo: float

    def receive(self) -> ReceivedImage:
        """Demodulate and decode every stream.

        A stream whose description contradicts itself comes out as not delivered, without data.
        """
        received = []
        for descriptor, symbols, variance in self.streams:
            try:
                received.append(demodulate(descriptor, symbols, variance))
            except BadInputError:
                empty = np.zeros(
                    0, np.float32 if descriptor.modulation == "analog" or descriptor.quantiser else np.uint8
                )
                received.append(ReceivedStream(descriptor.name, empty, delivered=False))
        return ReceivedImage(received, self.side_info)


@dataclass
class _Stream:
    entry: StreamEntry
    total: int
    segments: dict[int, Segment] = field(default_factory=dict)  # by offset
    whole: set[int] = field(default_factory=set)  # offsets of those that arrived whole

    def add(self, segment: Segment) -> None:
        """Take a segment in, unless it came before and was whole."""
        if segment.offset not in self.whole:
            self.segments[segment.offset] = segment
            if np.isfinite(segment.noise_variance).all():
                self.whole.add(segment.offset)

    def complete(self) -> bool:
        needed = min(self.total, self.entry.descriptor.symbols)
        return sum(offset < needed for offset in self.whole) == needed

    def gather(self) -> tuple[StreamDescriptor, NDArray[np.complex64], NDArray[np.float32]]:
        size = self.entry.descriptor.symbols
        symbols, variance = np.zeros(size, np.complex64), np.full(size, np.inf, np.float32)
        for offset, segment in self.segments.items():
            symbols[offset :: self.total] = segment.symbols
            variance[offset :: self.total] = segment.noise_variance
        return self.entry.descriptor, symbols, variance


@dataclass
class _Image:
    system: str
    side_info: bytes
    image_streams: int
    streams: dict[int, _Stream] = field(default_factory=dict)
    bursts: set[tuple[frozenset[int], int]] = field(default_factory=set)
    totals: dict[frozenset[int], int] = field(default_factory=dict)
    snrs: list[float] = field(default_factory=list)
    cfos: list[float] = field(default_factory=list)
    last: int = 0


class Assembler:
    """Collects bursts by image id and hands an image on when it is whole, or when nothing more is to be expected.

    Args:
        max_images: images under way at once; the one that has waited longest is handed on incomplete beyond that.
        max_symbols: symbols an image may have in all streams; bursts of larger ones are dropped and counted.
        patience: samples without a burst of an image after which it is handed on incomplete.

    Attributes:
        contradictions: bursts or streams dropped because they contradict others of the same image or are too large.
        duplicates: bursts that had arrived before.
    """

    def __init__(self, max_images: int = 16, max_symbols: int = 1 << 22, patience: int = 20_000_000) -> None:
        if max_images < 1 or max_symbols < 1 or patience < 1:
            raise BadInputError("the assembler's limits must be positive")
        self._max_images = max_images
        self._max_symbols = max_symbols
        self._patience = patience
        self._images: dict[int, _Image] = {}  # in the order of their latest burst
        self.contradictions = 0
        self.duplicates = 0

    def add(self, burst: ReceivedBurst) -> list[AssembledImage]:
        """Take in a burst.

        Returns:
            The images that are now finished: usually none or one.
        """
        done = self._expire(burst.start)
        header = burst.header
        image = self._images.pop(header.image_id, None)
        if image is None:
            image = _Image(header.system, header.side_info, header.image_streams)
        if self._contradicts(image, burst):
            self.contradictions += 1
            if image.bursts:
                self._images[header.image_id] = image
            return done
        self._images[header.image_id] = image
        self._store(image, burst)
        if self._complete(image):
            done.append(self._hand_on(header.image_id))
        elif len(self._images) > self._max_images:
            done.append(self._hand_on(next(iter(self._images))))
        return done

    def flush(self) -> list[AssembledImage]:
        """Hand on every image under way, as incomplete."""
        return [self._hand_on(image_id) for image_id in list(self._images)]

    def _expire(self, now: int) -> list[AssembledImage]:
        late = [image_id for image_id, image in self._images.items() if now - image.last > self._patience]
        return [self._hand_on(image_id) for image_id in late]

    def _contradicts(self, image: _Image, burst: ReceivedBurst) -> bool:
        header = burst.header
        if (header.system, header.side_info, header.image_streams) != (
            image.system, image.side_info, image.image_streams,
        ):  # fmt: skip
            return True
        sizes = {index: s.entry.descriptor.symbols for index, s in image.streams.items()}
        for entry in header.streams:
            known = image.streams.get(entry.index)
            if known and (known.entry.descriptor != entry.descriptor or known.total != header.total):
                return True
            sizes[entry.index] = entry.descriptor.symbols
        return sum(sizes.values()) > self._max_symbols

    def _store(self, image: _Image, burst: ReceivedBurst) -> None:
        header = burst.header
        group = frozenset(entry.index for entry in header.streams)
        self.duplicates += (group, header.sequence) in image.bursts
        image.bursts.add((group, header.sequence))
        image.totals[group] = header.total
        image.snrs.append(burst.snr_db)
        image.cfos.append(burst.cfo)
        image.last = burst.start
        for segment in burst.segments:
            stream = image.streams.setdefault(segment.entry.index, _Stream(segment.entry, segment.stride))
            stream.add(segment)

    def _complete(self, image: _Image) -> bool:
        return len(image.streams) == image.image_streams and all(s.complete() for s in image.streams.values())

    def _hand_on(self, image_id: int) -> AssembledImage:
        image = self._images.pop(image_id)
        indices = sorted(image.streams)
        return AssembledImage(
            image_id=image_id,
            system=image.system,
            side_info=image.side_info,
            image_streams=image.image_streams,
            complete=self._complete(image),
            streams=[image.streams[i].gather() for i in indices],
            indices=indices,
            bursts_received=len(image.bursts),
            bursts_total=sum(image.totals.values()),
            snr_db=float(10.0 * np.log10(np.mean(10.0 ** (np.array(image.snrs) / 10.0)))),
            cfo=float(np.mean(image.cfos)),
        )
