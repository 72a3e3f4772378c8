"""Blocks between symbols of streams and resource grids: the orthogonal channels by themselves."""

from __future__ import annotations

from multisc.phy.assembly import AssembledImage, Assembler
from multisc.phy.config import PhyConfig
from multisc.phy.grid import multiplex
from multisc.phy.transport import ModulatedStream

from .. import pdu
from . import grid_pdu
from .message_block import Faults, MessageBlock
from .reassembly import ReassemblyBuffer


class multiplexer(MessageBlock):
    """Symbols (c32) of an image's streams in, one resource grid (c32) per burst out.

    Ports ``symbols`` and ``grid``. It stands before the burst transmitter's port ``grid``; a burst transmitter that
    gets symbols multiplexes by itself in the same way (pdu.md, docs/reference/waveform.md).

    Args:
        config: orthogonal mode, occupied carriers, burst limit.
        faults: shared record of failures.
    """

    def __init__(self, config: PhyConfig, faults: Faults | None = None) -> None:
        super().__init__("multisc_multiplexer", ["symbols"], ["grid"], faults)
        self._config = config
        self._waiting: ReassemblyBuffer[ModulatedStream] = ReassemblyBuffer(self.alias())

    def handle(self, port: str, message: pdu.Message) -> None:
        """Collect the streams of an image and lay them out when all are there."""
        if pdu.is_end(message):
            self.send("grid", message)
            return
        meta, data = pdu.unpack(message)
        envelope = pdu.envelope_of(meta)
        streams = self._waiting.add(envelope, pdu.unpack_symbols(meta, data))
        if streams is None:
            return
        grids = multiplex(self._config, envelope.image_id, streams, envelope.side_info, envelope.system)
        for grid in grids:
            self.send("grid", grid_pdu.pack_grid(grid))


class demultiplexer(MessageBlock):
    """Resource grids (c32) with the noise variance of each symbol in, symbols (c32) of the streams of images out.

    Ports ``grid`` and ``symbols``. It stands behind the burst receiver's port ``grid``; the orthogonal mode stands in
    each burst's header. An image leaves when it is whole or no more of it is to be expected (pdu.md).

    Args:
        faults: shared record of failures.

    Attributes:
        assembler: counts bursts that contradict others of their image.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__("multisc_demultiplexer", ["grid"], ["symbols"], faults)
        self.assembler = Assembler()

    def handle(self, port: str, message: pdu.Message) -> None:
        """Take the streams off one grid."""
        if pdu.is_end(message):
            self._send(self.assembler.flush())
            self.send("symbols", message)
        else:
            self._send(self.assembler.add(grid_pdu.unpack_burst(*pdu.unpack(message))))

    def _send(self, images: list[AssembledImage]) -> None:
        for image in images:
            for message in pdu.pack_image_symbols(image):
                self.send("symbols", message)
