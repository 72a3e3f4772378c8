"""Blocks between coefficients and bits."""

from __future__ import annotations

import pmt

from multisc.phy.transport import dequantise

from .. import pdu
from .message_block import Faults, MessageBlock


class quantiser(MessageBlock):
    """Coefficients (f32) in, bits (u8) out; bits and analog streams pass unchanged.

    Ports ``coefficients`` and ``bits``; the PDU's metadata say how many bits a coefficient gets (pdu.md).

    Args:
        faults: shared record of failures.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__("multisc_quantiser", ["coefficients"], ["bits"], faults)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Quantise one stream."""
        if pdu.is_end(message):
            self.send("bits", message)
            return
        meta, data = pdu.unpack(message)
        stream = pdu.unpack_stream(meta, data)
        if stream.quantiser is None:
            self.send("bits", message)
        else:
            self.send("bits", pdu.pack(meta, stream.bits()))


class dequantiser(MessageBlock):
    """Received bits in, coefficients out: least-squares from soft bits, or the levels of decoded bits.

    Ports ``bits`` and ``coefficients``; streams without a quantiser pass unchanged.

    Args:
        faults: shared record of failures.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__("multisc_dequantiser", ["bits"], ["coefficients"], faults)

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Dequantise one stream."""
        if pdu.is_end(message):
            self.send("coefficients", message)
            return
        meta, data = pdu.unpack(message)
        spec = pdu.quantiser_of(meta)
        if spec is None:
            self.send("coefficients", message)
            return
        received = pdu.unpack_received(meta, data)
        code = str(meta["code"])
        received = dequantise(received, spec, code)
        self.send("coefficients", pdu.pack_received(received, pdu.envelope_of(meta), None, code))
