"""Streams that wait until those of their image are complete."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from gnuradio import gr

from ..pdu import Envelope

MAX_IMAGES = 16
T = TypeVar("T")


class ReassemblyBuffer(Generic[T]):
    """Collects the streams of images; the image that has waited longest is given up beyond ``MAX_IMAGES``.

    Args:
        where: the block, for the log.

    Attributes:
        given_up: images that were never complete.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._images: OrderedDict[int, dict[int, T]] = OrderedDict()
        self.given_up = 0

    def add(self, envelope: Envelope, stream: T) -> list[T] | None:
        """Take in a stream.

        Returns:
            The streams of its image in their order when this was the last one, else None.
        """
        streams = self._images.setdefault(envelope.image_id, {})
        streams[envelope.index] = stream
        if len(self._images) > MAX_IMAGES:
            image_id, found = self._images.popitem(last=False)
            self.given_up += 1
            gr.logger(self._where).warn(f"image {image_id} given up: only {len(found)} of its streams came")
        if len(streams) < envelope.count:
            return None
        del self._images[envelope.image_id]
        return [streams[index] for index in sorted(streams)]
