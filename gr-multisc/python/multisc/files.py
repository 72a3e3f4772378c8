"""Blocks between picture files and messages."""

from __future__ import annotations

from pathlib import Path

import pmt

from multisc import images
from multisc.files import make_folder

from . import pdu
from .message_block import Faults, MessageBlock


class image_source(MessageBlock):
    """Picture files in, image PDUs out, then ``pdu.END``.

    Output ``image``. The files are read when the block is made; the first gets the image id 0.

    Args:
        paths: one or more picture files.
        faults: shared record of failures.

    Raises:
        BadInputError: when a file is no picture that can be sent.
    """

    def __init__(self, paths: str | list[str], faults: Faults | None = None) -> None:
        super().__init__("multisc_image_source", [], ["image"], faults)
        self._images = [images.load_image(path) for path in ([paths] if isinstance(paths, str) else paths)]

    def start(self) -> bool:
        """Send the pictures."""
        for image_id, image in enumerate(self._images):
            self.send("image", pdu.pack_image(image, image_id))
        self.send("image", pdu.END)
        return super().start()


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
    """

    def __init__(self, folder: str, faults: Faults | None = None) -> None:
        super().__init__("multisc_image_file_sink", ["image"], [], faults)
        make_folder(folder)
        self._folder = Path(folder)
        self.received = 0
        self.outages = 0

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Write one picture."""
        if pdu.is_end(message):
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
