"""The burst header: what it says, its bytes, and its coding onto OFDM symbols.

Bytes are big-endian, numbers marked *varint* are LEB128. ``docs/reference/waveform.md`` specifies every field.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError, MultiscError
from multisc.phy import modulation as mod
from multisc.phy.config import MAX_PAYLOAD_SYMBOLS, ORTHOGONAL_MODES, PhyConfig
from multisc.phy.crc import CRC16, CRC24A
from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.ofdm import MAX_HEADER_SYMBOLS
from multisc.phy.transport import MAX_LENGTH, StreamDescriptor
from multisc.streams import MAX_NAME, MAX_SIDE_INFO, MAX_STREAMS, MODULATIONS

VERSION = 2
MAX_SYMBOLS_PER_STREAM = 1 << 24
MAX_BURSTS = 65535
MAX_CODE = 24  # characters of a code that has no number
MIN_POWER_DB, MAX_POWER_DB = -40.0, 20.0
# The number of a code in the header; 15 announces its name in full.
CODES = ("none", "nr:1/5", "nr:1/3", "nr:2/5", "nr:1/2", "nr:3/5", "nr:2/3", "nr:3/4", "nr:5/6", "nr:8/9")
_OTHER_CODE = 15
_QUANTISED = 0x10
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_CODE_LETTERS = _NAME_LETTERS | frozenset(":/.")

_CONTROL_BITS = 48  # version 4, bytes of the description 10, payload symbols 10, reserved 8 (zero), CRC-16
_MAX_DESCRIPTION = 1023  # bytes, with its CRC
_BLOCK_BITS = 3840  # longest information of base graph 2
# An analog stream is still of use at -5 dB, so the header must hold there, with a channel known from training only.
_CONTROL_CODED = 960  # coded bits of the control part at least: rate 1/20
_EXPANSION = 10  # the description's code rate is 1/10: base graph 2 down to 1/5, each bit sent twice
_LDPC_ITERATIONS = 30


class HeaderError(MultiscError):
    """The bytes are not a header this receiver understands."""


@dataclass(frozen=True)
class StreamEntry:
    """One row of the stream table.

    Args:
        index: position of the stream in its image, 0 to 15.
        descriptor: the stream.
        power_db: its level against the pilots, -40 to 20 dB in steps of 0.01.
    """

    index: int
    descriptor: StreamDescriptor
    power_db: float = 0.0


@dataclass(frozen=True)
class BurstHeader:
    """What a burst says of itself.

    Args:
        image_id: 32-bit number of the image.
        sequence: number of this burst among its transmitter's bursts of the image, 0 to total - 1.
        total: bursts this transmitter sends of the image, 1 to 65535.
        image_streams: streams the image has in all, over all transmitters, 1 to 16.
        orthogonal: "fdm", "tdm" or "cdm".
        system: name of the system, at most 15 characters of a-z, 0-9, -.
        side_info: the system's own, at most 64 bytes.
        streams: the streams this transmitter sends.
        payload_symbols: OFDM symbols of the payload.
    """

    image_id: int
    sequence: int
    total: int
    image_streams: int
    orthogonal: str
    system: str
    side_info: bytes
    streams: tuple[StreamEntry, ...]
    payload_symbols: int

    def counts(self) -> tuple[int, ...]:
        """Symbols of each stream in this burst: those numbered sequence, sequence + total, sequence + 2 total..."""
        return tuple(max(0, -(-(e.descriptor.symbols - self.sequence) // self.total)) for e in self.streams)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _check_text(text: str, longest: int, letters: frozenset[str], what: str) -> bytes:
    if len(text) > longest or not set(text) <= letters:
        raise BadInputError(f"{what} {text!r}: at most {longest} characters of {''.join(sorted(letters))}")
    return bytes([len(text)]) + text.encode("ascii")


def _check_range(value: float, low: float, high: float, what: str) -> None:
    if not low <= value <= high:
        raise BadInputError(f"{what} {value}: must be {low} to {high}")


def pack_description(header: BurstHeader) -> bytes:
    """Serialise everything but the number of payload symbols.

    Raises:
        BadInputError: when a field is out of its range or the whole is longer than 1020 bytes.
    """
    _check_range(header.image_id, 0, 0xFFFFFFFF, "image id")
    _check_range(header.total, 1, MAX_BURSTS, "number of bursts")
    _check_range(header.sequence, 0, header.total - 1, "sequence number")
    _check_range(header.image_streams, 1, MAX_STREAMS, "number of streams")
    _check_range(len(header.side_info), 0, MAX_SIDE_INFO, "bytes of side information")
    _check_range(len(header.streams), 0, header.image_streams, "streams of this transmitter")
    out = bytearray(struct.pack(">IHH", header.image_id, header.sequence, header.total))
    out.append(ORTHOGONAL_MODES.index(header.orthogonal) << 6 | (header.image_streams - 1))
    out += _check_text(header.system, MAX_NAME, _NAME_LETTERS, "system")
    out += bytes([len(header.side_info)]) + header.side_info
    out.append(len(header.streams))
    for entry in header.streams:
        out += _pack_entry(entry, header.image_streams)
    if len(out) + 3 > _MAX_DESCRIPTION:
        raise BadInputError(f"the header takes {len(out) + 3} bytes, at most {_MAX_DESCRIPTION}: use shorter names")
    return bytes(out)


def _pack_entry(entry: StreamEntry, image_streams: int) -> bytes:
    d = entry.descriptor
    _check_range(entry.index, 0, image_streams - 1, f"index of stream {d.name}")
    _check_range(entry.power_db, MIN_POWER_DB, MAX_POWER_DB, f"power of stream {d.name}")
    _check_range(d.length, 0, MAX_LENGTH, f"length of stream {d.name}")
    _check_range(d.symbols, 0, MAX_SYMBOLS_PER_STREAM, f"symbols of stream {d.name}")
    known = d.code in CODES
    code = CODES.index(d.code) if known else _OTHER_CODE
    quantised = _QUANTISED if d.quantiser else 0
    out = bytearray([entry.index])
    out += _check_text(d.name, MAX_NAME, _NAME_LETTERS, "stream name")
    out.append(MODULATIONS.index(d.modulation) << 5 | quantised | code)
    if not known:
        out += _check_text(d.code, MAX_CODE, _CODE_LETTERS, "code")
    out += _varint(d.length) + _varint(d.symbols) + struct.pack(">h", round(100 * entry.power_db))
    if d.modulation == "analog":
        out += struct.pack(">f", d.gain)
    if d.quantiser:
        out += struct.pack(">Bf", d.quantiser.bits, d.quantiser.limit)
    return bytes(out)


class _Reader:
    """Bounds-checked reading of a description."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise HeaderError("the header ends early")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, largest: int, what: str) -> int:
        value = 0
        for position in range(4):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                if value > largest:
                    break
                return value
        raise HeaderError(f"{what}: more than {largest}")

    def text(self, longest: int, letters: frozenset[str], what: str) -> str:
        length = self.byte()
        if length > longest:
            raise HeaderError(f"{what} of {length} characters")
        text = self.take(length).decode("latin-1")
        if not set(text) <= letters:
            raise HeaderError(f"{what} has characters it may not have")
        return text

    def end(self) -> None:
        if self._at != len(self._data):
            raise HeaderError("the header has bytes left over")


def parse_description(data: bytes, payload: int) -> BurstHeader:
    """Read what ``pack_description`` wrote.

    Args:
        data: the bytes without their CRC; hostile.
        payload: number of payload symbols from the control part.

    Raises:
        HeaderError: when any field is out of its range or contradicts another. Nothing else is raised, and no memory
            is taken beyond the bytes' own size.
    """
    reader = _Reader(data)
    image_id, sequence, total = struct.unpack(">IHH", reader.take(8))
    mode, image_streams, system, side_info, streams = _parse_image(data[8:])
    if sequence >= total:
        raise HeaderError(f"burst {sequence} of {total}")
    if payload > MAX_PAYLOAD_SYMBOLS:
        raise HeaderError(f"{payload} payload symbols")
    return BurstHeader(image_id, sequence, total, image_streams, mode, system, side_info, streams, payload)


@lru_cache(maxsize=64)
def _parse_image(data: bytes) -> tuple[str, int, str, bytes, tuple[StreamEntry, ...]]:
    """Read what all bursts of a transmitter say alike of an image; they come one after the other."""
    reader = _Reader(data)
    layout = reader.byte()
    mode, image_streams = layout >> 6, (layout & 0x3F) + 1
    if mode >= len(ORTHOGONAL_MODES) or image_streams > MAX_STREAMS:
        raise HeaderError("orthogonal mode or number of streams out of range")
    system = reader.text(MAX_NAME, _NAME_LETTERS, "system")
    side_length = reader.byte()
    if side_length > MAX_SIDE_INFO:
        raise HeaderError(f"{side_length} bytes of side information")
    side_info = reader.take(side_length)
    count = reader.byte()
    if count > image_streams:
        raise HeaderError(f"{count} streams from one transmitter, {image_streams} in the image")
    streams = tuple(_parse_entry(reader, image_streams) for _ in range(count))
    reader.end()
    if len({e.index for e in streams}) != count or len({e.descriptor.name for e in streams}) != count:
        raise HeaderError("two streams with the same number or name")
    return ORTHOGONAL_MODES[mode], image_streams, system, side_info, streams


def _parse_entry(reader: _Reader, image_streams: int) -> StreamEntry:
    index = reader.byte()
    name = reader.text(MAX_NAME, _NAME_LETTERS, "stream name")
    layout = reader.byte()
    modulation, quantised, code = layout >> 5, layout & _QUANTISED, layout & 0x0F
    if index >= image_streams or not name or modulation >= len(MODULATIONS):
        raise HeaderError("stream number, name or modulation out of range")
    if code == _OTHER_CODE:
        code_name = reader.text(MAX_CODE, _CODE_LETTERS, "code")
    elif code < len(CODES):
        code_name = CODES[code]
    else:
        raise HeaderError(f"code number {code}")
    length = reader.varint(MAX_LENGTH, "length")
    symbols = reader.varint(MAX_SYMBOLS_PER_STREAM, "symbols")
    power_db = struct.unpack(">h", reader.take(2))[0] / 100.0
    if not MIN_POWER_DB <= power_db <= MAX_POWER_DB:
        raise HeaderError(f"stream power of {power_db} dB")
    analog = MODULATIONS[modulation] == "analog"
    if analog and (quantised or code_name != "none"):
        raise HeaderError("an analog stream with a quantiser or a code")
    gain = struct.unpack(">f", reader.take(4))[0] if analog else 1.0
    if not (np.isfinite(gain) and gain >= 0):
        raise HeaderError("gain is not a positive number")
    quantiser = None
    if quantised:
        bits, limit = struct.unpack(">Bf", reader.take(5))
        try:
            quantiser = Quantiser(bits, limit)
        except BadInputError as error:
            raise HeaderError(str(error)) from error
    descriptor = StreamDescriptor(name, MODULATIONS[modulation], code_name, length, symbols, gain, quantiser)
    return StreamEntry(index, descriptor, power_db)


@dataclass(frozen=True)
class Control:
    """The header's first part: what is needed to read the rest.

    Args:
        description_bytes: bytes of the description with its CRC.
        payload_symbols: OFDM symbols of the payload.
    """

    description_bytes: int
    payload_symbols: int


@lru_cache(maxsize=64)
def _block(information: int, coded: int) -> NrLdpcBlock:
    return NrLdpcBlock(information, coded)


class HeaderCodec:
    """Coding of the header onto OFDM symbols: whole ones for the control part, then whole ones for the description.

    Both parts are QPSK with the LDPC code of TS 38.212; the control part at the rate that fills its symbols, 1/20 or
    less, the description at rate 1/10 in blocks of equal length of at most 3840 bits.

    Attributes:
        control_symbols: OFDM symbols of the control part: 3 with the default numerology.
    """

    def __init__(self, config: PhyConfig) -> None:
        self._carriers = config.data_carriers
        self.control_symbols = -(-_CONTROL_CODED // (2 * self._carriers))
        self._control_coded = 2 * self._carriers * self.control_symbols

    def _layout(self, description_bytes: int) -> tuple[int, int]:
        """Blocks of the description and the bytes of each."""
        blocks = -(-8 * description_bytes // _BLOCK_BITS)
        return blocks, -(-description_bytes // blocks)

    def symbols(self, description_bytes: int) -> int:
        """OFDM symbols of a header with a description of so many bytes, those of the control part counted."""
        blocks, each = self._layout(description_bytes)
        return self.control_symbols + -(-blocks * each * 8 * _EXPANSION // (2 * self._carriers))

    def encode(self, header: BurstHeader) -> NDArray[np.complex64]:
        """Encode a header.

        Returns:
            complex64 (header symbols, data_carriers), QPSK.

        Raises:
            BadInputError: when a field is out of its range, or the header takes more than 512 OFDM symbols.
        """
        description = pack_description(header)
        _check_range(header.payload_symbols, 0, MAX_PAYLOAD_SYMBOLS, "payload symbols")
        size = len(description) + 3
        if self.symbols(size) > MAX_HEADER_SYMBOLS:
            raise BadInputError(
                f"the header takes {self.symbols(size)} OFDM symbols of {self._carriers} data carriers, "
                f"at most {MAX_HEADER_SYMBOLS}: use shorter names or more occupied carriers"
            )
        control = VERSION << 28 | size << 18 | header.payload_symbols << 8
        head = control.to_bytes(4, "big")
        # The description's CRC covers the control part too: both belong to one header or to none.
        description += CRC24A.parity_of_bytes(head + description).to_bytes(3, "big")
        return np.concatenate([self.control_sent(head), self._description_sent(description)])

    def control_sent(self, head: bytes) -> NDArray[np.complex64]:
        """What the control part is sent as.

        Args:
            head: its four bytes before the CRC.

        Returns:
            complex64 (control_symbols, data_carriers), QPSK.
        """
        bits = CRC16.attach(np.unpackbits(np.frombuffer(head, np.uint8)))
        coded = _block(_CONTROL_BITS, self._control_coded).encode(bits[None])[0]
        return mod.map_bits(coded, "qpsk").reshape(-1, self._carriers)

    def _description_sent(self, description: bytes) -> NDArray[np.complex64]:
        blocks, each = self._layout(len(description))
        padded = np.frombuffer(description.ljust(blocks * each, b"\0"), np.uint8)
        words = np.unpackbits(padded).reshape(blocks, each * 8)
        rest = _block(each * 8, each * 8 * _EXPANSION).encode(words).ravel()
        coded = np.pad(rest, (0, -rest.size % (2 * self._carriers)))
        return mod.map_bits(coded, "qpsk").reshape(-1, self._carriers)

    def decode_control(self, symbols: NDArray[np.complex64], variance: NDArray[np.float32]) -> tuple[Control, bytes]:
        """Decode the control part.

        Args:
            symbols: complex64 (control_symbols, data_carriers), equalised.
            variance: float32 of that shape.

        Returns:
            The control part and its bytes, which the description's CRC covers.

        Raises:
            HeaderError: when the CRC fails or a field is out of its range.
        """
        llrs = mod.demap(symbols.ravel(), variance.ravel(), "qpsk")
        bits = _block(_CONTROL_BITS, self._control_coded).decode(llrs[None], iterations=_LDPC_ITERATIONS).bits[0]
        if not CRC16.check(bits):
            raise HeaderError("the control part's CRC fails")
        head = np.packbits(bits[:32]).tobytes()
        word = int.from_bytes(head, "big")
        version, size, payload = word >> 28, word >> 18 & 0x3FF, word >> 8 & 0x3FF
        if version != VERSION or word & 0xFF or size < 3 or payload > MAX_PAYLOAD_SYMBOLS:
            raise HeaderError(f"version {version}, {size} bytes, {payload} payload symbols")
        if self.symbols(size) > MAX_HEADER_SYMBOLS:
            raise HeaderError(f"a header of {self.symbols(size)} OFDM symbols")
        return Control(size, payload), head

    def decode_description(
        self, control: Control, head: bytes, symbols: NDArray[np.complex64], variance: NDArray[np.float32]
    ) -> tuple[BurstHeader, NDArray[np.complex64]]:
        """Decode the rest of the header.

        Args:
            control: from ``decode_control``, with its bytes ``head``.
            symbols: complex64 (header symbols - control_symbols, data_carriers), equalised.
            variance: float32 of that shape.

        Returns:
            The header, and the symbols the description was sent as, complex64 like ``symbols``.

        Raises:
            HeaderError: when the CRC fails or a field is out of its range.
        """
        size = control.description_bytes
        blocks, each = self._layout(size)
        coded = blocks * each * 8 * _EXPANSION
        llrs = mod.demap(symbols.ravel(), variance.ravel(), "qpsk")[:coded].reshape(blocks, -1)
        code = _block(each * 8, each * 8 * _EXPANSION)
        words = code.decode(np.ascontiguousarray(llrs), iterations=_LDPC_ITERATIONS).bits
        data = np.packbits(words.ravel()).tobytes()[:size]
        if CRC24A.parity_of_bytes(head + data) != 0:
            raise HeaderError("the description's CRC fails")
        return parse_description(data[:-3], control.payload_symbols), self._description_sent(data)
