"""Blocks between bits or features and symbols: channel coding and mapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pmt
from gnuradio import gr

from multisc.errors import BadInputError
from multisc.phy.transport import demap, demodulate, map_coded, modulate
from multisc.streams import ReceivedStream

from .. import pdu
from .message_block import Faults, MessageBlock


class modulator(MessageBlock):
    """Bits (u8) or features (f32) of a stream in, complex symbols of unit mean power (c32) out.

    Ports ``bits`` and ``symbols``; modulation and code stand in the PDU's metadata (pdu.md). Code bits, which
    an LDPC encoder made, are only mapped.

    Args:
        power_db: level of a stream, by its name, against the pilots, in dB; None means 0 for all.
        faults: shared record of failures.
    """

    def __init__(self, power_db: Callable[[str], float] | None = None, faults: Faults | None = None) -> None:
        super().__init__("multisc_modulator", ["bits"], ["symbols"], faults)
        self._power_db = power_db or (lambda name: 0.0)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Code and map one stream."""
        if pdu.is_end(message):
            self.send("symbols", message)
            return
        meta, data = pdu.unpack(message)
        stream = pdu.unpack_stream(meta, data)
        modulated = map_coded(stream, int(meta["length"])) if "length" in meta else modulate(stream)
        descriptor = replace(modulated.descriptor, quantiser=pdu.quantiser_of(meta))
        power_db = self._power_db(stream.name)
        self.send("symbols", pdu.pack_symbols(descriptor, modulated.symbols, pdu.envelope_of(meta), None, power_db))


class demodulator(MessageBlock):
    """Equalised symbols (c32) with their noise variance in, decoded bits (u8) or features (f32) out.

    Ports ``symbols`` and ``bits``; the soft bits travel along for the dequantiser (pdu.md). A stream whose
    header contradicts itself comes out as not delivered and is counted in ``contradictions``.

    Args:
        decode: whether codes are decoded here; otherwise a coded stream comes out as soft bits (f32) for an LDPC
            decoder.
        faults: shared record of failures.
    """

    def __init__(self, decode: bool = True, faults: Faults | None = None) -> None:
        super().__init__("multisc_demodulator", ["symbols"], ["bits"], faults)
        self._decode = decode
        self.contradictions = 0

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Demap and decode one stream."""
        if pdu.is_end(message):
            self.send("bits", message)
            return
        meta, data = pdu.unpack(message)
        if "noise_variance" not in meta:
            raise BadInputError("a PDU of received symbols has no metadata 'noise_variance'")
        modulated = pdu.unpack_symbols(meta, data)
        noise_variance = np.asarray(meta["noise_variance"], np.float32)
        descriptor = modulated.descriptor
        envelope = pdu.envelope_of(meta)
        try:
            plain = replace(descriptor, quantiser=None)
            if not self._decode and descriptor.code != "none":
                received = demap(plain, modulated.symbols, noise_variance)
                self.send("bits", pdu.pack_soft_bits(received, envelope, descriptor))
                return
            received = demodulate(plain, modulated.symbols, noise_variance)
        except BadInputError as error:
            # The description came over the air: one that lies costs the stream, not the run.
            self.contradictions += 1
            gr.logger(self.alias()).warn(str(error))
            analog = descriptor.modulation == "analog"
            nothing = np.zeros(0, np.float32 if analog else np.uint8)
            received = ReceivedStream(descriptor.name, nothing, delivered=False)
        self.send("bits", pdu.pack_received(received, envelope, descriptor.quantiser, descriptor.code))
