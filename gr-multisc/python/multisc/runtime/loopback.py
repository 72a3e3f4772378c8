"""The whole chain in one flowgraph: picture, streams, bursts, channel, bursts, streams, picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pmt
from gnuradio import gr
from numpy.typing import NDArray

from multisc.channel import Chain
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver
from multisc.systems.base import Options, SystemRunner

from .. import pdu
from ..blocks.burst import burst_receiver, burst_transmitter
from ..blocks.channel import channel
from ..blocks.message_block import Faults, collector
from ..blocks.modulator import demodulator, modulator
from ..blocks.quantiser import dequantiser, quantiser
from ..blocks.semantic import semantic_decoder, semantic_encoder


class loopback(gr.top_block):
    """Transmitter and receiver of a system over a simulated channel.

    Args:
        backend: where the system runs.
        system: name of the system.
        options: the system's options, for both ends.
        config: numerology.
        chain: the channel.
        power_db: level of a stream, by name, in dB; None means 0 for all.
        receiver: another receiver than the synchronising one, for comparison with theory.

    Attributes:
        faults: what failed.
        sent_bits, sent_symbols, received_symbols, received_bits, image: collectors after the quantiser, modulator,
            burst receiver, demodulator and semantic decoder.
    """

    def __init__(
        self,
        backend: SystemRunner,
        system: str,
        options: Options,
        config: PhyConfig,
        chain: Chain,
        power_db: Callable[[str], float] | None = None,
        receiver: BurstReceiver | None = None,
    ) -> None:
        super().__init__("multisc_loopback")
        self.faults = faults = Faults(quiet=True)
        self.encoder = semantic_encoder(backend, system, options, faults)
        self.quantiser = quantiser(faults)
        self.modulator = modulator(power_db, faults)
        self.transmitter = burst_transmitter(config, faults)
        self.channel = channel(chain, faults)
        self.receiver = burst_receiver(config, receiver, faults)
        self.demodulator = demodulator(faults=faults)
        self.dequantiser = dequantiser(faults)
        self.decoder = semantic_decoder(backend, options, faults)
        self.sent_bits = collector(faults)
        self.sent_symbols = collector(faults)
        self.received_symbols = collector(faults)
        self.received_bits = collector(faults)
        self.image = collector(faults)

        self.msg_connect(self.encoder, "streams", self.quantiser, "coefficients")
        self.msg_connect(self.quantiser, "bits", self.modulator, "bits")
        self.msg_connect(self.modulator, "symbols", self.transmitter, "symbols")
        self.connect(self.transmitter, self.channel, self.receiver)
        self.msg_connect(self.receiver, "symbols", self.demodulator, "symbols")
        self.msg_connect(self.demodulator, "bits", self.dequantiser, "bits")
        self.msg_connect(self.dequantiser, "coefficients", self.decoder, "streams")
        self.msg_connect(self.quantiser, "bits", self.sent_bits, "in")
        self.msg_connect(self.modulator, "symbols", self.sent_symbols, "in")
        self.msg_connect(self.receiver, "symbols", self.received_symbols, "in")
        self.msg_connect(self.demodulator, "bits", self.received_bits, "in")
        self.msg_connect(self.decoder, "image", self.image, "in")

    def send(self, image: NDArray[np.uint8], image_id: int) -> None:
        """Put one picture, uint8 of shape (H, W, 3), into the chain, and the end behind it; call before ``start``."""
        port = pmt.intern("image")
        for message in (pdu.pack_image(image, image_id), pdu.END):
            self.encoder.to_basic_block()._post(port, message)

    def sent_names(self) -> list[str]:
        """Names of the streams that were sent so far."""
        return [str(pdu.unpack(message)[0]["stream"]) for message in self.sent_symbols.messages]
