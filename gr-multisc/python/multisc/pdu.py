"""Between PDUs and the library's objects. docs/pdu.md is the table of the metadata.

A PDU is a pair of a dictionary and a uniform vector. One PDU carries one stream of one image; ``END`` alone
says that no more will come, and travels through every block behind what was sent before it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pmt
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.phy.assembly import AssembledImage
from multisc.phy.transport import ModulatedStream, StreamDescriptor
from multisc.streams import MAX_STREAMS, ReceivedStream, Reconstruction, Stream

Message = pmt.pmt_base
END = pmt.cons(pmt.to_pmt({"end": True}), pmt.init_u8vector(0, []))


@dataclass(frozen=True)
class Envelope:
    """What every PDU says of the image its stream belongs to.

    Args:
        image_id: 0 to 2**32 - 1.
        index: place of the stream among those of the image.
        count: number of streams of the image, 1 to 16.
        system: name of the system.
        side_info: the system's own bytes of the header.

    Raises:
        BadInputError: when the place is none among so many streams.
    """

    image_id: int
    index: int
    count: int
    system: str
    side_info: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MAX_STREAMS:
            raise BadInputError(
                f"stream {self.index} of {self.count}: an image has 1 to {MAX_STREAMS} streams, numbered from 0"
            )


def is_end(message: pmt.pmt_base) -> bool:
    """Whether a message is ``END``."""
    return pmt.is_pair(message) and pmt.is_dict(pmt.car(message)) and pmt.dict_has_key(pmt.car(message), _END_KEY)


_END_KEY = pmt.intern("end")


# The memory of a uniform vector is copied as it is: element by element it takes twenty to a hundred times as long.
_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_MAKERS: dict[np.dtype, Callable[[int], Message]] = {
    np.dtype(np.uint8): lambda size: pmt.make_u8vector(size, 0),
    np.dtype(np.float32): lambda size: pmt.make_f32vector(size, 0.0),
    np.dtype(np.complex64): lambda size: pmt.make_c32vector(size, 0.0),
}


def to_vector(array: NDArray) -> pmt.pmt_base:
    """A uniform vector of a uint8, float32 or complex64 array.

    Raises:
        BadInputError: for an array of another type.
    """
    if array.dtype not in _MAKERS or array.ndim != 1:
        raise BadInputError(f"{array.dtype} of shape {array.shape}: a vector is uint8, float32 or complex64")
    vector = _MAKERS[array.dtype](array.size)
    if array.size:
        items = np.ascontiguousarray(array)
        memory = pmt.uniform_vector_writable_elements(vector, 0)
        ctypes.memmove(_address(memory, None), items.ctypes.data, items.nbytes)
    return vector


def to_array(vector: pmt.pmt_base) -> NDArray:
    """The array of a uniform vector of u8, f32 or c32 items.

    Raises:
        BadInputError: for another type.
    """
    if pmt.is_u8vector(vector):
        items: NDArray = np.empty(pmt.length(vector), np.uint8)
    elif pmt.is_f32vector(vector):
        items = np.empty(pmt.length(vector), np.float32)
    elif pmt.is_c32vector(vector):
        items = np.empty(pmt.length(vector), np.complex64)
    else:
        raise BadInputError("a PDU's vector must have u8, f32 or c32 items")
    if items.size:
        memory = pmt.uniform_vector_elements(vector, 0)
        ctypes.memmove(items.ctypes.data, _address(memory, None), items.nbytes)
    return items


def pack(meta: dict[str, Any], vector: NDArray) -> pmt.pmt_base:
    """Build a PDU; values that are bytes or arrays become uniform vectors."""
    known = pmt.make_dict()
    for key, value in meta.items():
        if isinstance(value, bytes):
            value = np.frombuffer(value, np.uint8)
        if value is not None:
            converted = to_vector(value) if isinstance(value, np.ndarray) else pmt.to_pmt(value)
            known = pmt.dict_add(known, pmt.intern(key), converted)
    return pmt.cons(known, to_vector(vector))


def unpack(message: pmt.pmt_base) -> tuple[dict[str, Any], NDArray]:
    """Take a PDU apart.

    Raises:
        BadInputError: when the message is not a PDU.
    """
    if not (pmt.is_pair(message) and pmt.is_dict(pmt.car(message)) and pmt.is_uniform_vector(pmt.cdr(message))):
        raise BadInputError("a message is not a PDU: it must be a pair of a dictionary and a uniform vector")
    meta, items = {}, pmt.dict_items(pmt.car(message))
    while not pmt.is_null(items):
        key, value = pmt.car(pmt.car(items)), pmt.cdr(pmt.car(items))
        meta[str(key)] = to_array(value) if pmt.is_uniform_vector(value) else pmt.to_python(value)
        items = pmt.cdr(items)
    return meta, to_array(pmt.cdr(message))


def envelope_meta(envelope: Envelope) -> dict[str, Any]:
    """The envelope as metadata."""
    return {
        "image_id": envelope.image_id,
        "index": envelope.index,
        "count": envelope.count,
        "system": envelope.system,
        "side_info": envelope.side_info,
    }


def envelope_of(meta: dict[str, Any]) -> Envelope:
    """Read the envelope.

    Raises:
        BadInputError: when a field is missing.
    """
    try:
        return Envelope(
            int(meta["image_id"]),
            int(meta["index"]),
            int(meta["count"]),
            str(meta["system"]),
            bytes(np.asarray(meta["side_info"], np.uint8)),
        )
    except KeyError as missing:
        raise BadInputError(f"a PDU has no metadata {missing}") from None


def _quantiser_meta(quantiser: Quantiser | None) -> dict[str, Any]:
    return {} if quantiser is None else {"quantiser_bits": quantiser.bits, "quantiser_limit": quantiser.limit}


def quantiser_of(meta: dict[str, Any]) -> Quantiser | None:
    """The quantiser that a PDU names, None when it names none."""
    if "quantiser_bits" not in meta:
        return None
    return Quantiser(int(meta["quantiser_bits"]), float(meta["quantiser_limit"]))


def pack_image(image: NDArray[np.uint8], image_id: int) -> pmt.pmt_base:
    """A picture, uint8 of shape (H, W, 3)."""
    return pack({"image_id": image_id, "width": image.shape[1], "height": image.shape[0]}, image.ravel())


def unpack_image(meta: dict[str, Any], flat: NDArray) -> tuple[NDArray[np.uint8], int]:
    """The picture of a PDU, uint8 of shape (H, W, 3), and its id.

    Raises:
        BadInputError: when the metadata and the vector do not fit together.
    """
    try:
        image_id, width, height = int(meta["image_id"]), int(meta["width"]), int(meta["height"])
    except KeyError as missing:
        raise BadInputError(f"an image PDU has no metadata {missing}") from None
    if flat.dtype != np.uint8 or min(width, height) < 1 or flat.size != width * height * 3:
        raise BadInputError(f"image PDU of {flat.size} items: {width}x{height} RGB has {width * height * 3}")
    return flat.reshape(height, width, 3), image_id


def pack_reconstruction(
    result: Reconstruction, image_id: int, system: str = "", lost: Sequence[str] = ()
) -> pmt.pmt_base:
    """What a receiver shows: a picture, or an outage with its reason; ``lost`` names streams that never arrived."""
    shape = (0, 0) if result.image is None else result.image.shape[:2]
    about = {
        "image_id": image_id,
        "system": system,
        "width": int(shape[1]),
        "height": int(shape[0]),
        "outage": result.outage,
        "outage_reason": result.outage_reason,
        "received": result.text.get("received", []),
        "corrected": result.text.get("corrected", []),
        "lost": list(lost),
    }
    return pack(about, np.zeros(0, np.uint8) if result.image is None else result.image.ravel())


def pack_draft(draft: Reconstruction, image_id: int, system: str, lost: Sequence[str] = ()) -> pmt.pmt_base:
    """What a receiver has before the picture: the captions as received, and the subject with its place."""
    piece = draft.preview.get("slice", np.zeros((0, 0, 3), np.uint8))
    width, height = draft.preview["size"]
    about = {
        "image_id": image_id,
        "system": system,
        "draft": True,
        "width": width,
        "height": height,
        "piece_width": piece.shape[1],
        "piece_height": piece.shape[0],
        "box": list(draft.preview["box"]),
        "received": draft.text.get("received", []),
        "lost": list(lost),
    }
    return pack(about, piece.ravel())


def pack_stream(stream: Stream, envelope: Envelope) -> pmt.pmt_base:
    """A stream as its system made it: coefficients (f32) or bits (u8)."""
    meta = {"stream": stream.name, "modulation": stream.modulation, "code": stream.code}
    return pack(meta | _quantiser_meta(stream.quantiser) | envelope_meta(envelope), stream.data)


def unpack_stream(meta: dict[str, Any], data: NDArray) -> Stream:
    """The stream of a PDU; bits that a quantiser made keep no quantiser here (see ``quantiser_of``).

    Raises:
        BadInputError: when the metadata and the vector do not fit together.
    """
    quantiser = quantiser_of(meta) if data.dtype == np.float32 else None
    try:
        return Stream(str(meta["stream"]), data, str(meta["modulation"]), str(meta["code"]), quantiser)
    except KeyError as missing:
        raise BadInputError(f"a PDU has no metadata {missing}") from None


def pack_symbols(
    descriptor: StreamDescriptor,
    symbols: NDArray[np.complex64],
    envelope: Envelope,
    noise_variance: NDArray[np.float32] | None = None,
    power_db: float = 0.0,
) -> pmt.pmt_base:
    """A modulated stream (c32), or a received one with the noise variance of each symbol."""
    meta = {
        "stream": descriptor.name,
        "modulation": descriptor.modulation,
        "code": descriptor.code,
        "length": descriptor.length,
        "symbols": descriptor.symbols,
        "power_db": power_db,
        "gain": float(descriptor.gain),
        "noise_variance": noise_variance,
    }
    return pack(meta | _quantiser_meta(descriptor.quantiser) | envelope_meta(envelope), symbols)


def pack_image_symbols(image: AssembledImage) -> Iterator[pmt.pmt_base]:
    """The received streams of an image."""
    for index, (descriptor, symbols, noise_variance) in enumerate(image.streams):
        envelope = Envelope(image.image_id, index, len(image.streams), image.system, image.side_info)
        yield pack_symbols(descriptor, symbols, envelope, noise_variance)


def unpack_symbols(meta: dict[str, Any], data: NDArray) -> ModulatedStream:
    """The modulated stream of a PDU.

    Raises:
        BadInputError: when metadata is missing.
    """
    try:
        descriptor = StreamDescriptor(
            name=str(meta["stream"]),
            modulation=str(meta["modulation"]),
            code=str(meta["code"]),
            length=int(meta["length"]),
            symbols=int(meta["symbols"]),
            gain=float(meta["gain"]),
            quantiser=quantiser_of(meta),
        )
        return ModulatedStream(descriptor, data, float(meta["power_db"]))
    except KeyError as missing:
        raise BadInputError(f"a PDU has no metadata {missing}") from None


def pack_received(
    received: ReceivedStream, envelope: Envelope, quantiser: Quantiser | None, code: str
) -> pmt.pmt_base:
    """A received stream: bits (u8), with their soft bits when there is no code, or coefficients (f32)."""
    meta = {
        "stream": received.name,
        "delivered": received.delivered,
        "crc_ok": received.crc_ok,
        "snr_db": float(received.snr_db),
        "llrs": received.llrs if code == "none" else None,
        "code": code,
    }
    return pack(meta | _quantiser_meta(quantiser) | envelope_meta(envelope), received.data)


def pack_soft_bits(received: ReceivedStream, envelope: Envelope, descriptor: StreamDescriptor) -> pmt.pmt_base:
    """A received stream before its code is decoded: soft bits (f32) of the code bits."""
    meta = {
        "stream": received.name,
        "delivered": received.delivered,
        "snr_db": float(received.snr_db),
        "modulation": descriptor.modulation,
        "code": descriptor.code,
        "length": descriptor.length,
    }
    return pack(meta | _quantiser_meta(descriptor.quantiser) | envelope_meta(envelope), received.llrs)


def unpack_soft_bits(meta: dict[str, Any], data: NDArray) -> tuple[ReceivedStream, str, str, int]:
    """The received stream of a PDU of soft bits, its code, modulation and payload bits.

    Raises:
        BadInputError: when metadata are missing, or the vector is not f32.
    """
    if data.dtype != np.float32:
        raise BadInputError(f"soft bits of type {data.dtype}: must be float32; let the demodulator not decode")
    received = unpack_received(meta | {"llrs": data}, (data < 0).astype(np.uint8))
    try:
        return received, str(meta["code"]), str(meta["modulation"]), int(meta["length"])
    except KeyError as missing:
        raise BadInputError(f"a PDU has no metadata {missing}") from None


def unpack_received(meta: dict[str, Any], data: NDArray) -> ReceivedStream:
    """The received stream of a PDU.

    Raises:
        BadInputError: when metadata is missing.
    """
    try:
        return ReceivedStream(
            name=str(meta["stream"]),
            data=data,
            delivered=bool(meta["delivered"]),
            crc_ok=meta.get("crc_ok"),
            snr_db=float(meta["snr_db"]),
            llrs=meta.get("llrs", np.zeros(0, np.float32)),
        )
    except KeyError as missing:
        raise BadInputError(f"a PDU has no metadata {missing}") from None
