"""Blocks at the two ends of the chain: a picture becomes streams, streams become a picture.

Both talk to a backend, the inference process over ZeroMQ (``multisc.inference.client.InferenceClient``) or the
system itself in this process when it needs no models; neither imports torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pmt
from numpy.typing import NDArray

from multisc.streams import Encoded, ReceivedImage, ReceivedStream, Reconstruction
from multisc.systems.base import Options, SystemRunner
from multisc.systems.registry import SYSTEMS

from .. import pdu
from .message_block import Faults, is_watched
from .reassembly import ReassemblyBuffer
from .request_block import RequestBlock


class semantic_encoder(RequestBlock):
    """Picture in, one PDU per stream out.

    Input ``image``: PDU of u8, row by row, RGB, with ``width``, ``height`` and ``image_id``.
    Output ``streams``: PDUs of f32 coefficients or u8 bits (pdu.md). A picture that is the one before, to be
    encoded with the same options, is not encoded anew.

    Args:
        backend: where the system runs.
        system: name of the system.
        options: the system's options.
        faults: shared record of failures.
        latest: whether a picture that waits gives way to a newer one.
    """

    def __init__(
        self, backend: SystemRunner, system: str, options: Options, faults: Faults | None = None, latest: bool = False
    ) -> None:
        super().__init__("multisc_semantic_encoder", ["image"], ["streams"], latest, faults)
        self._backend = backend
        self._system = system
        self._options = dict(options)
        self._before: tuple[str, dict[str, Any], NDArray[np.uint8]] | None = None
        self.encoded: Encoded | None = None

    def set_system(self, system: str) -> None:
        """Change the system, from the next picture on."""
        self._system = system

    def set_options(self, options: Options) -> None:
        """Change the system's options, from the next picture on."""
        self._options = dict(options)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Have one picture encoded."""
        if pdu.is_end(message):
            self.forward_behind("streams", message)
            return
        image, image_id = pdu.unpack_image(*pdu.unpack(message))
        self.submit(lambda: self._encode(image, image_id))

    def _encode(self, image: NDArray[np.uint8], image_id: int) -> list[tuple[str, pmt.pmt_base]]:
        system, options = self._system, self._options
        before = self._before
        same = before is not None and before[:2] == (system, options) and np.array_equal(before[2], image)
        if self.encoded is None or not same:
            self.encoded = self._backend.encode(system, image, options)
            self._before = (system, options, image)
        streams, side_info = self.encoded.streams, self.encoded.side_info
        return [
            ("streams", pdu.pack_stream(stream, pdu.Envelope(image_id, index, len(streams), system, side_info)))
            for index, stream in enumerate(streams)
        ]


class semantic_decoder(RequestBlock):
    """Received streams in, a picture out.

    Input ``streams``: one PDU per stream of an image, delivered or not (pdu.md).
    Output ``image``: PDU of u8, row by row, RGB, empty on an outage, with ``image_id``, ``width``, ``height``,
    ``outage`` and ``outage_reason``. Output ``draft``: of systems that have one, and only when it is connected: what
    is there before the picture is rebuilt.

    Args:
        backend: where the systems run.
        options: the options by which the receiver decodes.
        faults: shared record of failures.
        latest: whether an image that waits gives way to a newer one.
        system: decodes only images of this system; empty for all.
    """

    def __init__(
        self,
        backend: SystemRunner,
        options: Options,
        faults: Faults | None = None,
        latest: bool = False,
        system: str = "",
    ) -> None:
        super().__init__("multisc_semantic_decoder", ["streams"], ["draft", "image"], latest, faults)
        self._backend = backend
        self._options = dict(options)
        self._system = system
        self._waiting: ReassemblyBuffer[ReceivedStream] = ReassemblyBuffer(self.alias())
        self.reconstruction: Reconstruction | None = None

    def set_options(self, options: Options) -> None:
        """Change the options, from the next picture on."""
        self._options = dict(options)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Collect the streams of an image and have it decoded when all are there."""
        if pdu.is_end(message):
            self.forward_behind("image", message)
            return
        meta, data = pdu.unpack(message)
        envelope = pdu.envelope_of(meta)
        if self._system not in ("", envelope.system):
            return
        streams = self._waiting.add(envelope, pdu.unpack_received(meta, data))
        if streams is not None:
            self.submit(lambda: self._decode(streams, envelope))

    def _decode(self, streams: list[ReceivedStream], envelope: pdu.Envelope) -> list[tuple[str, pmt.pmt_base]]:
        received = ReceivedImage(streams, envelope.side_info)
        options = self._options
        about = envelope.image_id, envelope.system, [stream.name for stream in streams if not stream.delivered]
        if is_watched(self, "draft") and envelope.system in SYSTEMS and SYSTEMS[envelope.system].drafts:
            draft = self._backend.decode(envelope.system, received, options | {"draft": True})
            if "size" in draft.preview:
                self.publish("draft", pdu.pack_draft(draft, *about))
        self.reconstruction = result = self._backend.decode(envelope.system, received, options)
        return [("image", pdu.pack_reconstruction(result, *about))]
