"""Bit fields and NAL units as HEVC writes them (ITU-T H.265, clauses 7.2, 9.2 and annex B)."""

from __future__ import annotations

from multisc.errors import BadInputError


class BitReader:
    """Reads u(n) and ue(v), most significant bit first.

    Raises:
        BadInputError: from every method that would read past the end.
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def u(self, count: int) -> int:
        """Read an unsigned integer of ``count`` bits."""
        if count > self._left:
            raise BadInputError("a parameter set ends in the middle of a field")
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def ue(self) -> int:
        """Read an Exp-Golomb code of at most 32 leading zeros."""
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise BadInputError("a parameter set has an Exp-Golomb code of more than 32 bits")
        return (1 << zeros) - 1 + self.u(zeros)

    @property
    def left(self) -> int:
        """How many bits are left."""
        return self._left


class BitWriter:
    """Writes u(n) and ue(v), most significant bit first."""

    def __init__(self) -> None:
        self._value = 0
        self._count = 0

    def u(self, count: int, value: int) -> BitWriter:
        """Append ``value`` as ``count`` bits."""
        self._value = (self._value << count) | value
        self._count += count
        return self

    def ue(self, *values: int) -> BitWriter:
        """Append each value as an Exp-Golomb code."""
        for value in values:
            self.u(2 * (value + 1).bit_length() - 1, value + 1)
        return self

    def aligned(self) -> bytes:
        """The bits so far, zeros appended up to a whole byte."""
        padding = -self._count % 8
        return (self._value << padding).to_bytes((self._count + padding) // 8, "big")

    def with_stop_bit(self) -> bytes:
        """The bits so far, closed by rbsp_trailing_bits (7.3.2.11)."""
        return self.u(1, 1).aligned()


def escape(payload: bytes) -> bytes:
    """Insert emulation prevention bytes, so that no start code appears inside a NAL unit (7.4.2)."""
    out = bytearray()
    zeros = 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def unescape(payload: bytes) -> bytes:
    """Remove emulation prevention bytes."""
    return payload.replace(b"\x00\x00\x03", b"\x00\x00")


def split_nals(stream: bytes) -> list[bytes]:
    """Split a byte stream at its start codes; the first NAL unit may lack one, as in a BPG file.

    Returns:
        The NAL units without start codes and without trailing zero bytes, empty ones left out.
    """
    return [nal for nal in (part.rstrip(b"\x00") for part in stream.split(b"\x00\x00\x01")) if nal]


def join_nals(nals: list[bytes]) -> bytes:
    """Join NAL units to a byte stream, a start code before each."""
    return b"".join(b"\x00\x00\x00\x01" + nal for nal in nals)


def nal_type(nal: bytes) -> int:
    """nal_unit_type (7.3.1.2)."""
    return (nal[0] >> 1) & 0x3F


def nal_layer(nal: bytes) -> int:
    """nuh_layer_id; BPG puts alpha in layer 1."""
    return ((nal[0] & 1) << 5) | (nal[1] >> 3)
