"""Blocks between bits and code bits: the stream's forward error correction by itself."""

from __future__ import annotations

from dataclasses import replace

from multisc.errors import BadInputError
from multisc.phy.fec import check_code
from multisc.phy.transport import decode, encode

from .. import pdu
from .message_block import Faults, MessageBlock

MAX_ITERATIONS = 1000


class ldpc_encoder(MessageBlock):
    """Bits (u8) of a stream in, code bits (u8) out: CRC, segmentation, LDPC code, rate matching to whole symbols.

    Ports ``bits`` and ``coded``. It stands between quantiser and modulator, which then only maps; the samples are the
    same as without it when the code is. Analog streams, and streams without a code, pass unchanged (pdu.md).

    Args:
        code: of every digital stream, such as "nr:1/2"; "" leaves each stream the code its metadata name.
        faults: shared record of failures.

    Raises:
        BadInputError: for a code that does not exist, or "none".
    """

    def __init__(self, code: str = "", faults: Faults | None = None) -> None:
        super().__init__("multisc_ldpc_encoder", ["bits"], ["coded"], faults)
        if code:
            check_code(code)
        if code == "none":
            raise BadInputError("LDPC encoder without a code: must be nr:R or pyldpc:N:DV:DC, or empty")
        self._code = code

    def handle(self, port: str, message: pdu.Message) -> None:
        """Encode one stream."""
        if pdu.is_end(message):
            self.send("coded", message)
            return
        meta, data = pdu.unpack(message)
        stream = pdu.unpack_stream(meta, data)
        if "length" in meta:
            raise BadInputError(f"stream {stream.name}: its bits are coded already, so one LDPC encoder is too many")
        code = self._code or stream.code
        if stream.kind == "analog" or code == "none":
            self.send("coded", message)
            return
        bits = stream.bits()
        coded = encode(replace(stream, data=bits, code=code, quantiser=None))
        self.send("coded", pdu.pack(meta | {"code": code, "length": bits.size}, coded))


class ldpc_decoder(MessageBlock):
    """Soft bits (f32) of a stream in, decided bits (u8) with the verdict of the CRC out.

    Ports ``soft_bits`` and ``bits``. It stands behind a demodulator that does not decode, and takes the code from the
    PDU; analog streams, and streams without a code, pass unchanged (pdu.md).

    Args:
        iterations: the most that the decoder makes, 1 to 1000; 0 for as many as suit the code.
        faults: shared record of failures.

    Raises:
        BadInputError: for a number of iterations out of range.
    """

    def __init__(self, iterations: int = 0, faults: Faults | None = None) -> None:
        super().__init__("multisc_ldpc_decoder", ["soft_bits"], ["bits"], faults)
        if not 0 <= iterations <= MAX_ITERATIONS:
            raise BadInputError(f"LDPC decoder with {iterations} iterations: must be 0 to {MAX_ITERATIONS}")
        self._iterations = iterations

    def handle(self, port: str, message: pdu.Message) -> None:
        """Decode one stream."""
        if pdu.is_end(message):
            self.send("bits", message)
            return
        meta, data = pdu.unpack(message)
        if "length" not in meta:
            self.send("bits", message)
            return
        received, code, modulation, length = pdu.unpack_soft_bits(meta, data)
        decoded = decode(received, code, modulation, length, self._iterations)
        self.send("bits", pdu.pack_received(decoded, pdu.envelope_of(meta), pdu.quantiser_of(meta), code))
