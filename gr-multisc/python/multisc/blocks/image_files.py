"""Blocks between picture files and messages."""

from __future__ import annotations

import threading
from pathlib import Path

import pmt

from multisc import images
from multisc.errors import BadInputError
from multisc.files import make_folder

from .. import pdu
from .message_block import Faults, MessageBlock

MAX_ID = 2**32 - 1


def example_photograph() -> str:
    """The path of a photograph that ships with scikit-image, for flowgraphs to start with."""
    import skimage

    return str(Path(skimage.__file__).parent / "data" / "chelsea.png")


class image_source(MessageBlock):
    """Picture files in, image PDUs out.

    Output ``image``. Either every picture is sent when the flowgraph starts, and ``pdu.END`` behind the last one, or
    each message at the input ``next``, of whatever kind, sends the next one, round and round, without an end. The
    files are read when the block is made.

    Args:
        paths: one or more picture files.
        on_demand: whether pictures wait for messages.
        first_id: image id of the first picture sent; the ids count up from there. Pictures that share a channel must
            not share ids.
        faults: shared record of failures.

    Raises:
        BadInputError: when a file is no picture that can be sent, or there is none, or for an id out of range.
    """

    def __init__(
        self, paths: str | list[str], on_demand: bool = False, first_id: int = 0, faults: Faults | None = None
    ) -> None:
        super().__init__("multisc_image_source", ["next"], ["image"], faults)
        if not paths:
            raise BadInputError("image source without a picture: name a PNG, JPEG, WebP, BMP, GIF, TIFF or PNM file")
        if not 0 <= first_id <= MAX_ID:
            raise BadInputError(f"image id {first_id}: must be 0 to {MAX_ID}")
        self._images = [images.load_image(path) for path in ([paths] if isinstance(paths, str) else paths)]
        self._on_demand = on_demand
        self._first_id = first_id
        self._sent = 0

    def start(self) -> bool:
        """Send the pictures, unless they wait for messages."""
        if not self._on_demand:
            for _ in self._images:
                self._send_next()
            self.send("image", pdu.END)
        return super().start()

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Send one picture."""
        if not self._on_demand:
            raise BadInputError("image source: a message at port next, but every picture was sent at the start")
        self._send_next()

    def _send_next(self) -> None:
        image_id = (self._first_id + self._sent) % (MAX_ID + 1)
        self.send("image", pdu.pack_image(self._images[self._sent % len(self._images)], image_id))
        self._sent += 1


class image_file_sink(MessageBlock):
    """Image PDUs in, PNG files out: ``FOLDER/<image id>.png``, and a line in the log for an outage.

    Input ``image``.

    Args:
        folder: where the pictures go; made when it is not there.
        faults: shared record of failures.

    Raises:
        BadInputError: when the folder cannot be made.

    Attributes:
        received, outages: how many pictures came, and how many times there was nothing to show.
        done: set when ``pdu.END`` came.
    """

    def __init__(self, folder: str, faults: Faults | None = None) -> None:
        super().__init__("multisc_image_file_sink", ["image"], [], faults)
        make_folder(folder)
        self._folder = Path(folder)
        self.received = 0
        self.outages = 0
        self.done = threading.Event()

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Write one picture."""
        if pdu.is_end(message):
            self.done.set()
            return
        meta, flat = pdu.unpack(message)
        if meta.get("outage"):
            self.outages += 1
            self.log(f"image {meta['image_id']}: outage, {meta['outage_reason']}")
            return
        picture, image_id = pdu.unpack_image(meta, flat)
        path = self._folder / f"{image_id}.png"
        images.save_png(path, picture)
        self.received += 1
        self.log(f"image {image_id}: {path}")
