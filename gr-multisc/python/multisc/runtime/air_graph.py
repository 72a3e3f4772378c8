"""The flowgraphs of a run on the air: before it, on it, and after it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import numpy as np
import pmt
from gnuradio import gr

from multisc.errors import MultiscError
from multisc.phy.assembly import AssembledImage
from multisc.phy.config import PhyConfig
from multisc.systems.base import Options, SystemRunner
from multisc.transmission.reception import Reception

from ..blocks.burst import burst_transmitter
from ..blocks.message_block import Faults, collector, guarded_work
from ..blocks.modulator import demodulator, modulator
from ..blocks.quantiser import dequantiser, quantiser
from ..blocks.semantic import semantic_decoder, semantic_encoder
from .front_end import STOP_TIMEOUT_S, FrontEnd

MAX_SYMBOLS_WAITING = 1 << 24  # of images that wait to be decoded: 200 MB
_driver_hangs = False


def driver_hangs() -> bool:
    """Whether a driver did not let go of its device, so that this process cannot end in an orderly way."""
    return _driver_hangs


class Graph(gr.top_block):
    """A flowgraph whose end takes a bounded time, whatever its drivers do.

    Args:
        name: of the flowgraph.
        faults: what failed in its blocks.
    """

    def __init__(self, name: str, faults: Faults) -> None:
        super().__init__(name)
        self.faults = faults

    def end(self) -> None:
        """Stop it and wait for it.

        Raises:
            MultiscError: when a block does not come back; ``driver_hangs`` is true from then on.
        """
        self.stop()
        self.await_end(STOP_TIMEOUT_S)
        if not self.ended():
            global _driver_hangs
            _driver_hangs = True
            raise MultiscError(f"the radio's driver does not come back within {STOP_TIMEOUT_S:g} s: plug it in anew")

    def await_end(self, timeout_s: float) -> None:
        """Wait for the end of a graph that ends of itself, or is told to; may be called again."""
        if not hasattr(self, "_waiter"):
            self._waiter = threading.Thread(target=self.wait, name="end of the flowgraph", daemon=True)
            self._waiter.start()
        self._waiter.join(timeout_s)

    def ended(self) -> bool:
        """Whether all blocks have come to their end, as far as ``await_end`` has seen."""
        return not self._waiter.is_alive()


class encoding(Graph):
    """Picture in, symbols out: what is done before anything is on the air.

    Attributes:
        encoder: the semantic encoder.
        sent_bits, sent_symbols: collectors after the quantiser and the modulator.
    """

    def __init__(
        self, backend: SystemRunner, system: str, options: Options, power_db: Callable[[str], float], faults: Faults
    ) -> None:
        super().__init__("multisc_encoding", faults)
        self.encoder = semantic_encoder(backend, system, options, faults=faults)
        self.quantiser = quantiser(faults=faults)
        self.modulator = modulator(power_db, faults=faults)
        self.sent_bits = collector(faults)
        self.sent_symbols = collector(faults)
        self.msg_connect(self.encoder, "streams", self.quantiser, "coefficients")
        self.msg_connect(self.quantiser, "bits", self.modulator, "bits")
        self.msg_connect(self.quantiser, "bits", self.sent_bits, "in")
        self.msg_connect(self.modulator, "symbols", self.sent_symbols, "in")


class decoding(Graph):
    """Received symbols in, a picture out: what is done after the reception.

    Attributes:
        demodulator, decoder: the blocks.
        received_bits, image: collectors after the demodulator and the decoder.
    """

    def __init__(self, backend: SystemRunner, options: Options, faults: Faults) -> None:
        super().__init__("multisc_decoding", faults)
        self.demodulator = demodulator(faults=faults)
        self.dequantiser = dequantiser(faults=faults)
        self.decoder = semantic_decoder(backend, options, faults=faults)
        self.received_bits = collector(faults)
        self.image = collector(faults)
        self.msg_connect(self.demodulator, "bits", self.dequantiser, "bits")
        self.msg_connect(self.dequantiser, "coefficients", self.decoder, "streams")
        self.msg_connect(self.demodulator, "bits", self.received_bits, "in")
        self.msg_connect(self.decoder, "image", self.image, "in")


class on_air(Graph):
    """Transmitter and radio, radio and receiver, or both.

    Args:
        config: numerology.
        faults: shared record of failures.
        tx, rx: the front ends in use.
        receiver: the block that takes the received samples.
        tail: zeros after the last burst.

    Attributes:
        transmitter: the burst transmitter, when there is a front end to send with.
    """

    def __init__(
        self,
        config: PhyConfig,
        faults: Faults,
        tx: FrontEnd | None = None,
        rx: FrontEnd | None = None,
        receiver: gr.basic_block | None = None,
        tail: int = 0,
    ) -> None:
        super().__init__("multisc_on_air", faults)
        self.transmitter: burst_transmitter | None = None
        if tx:
            self.transmitter = burst_transmitter(config, faults=faults, continuous=True, tail=tail)
            self.connect(self.transmitter, *tx.blocks)
        if rx:
            self.connect(*rx.blocks, receiver)


class image_receiver(gr.sync_block):
    """Samples in, assembled images out: into a queue of bounded size, for a program that decodes at its leisure.

    Args:
        config: numerology.
        faults: shared record of failures.

    Attributes:
        reception: receiver, assembler and their counters.
        dropped: images that found no room in the queue.
        ended: set when everything is handed on that was under way at a message at the input ``end``.
    """

    def __init__(self, config: PhyConfig, faults: Faults) -> None:
        gr.sync_block.__init__(self, "multisc_image_receiver", in_sig=[np.complex64], out_sig=None)
        self.faults = faults
        self.reception = Reception(config)
        self.dropped = 0
        self.ended = threading.Event()
        self._images: queue.SimpleQueue[tuple[AssembledImage, int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._symbols = 0
        self.message_port_register_in(pmt.intern("end"))
        self.set_msg_handler(pmt.intern("end"), self._handle_end)

    @guarded_work
    def work(self, input_items: list, output_items: list) -> int:
        """Receive."""
        self._put(self.reception.push(input_items[0]))
        return len(input_items[0])

    def take(self, timeout_s: float) -> tuple[AssembledImage, int] | None:
        """Return the next image with its channel uses, or None when there is none within the time."""
        try:
            image, uses = self._images.get(timeout=timeout_s)
        except queue.Empty:
            return None
        with self._lock:
            self._symbols -= _symbols(image)
        return image, uses

    def _put(self, images: list[tuple[AssembledImage, int]]) -> None:
        for image, uses in images:
            with self._lock:
                room = not self._symbols or self._symbols + _symbols(image) <= MAX_SYMBOLS_WAITING
                if room:
                    self._symbols += _symbols(image)
            if room:
                self._images.put((image, uses))
            else:
                self.dropped += 1

    def _handle_end(self, message: pmt.pmt_base) -> None:
        try:
            self._put(self.reception.flush())
        except Exception as error:
            self.faults.add(error, self.alias())
        self.ended.set()


def _symbols(image: AssembledImage) -> int:
    return max(1, sum(descriptor.symbols for descriptor, _, _ in image.streams))


def post(block: gr.basic_block, port: str, message: pmt.pmt_base) -> None:
    """Put a message into a block's queue."""
    block.to_basic_block()._post(pmt.intern(port), message)
