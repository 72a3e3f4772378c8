"""Blocks between pictures and BPG files as bits: the source coding of the classic chain by itself."""

from __future__ import annotations

import numpy as np

from multisc.codecs.bpg.encoder import FORMATS, PictureEncoder
from multisc.errors import BadInputError
from multisc.phy.fec import check_code
from multisc.streams import DIGITAL_MODULATIONS, ReceivedImage, Stream
from multisc.systems.bpg_ldpc import STREAM, BpgLdpc, bpg_ldpc

from .. import pdu
from .message_block import Faults, MessageBlock

MIN_BYTES = 64


class bpg_encoder(MessageBlock):
    """Pictures in, the largest BPG file within a budget out, as the bits (u8) of one stream.

    Ports ``image`` and ``bits``. The stream belongs to the system bpg-ldpc, so a semantic decoder reads it too. A
    picture that has no BPG file so small is a fault, and is not sent.

    Args:
        max_bytes: budget of the file, at least 64.
        modulation: of the stream.
        code: of the stream; a modulator or an LDPC encoder applies it.
        chroma: "420" or "444".
        faults: shared record of failures.

    Raises:
        BadInputError: for a value outside its range.
    """

    def __init__(
        self,
        max_bytes: int,
        modulation: str = "qpsk",
        code: str = "nr:1/2",
        chroma: str = "420",
        faults: Faults | None = None,
    ) -> None:
        super().__init__("multisc_bpg_encoder", ["image"], ["bits"], faults)
        if max_bytes < MIN_BYTES:
            raise BadInputError(f"BPG encoder with {max_bytes} bytes: must be at least {MIN_BYTES}")
        if modulation not in DIGITAL_MODULATIONS:
            raise BadInputError(f"modulation {modulation!r}: must be one of {', '.join(DIGITAL_MODULATIONS)}")
        if chroma not in FORMATS:
            raise BadInputError(f"chroma {chroma!r}: must be one of {', '.join(FORMATS)}")
        check_code(code)
        self._max_bytes, self._modulation, self._code, self._chroma = max_bytes, modulation, code, chroma

    def handle(self, port: str, message: pdu.Message) -> None:
        """Encode one picture."""
        if pdu.is_end(message):
            self.send("bits", message)
            return
        image, image_id = pdu.unpack_image(*pdu.unpack(message))
        found = PictureEncoder(image, self._chroma).fit(self._max_bytes)
        self.log(f"image {image_id}: BPG at qp {found.qp}, {len(found.data)} of {self._max_bytes} bytes")
        bits = np.unpackbits(np.frombuffer(found.data, np.uint8))
        stream = Stream(STREAM, bits, self._modulation, self._code)
        self.send("bits", pdu.pack_stream(stream, pdu.Envelope(image_id, 0, 1, BpgLdpc.name, b"")))


class bpg_decoder(MessageBlock):
    """Received bits (u8) of BPG files in, pictures or outages out: all or nothing.

    Ports ``bits`` and ``image``. Streams of other systems are left to their own decoder.

    Args:
        faults: shared record of failures.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__("multisc_bpg_decoder", ["bits"], ["image"], faults)
        self._system = bpg_ldpc()

    def handle(self, port: str, message: pdu.Message) -> None:
        """Decode one file."""
        if pdu.is_end(message):
            self.send("image", message)
            return
        meta, data = pdu.unpack(message)
        envelope = pdu.envelope_of(meta)
        if envelope.system != BpgLdpc.name:
            return
        stream = pdu.unpack_received(meta, data)
        result = self._system.decode(ReceivedImage([stream], envelope.side_info), {})
        lost = [] if stream.delivered else [stream.name]
        self.send("image", pdu.pack_reconstruction(result, envelope.image_id, envelope.system, lost))
