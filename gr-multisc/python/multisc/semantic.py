"""Blocks at the two ends of the chain: a picture becomes streams, streams become a picture.

Both talk to a backend, the inference process over ZeroMQ (``multisc.link.client.InferenceClient``) or the
system itself in this process when it needs no models; neither imports torch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pmt
from numpy.typing import NDArray

from multisc.streams import Encoded, ReceivedImage, ReceivedStream, Reconstruction
from multisc.systems.base import Options

from . import pdu
from .message_block import Faults, MessageBlock
from .waiting import StreamsWaiting


class Backend(Protocol):
    """Where systems run."""

    def encode(self, system: str, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``multisc.systems.base.System.encode``."""
        ...

    def decode(self, system: str, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``multisc.systems.base.System.decode``."""
        ...


class semantic_encoder(MessageBlock):
    """Picture in, one PDU per stream out.

    Input ``image``: PDU of u8, row by row, RGB, with ``width``, ``height`` and ``image_id``.
    Output ``streams``: PDUs of f32 coefficients or u8 bits (docs/pdu.md).

    Args:
        backend: where the system runs.
        system: name of the system.
        options: the system's options.
        faults: shared record of failures.
    """

    def __init__(self, backend: Backend, system: str, options: Options, faults: Faults | None = None) -> None:
        super().__init__("multisc_semantic_encoder", ["image"], ["streams"], faults)
        self._backend = backend
        self._system = system
        self._options = dict(options)
        self.encoded: Encoded | None = None

    def set_system(self, system: str) -> None:
        """Change the system, from the next picture on."""
        self._system = system

    def set_options(self, options: Options) -> None:
        """Change the system's options, from the next picture on."""
        self._options = dict(options)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Encode one picture."""
        if pdu.is_end(message):
            self.send("streams", message)
            return
        image, image_id = pdu.unpack_image(*pdu.unpack(message))
        system = self._system
        encoded = self._backend.encode(system, image, self._options)
        self.encoded = encoded
        for index, stream in enumerate(encoded.streams):
            envelope = pdu.Envelope(image_id, index, len(encoded.streams), system, encoded.side_info)
            self.send("streams", pdu.pack_stream(stream, envelope))


class semantic_decoder(MessageBlock):
    """Received streams in, a picture out.

    Input ``streams``: one PDU per stream of an image, delivered or not (docs/pdu.md).
    Output ``image``: PDU of u8, row by row, RGB, empty on an outage, with ``image_id``, ``width``, ``height``,
    ``outage`` and ``outage_reason``.

    Args:
        backend: where the systems run.
        options: the options by which the receiver decodes.
        faults: shared record of failures.
    """

    def __init__(self, backend: Backend, options: Options, faults: Faults | None = None) -> None:
        super().__init__("multisc_semantic_decoder", ["streams"], ["image"], faults)
        self._backend = backend
        self._options = dict(options)
        self._waiting: StreamsWaiting[ReceivedStream] = StreamsWaiting(self.alias())
        self.reconstruction: Reconstruction | None = None

    def set_options(self, options: Options) -> None:
        """Change the options, from the next picture on."""
        self._options = dict(options)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Collect the streams of an image and decode it when all are there."""
        if pdu.is_end(message):
            self.send("image", message)
            return
        meta, data = pdu.unpack(message)
        envelope = pdu.envelope_of(meta)
        streams = self._waiting.add(envelope, pdu.unpack_received(meta, data))
        if streams is None:
            return
        received = ReceivedImage(streams, envelope.side_info)
        self.reconstruction = result = self._backend.decode(envelope.system, received, self._options)
        self.send("image", pdu.pack_reconstruction(result, envelope.image_id))
