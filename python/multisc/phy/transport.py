"""From a stream to channel symbols and back: quantiser, FEC and modulation of one stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.phy import modulation as mod
from multisc.phy.fec import Code, make_code
from multisc.streams import ReceivedStream, Stream

MAX_LENGTH = 1 << 24  # bits or features of one stream


@dataclass(frozen=True)
class StreamDescriptor:
    """What the header says of a stream: all a receiver needs to make sense of its symbols.

    Args:
        name: as ``Stream.name``.
        modulation: as ``Stream.modulation``.
        code: as ``Stream.code``.
        length: payload bits of a digital stream, features of an analog one; 0 to 2**24.
        symbols: channel uses of the whole stream.
        gain: factor that scales analog features back; 1 for a digital stream.
        quantiser: of a quantised stream, else None.
    """

    name: str
    modulation: str
    code: str
    length: int
    symbols: int
    gain: float = 1.0
    quantiser: Quantiser | None = None


@dataclass(frozen=True)
class ModulatedStream:
    """A stream as channel symbols.

    Args:
        descriptor: goes into the header.
        symbols: complex64 of shape (descriptor.symbols,), unit mean power.
        power_db: level of this stream against the pilots, -40 to 20 dB; told in the header.
    """

    descriptor: StreamDescriptor
    symbols: NDArray[np.complex64]
    power_db: float = 0.0


def modulate(stream: Stream, power_db: float = 0.0) -> ModulatedStream:
    """Turn a stream into channel symbols.

    Args:
        stream: what to send.
        power_db: see ``ModulatedStream``.

    Raises:
        BadInputError: for a stream that is too long, an unknown code, or features that are not finite.
    """
    if stream.kind == "analog":
        if stream.data.size > MAX_LENGTH:
            raise BadInputError(f"stream {stream.name}: {stream.data.size} features, at most {MAX_LENGTH}")
        if not np.isfinite(stream.data).all():
            raise BadInputError(f"stream {stream.name}: a feature is not finite")
        symbols, gain = mod.map_features(stream.data)
        described = StreamDescriptor(stream.name, "analog", "none", stream.data.size, symbols.size, float(gain))
        return ModulatedStream(described, symbols, power_db)
    bits = stream.bits()
    coded = replace(stream, data=encode(replace(stream, data=bits, quantiser=None)), quantiser=None)
    modulated = map_coded(coded, bits.size, power_db)
    return replace(modulated, descriptor=replace(modulated.descriptor, quantiser=stream.quantiser))


def encode(stream: Stream) -> NDArray[np.uint8]:
    """The code bits of a digital stream of bits: what its modulator maps.

    Args:
        stream: bits, without a quantiser; the code's rate matching is to whole symbols of its modulation.

    Returns:
        uint8 of 0 and 1; the bits themselves when the stream has no code.

    Raises:
        BadInputError: for a stream that is too long or an unknown code.
    """
    bits = stream.bits()
    if bits.size > MAX_LENGTH:
        raise BadInputError(f"stream {stream.name}: {bits.size} bits, at most {MAX_LENGTH}")
    code = _code(stream.code, stream.modulation, bits.size)
    return code.encode(bits) if code else bits


def map_coded(stream: Stream, length: int, power_db: float = 0.0) -> ModulatedStream:
    """Map code bits to channel symbols; zero bits fill the last symbol of an uncoded stream.

    Args:
        stream: its data are the code bits that ``encode`` made.
        length: payload bits they were made of.
        power_db: see ``ModulatedStream``.

    Raises:
        BadInputError: when that many payload bits do not give these code bits.
    """
    width = mod.bits_per_symbol(stream.modulation)
    bits = stream.data
    code = _code(stream.code, stream.modulation, length)
    expected = code.coded_bits if code else length
    if bits.size != expected:
        raise BadInputError(
            f"stream {stream.name}: {bits.size} code bits, {length} bits of {stream.code} in {stream.modulation} "
            f"make {expected}"
        )
    whole = np.concatenate([bits, np.zeros(-bits.size % width, np.uint8)]) if bits.size % width else bits
    symbols = mod.map_bits(whole, stream.modulation)
    described = StreamDescriptor(stream.name, stream.modulation, stream.code, length, symbols.size)
    return ModulatedStream(described, symbols, power_db)


def channel_uses(stream: Stream) -> int:
    """Return the symbols that a stream takes, without making them.

    Raises:
        BadInputError: for an unknown code or a length that it does not take.
    """
    if stream.kind == "analog":
        return -(-stream.data.size // 2)
    width = mod.bits_per_symbol(stream.modulation)
    bits = stream.data.size * (stream.quantiser.bits if stream.quantiser else 1)
    coded = make_code(stream.code, bits, width).coded_bits if bits and stream.code != "none" else bits
    return -(-coded // width)


def _code(spec: str, modulation: str, length: int) -> Code | None:
    """The code of a stream of so many bits; None where there is nothing to encode."""
    if spec == "none" or length == 0:
        return None
    return make_code(spec, length, mod.bits_per_symbol(modulation))


def demodulate(
    descriptor: StreamDescriptor, symbols: NDArray[np.complex64], noise_variance: NDArray[np.float32]
) -> ReceivedStream:
    """Recover a stream from its symbols.

    Args:
        descriptor: from the header.
        symbols: complex64 (descriptor.symbols,), equalised to unit mean power.
        noise_variance: float32 of that shape, of the complex noise of each symbol; inf where nothing was received.

    Returns:
        The stream, with its soft bits; coefficients are the least-squares estimate given what was received.

    Raises:
        BadInputError: when the descriptor contradicts itself or the symbols: a header that lies.
    """
    received = demap(descriptor, symbols, noise_variance)
    if descriptor.modulation == "analog":
        return received
    decoded = decode(received, descriptor.code, descriptor.modulation, descriptor.length)
    if descriptor.quantiser is None:
        return decoded
    return dequantise(decoded, descriptor.quantiser, descriptor.code)


def demap(
    descriptor: StreamDescriptor, symbols: NDArray[np.complex64], noise_variance: NDArray[np.float32]
) -> ReceivedStream:
    """The soft bits of a stream before its code is decoded, or the features of an analog stream.

    Args:
        descriptor, symbols, noise_variance: see ``demodulate``.

    Returns:
        The stream; ``llrs`` are those of the code bits, 0 where nothing was received, ``data`` their hard decisions.

    Raises:
        BadInputError: see ``demodulate``.
    """
    if symbols.size != descriptor.symbols or noise_variance.size != descriptor.symbols:
        raise BadInputError(
            f"stream {descriptor.name}: {symbols.size} symbols where {descriptor.symbols} are announced"
        )
    received = np.isfinite(noise_variance)
    whole = bool(received.all())
    delivered = bool(received.any()) or descriptor.symbols == 0
    # The mean over symbols of unit power: Es/N0 is the inverse of the mean noise.
    heard_variance = noise_variance if whole else noise_variance[received]
    noise = float(heard_variance.mean(dtype=np.float64)) if heard_variance.size else float("nan")
    snr_db = -10.0 * np.log10(noise) if noise > 0 else float("nan")
    if descriptor.modulation == "analog":
        return _demap_analog(descriptor, symbols, received, delivered, snr_db)
    if descriptor.quantiser is not None and descriptor.length % descriptor.quantiser.bits:
        raise BadInputError(f"stream {descriptor.name}: {descriptor.length} bits are no whole number of coefficients")
    width = mod.bits_per_symbol(descriptor.modulation)
    code = _code(descriptor.code, descriptor.modulation, descriptor.length)
    expected = code.coded_bits if code else descriptor.length
    if -(-expected // width) != descriptor.symbols:
        raise BadInputError(
            f"stream {descriptor.name}: {descriptor.symbols} symbols announced, {descriptor.length} bits of "
            f"{descriptor.code} take {-(-expected // width)}"
        )
    if whole:
        llrs = mod.demap(symbols, noise_variance, descriptor.modulation)[:expected]
    else:
        llrs = np.zeros((descriptor.symbols, width), np.float32)
        if heard_variance.size:
            heard = mod.demap(symbols[received], heard_variance, descriptor.modulation)
            llrs[received] = heard.reshape(-1, width)
        llrs = llrs.ravel()[:expected]
    return ReceivedStream(descriptor.name, (llrs < 0).view(np.uint8), delivered, None, snr_db, llrs)


def decode(received: ReceivedStream, code: str, modulation: str, length: int, iterations: int = 0) -> ReceivedStream:
    """Decode the code of a digital stream.

    Args:
        received: with the soft bits of the code bits, as ``demap`` gives them.
        code, modulation: of the stream.
        length: its payload bits.
        iterations: the most that the decoder makes; 0 for as many as suit the code.

    Returns:
        The stream with its payload bits and the verdict of the CRC; unchanged where there is no code.

    Raises:
        BadInputError: for an unknown code, or when that many payload bits do not give these code bits.
    """
    chain = _code(code, modulation, length)
    if chain is None:
        return received
    decoded = chain.decode(received.llrs, iterations)
    return replace(received, data=decoded.bits, crc_ok=decoded.crc_ok)


def dequantise(received: ReceivedStream, quantiser: Quantiser, code: str) -> ReceivedStream:
    """Turn the bits of a received stream into coefficients.

    Args:
        received: bits, with their soft bits when there is no code.
        quantiser: that of the sent stream.
        code: of the stream; without one the soft bits give the least-squares estimate, with one the decoded bits
            give the levels.

    Raises:
        BadInputError: when the bits are no whole number of coefficients.
    """
    data = quantiser.expect(received.llrs) if code == "none" else quantiser.dequantise(received.data)
    return replace(received, data=data)


def _demap_analog(
    descriptor: StreamDescriptor,
    symbols: NDArray[np.complex64],
    received: NDArray[np.bool_],
    delivered: bool,
    snr_db: float,
) -> ReceivedStream:
    if -(-descriptor.length // 2) != descriptor.symbols:
        raise BadInputError(
            f"stream {descriptor.name}: {descriptor.symbols} symbols announced, {descriptor.length} features take "
            f"{-(-descriptor.length // 2)}"
        )
    heard = np.where(received, symbols, np.complex64(0))
    data = mod.demap_features(heard, descriptor.gain, descriptor.length)
    return ReceivedStream(descriptor.name, data, delivered, None, snr_db)
