"""Messages between the flowgraph process and the inference process, and their bytes (docs/reference/inference.md).

A message is a list of frames: ``MSC`` and the version; a msgpack header; one frame of raw C-order,
little-endian bytes for each array. All of it may be hostile: every size is checked before anything is
allocated for it, every field against a strict schema, and nothing is ever executed or unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import MAX_BITS, Quantiser
from multisc.errors import BadInputError
from multisc.inference import schema
from multisc.inference.schema import OversizedError, VersionError, WireError
from multisc.streams import (
    MAX_NAME,
    MAX_SIDE_INFO,
    MAX_STREAMS,
    MODULATIONS,
    Encoded,
    ReceivedImage,
    ReceivedStream,
    Reconstruction,
    Stream,
)

VERSION = 1
MAGIC = b"MSC" + bytes([VERSION])
# Bytes of one message, all frames together; a server may set another. Takes the largest picture that is accepted.
MESSAGE_LIMIT = 192 << 20
HEADER_LIMIT = 256 << 10
MAX_ARRAYS = 64
MAX_IMAGE_SIDE = 16384
MAX_TIMEOUT_S = 3600.0
MAX_TEXT = 1000
ARRAY_EXTENSION = 1
FAILURES = (
    "bad-input",  # the request asks for something wrong: BadInputError
    "model",  # a checkpoint is unusable: ModelError
    "failed",  # another foreseen failure: MultiscError
    "internal",  # an unforeseen exception in the handler
    "busy",  # the queue is full: try again later
    "timeout",  # not finished within the request's own time-out
    "worker-died",  # the process that worked on it ended
    "stopping",  # the server is being stopped
    "malformed",  # the message breaks the protocol
    "oversized",  # larger than the server's limit
    "version",  # another version of the protocol
)


@dataclass(frozen=True)
class Hello:
    """Client to server, first: asks for a Welcome, and for heartbeats until the request is answered."""

    client: str


@dataclass(frozen=True)
class EncodeRequest:
    """Client to server: run a system's transmitter on an image, uint8 of shape (H, W, 3)."""

    system: str
    image: NDArray[np.uint8]
    options: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class DecodeRequest:
    """Client to server: run a system's receiver on what arrived."""

    system: str
    received: ReceivedImage
    options: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class StatusRequest:
    """Client to server: how are you?"""


@dataclass(frozen=True)
class Welcome:
    """Server to client: its name and version, its heartbeat interval, the largest message it takes (bytes)."""

    server: str
    heartbeat_s: float
    message_limit: int


@dataclass(frozen=True)
class Heartbeat:
    """Server to client, once per interval: it lives, and what it does with the request."""

    state: str  # "expecting" (no request yet), "queued", "running"
    detail: str = ""
    ahead: int = 0


@dataclass(frozen=True)
class EncodedReply:
    """Server to client: the answer to an EncodeRequest."""

    encoded: Encoded


@dataclass(frozen=True)
class DecodedReply:
    """Server to client: the answer to a DecodeRequest."""

    reconstruction: Reconstruction


@dataclass(frozen=True)
class StatusReply:
    """Server to client: health and metrics."""

    status: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Server to client: the request failed; ``code`` is one of ``FAILURES``, the message one line."""

    code: str
    message: str


Request = EncodeRequest | DecodeRequest
Message = (
    Hello | EncodeRequest | DecodeRequest | StatusRequest
    | Welcome | Heartbeat | EncodedReply | DecodedReply | StatusReply | Failure
)  # fmt: skip


def one_line(message: object, limit: int = MAX_TEXT) -> str:
    """Return a text fit for one line of a terminal: no control characters, at most ``limit`` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(message)).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def pack(message_id: int, message: Message) -> list[bytes | memoryview]:
    """Turn a message into frames.

    Args:
        message_id: 0 to 2**64 - 1; a reply carries the number of its request.
        message: any of the message classes.

    Returns:
        The frames; arrays are not copied when they are contiguous already.

    Raises:
        WireError: when it holds a value that cannot be sent, more arrays than ``MAX_ARRAYS``, or a header
            beyond ``HEADER_LIMIT``.
    """
    kind, to_tree, from_tree = _BY_CLASS[type(message)]
    try:
        body = _plain(to_tree(message), kind)
        from_tree(body, kind)  # as strict in sending as in receiving
    except RecursionError:
        raise WireError(f"{kind}: nested too deeply to be sent") from None
    except BadInputError as error:
        raise WireError(f"{kind}: {error}") from None
    arrays: list[NDArray] = []
    specs: list[Any] = []

    def reference(array: Any) -> msgpack.ExtType:
        if not isinstance(array, np.ndarray):
            raise ValueError(f"integer {array} needs more than 64 bits")
        arrays.append(array)
        specs.append([array.dtype.str[1:], list(array.shape)])
        return msgpack.ExtType(ARRAY_EXTENSION, (len(arrays) - 1).to_bytes(2, "big"))

    try:
        # In this order: packing the body fills in the list of arrays.
        header = msgpack.packb({"id": message_id, "kind": kind, "body": body, "arrays": specs}, default=reference)
    except (ValueError, OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"{kind}: cannot be sent: {one_line(error)}") from None
    if len(header) > HEADER_LIMIT:
        raise OversizedError(f"{kind}: header of {len(header)} bytes; at most {HEADER_LIMIT}")
    if len(arrays) > MAX_ARRAYS:
        raise OversizedError(f"{kind}: {len(arrays)} arrays in one message; at most {MAX_ARRAYS}")
    # An empty array cannot be cast to bytes by memoryview, hence the empty frame.
    return [MAGIC, header, *(a.data.cast("B") if a.size else b"" for a in arrays)]


def unpack(frames: Sequence[bytes | memoryview], limit: int = MESSAGE_LIMIT) -> tuple[int, Message]:
    """Turn frames that may be hostile into a message.

    Returns:
        The message's number and the message; its arrays own their memory.

    Raises:
        VersionError: for another version of the protocol.
        OversizedError: beyond ``limit`` bytes, ``HEADER_LIMIT`` or ``MAX_ARRAYS``.
        WireError: for everything else that breaks the protocol.
    """
    tree = _unpack_header(frames, limit)
    arrays = [_array(frame, dtype, dims) for frame, (dtype, dims) in zip(frames[2:], tree["arrays"], strict=True)]
    used: set[int] = set()
    body = _resolve(tree["body"], arrays, used)
    if len(used) != len(arrays):
        raise WireError("an array that no field refers to")
    try:
        return tree["id"], _BY_KIND[tree["kind"]](body, tree["kind"])
    except BadInputError as error:
        raise WireError(f"{tree['kind']}: {error}") from None


def message_id(frames: Sequence[bytes | memoryview]) -> int:
    """Return the number of a message that did not unpack, so that the refusal reaches its sender; 0 if unknown."""
    try:
        return _unpack_header(frames, limit=1 << 62)["id"]
    except WireError:
        return 0


def _unpack_header(frames: Sequence[bytes | memoryview], limit: int) -> dict[str, Any]:
    size = sum(len(frame) for frame in frames)
    if size > limit:
        raise OversizedError(f"message of {size} bytes: at most {limit}")
    magic = bytes(frames[0][:4]) if frames else b""
    if len(magic) != 4 or magic[:3] != MAGIC[:3] or len(frames[0]) != 4:
        raise WireError("not a message of this protocol: the first frame must be 'MSC' and the version")
    if magic != MAGIC:
        raise VersionError(f"message of protocol version {magic[3]}: this side speaks version {VERSION}")
    if len(frames) < 2:
        raise WireError("no header frame")
    if len(frames[1]) > HEADER_LIMIT:
        raise OversizedError(f"header of {len(frames[1])} bytes: at most {HEADER_LIMIT}")
    if len(frames) - 2 > MAX_ARRAYS:
        raise OversizedError(f"{len(frames) - 2} arrays: at most {MAX_ARRAYS}")
    try:
        tree = msgpack.unpackb(frames[1], ext_hook=_Reference, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise WireError(f"header is not msgpack: {one_line(error, 120)}") from None
    dims = schema.items(schema.integer(0, 1 << 31), schema.MAX_DIMENSIONS)
    tree = schema.fields(
        tree,
        "header",
        id=schema.integer(0, (1 << 64) - 1),
        kind=schema.choice(list(_BY_KIND)),
        arrays=schema.items(_pair(schema.choice(list(schema.DTYPES)), dims), MAX_ARRAYS),
        body=lambda value, _: value,
    )
    if len(tree["arrays"]) != len(frames) - 2:
        raise WireError(f"{len(frames) - 2} array frames, but the header declares {len(tree['arrays'])}")
    return tree


def _pair(first: schema.Check, second: schema.Check) -> schema.Check:
    def check(value: Any, where: str) -> tuple[Any, Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise WireError(f"{where}: must be a list of two")
        return first(value[0], where), second(value[1], where)

    return check


def _array(frame: bytes | memoryview, name: str, dims: list[int]) -> NDArray:
    dtype = schema.DTYPES[name]
    wanted = math.prod(dims) * dtype.itemsize
    if wanted != len(frame):
        raise WireError(f"array of shape {tuple(dims)} {name} needs {wanted} bytes, but its frame has {len(frame)}")
    if name == "b1" and np.frombuffer(frame, np.uint8).max(initial=0) > 1:
        raise WireError("array of booleans with a byte that is neither 0 nor 1")
    return np.frombuffer(frame, dtype).reshape(dims).copy()


class _Reference:
    """Stands for an array while the header is read."""

    def __init__(self, code: int, data: bytes) -> None:
        if code != ARRAY_EXTENSION or len(data) != 2:
            raise ValueError("unknown msgpack extension")
        self.index = int.from_bytes(data, "big")


def _resolve(tree: Any, arrays: list[NDArray], used: set[int], nesting: int = schema.MAX_NESTING + 4) -> Any:
    """Put the arrays in the place of their references, each of them once."""
    if isinstance(tree, _Reference):
        if tree.index >= len(arrays) or tree.index in used:
            raise WireError(f"reference to array {tree.index}: unknown, or used twice")
        used.add(tree.index)
        return arrays[tree.index]
    if not isinstance(tree, list | dict):
        return tree
    if nesting == 0:
        raise WireError("header nested too deeply")
    if isinstance(tree, list):
        return [_resolve(item, arrays, used, nesting - 1) for item in tree]
    return {key: _resolve(item, arrays, used, nesting - 1) for key, item in tree.items()}


def _plain(value: Any, where: str) -> Any:
    """Turn a value into lists, maps, plain scalars, and C-order little-endian arrays."""
    if isinstance(value, np.ndarray):
        name = value.dtype.str[1:]
        if name not in schema.DTYPES or value.ndim > schema.MAX_DIMENSIONS:
            raise WireError(f"{where}: cannot send an array of {value.ndim} dimensions and dtype {value.dtype}")
        return np.asarray(value, schema.DTYPES[name], order="C")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    return value


# ---- the schema of each message ----------------------------------------------------------------------------------

_NAME = schema.text(MAX_NAME)
_LINE = schema.text(MAX_TEXT)
_IMAGE = schema.array("u1", shape=(None, None, 3), longest=MAX_IMAGE_SIDE)
_OPTIONS = schema.mapping(schema.anything, 64)
_TEXTS = schema.mapping(schema.items(schema.text(1 << 16), 256), 16)
_TIMEOUT = schema.number(0.0, MAX_TIMEOUT_S)


def _is_system(name: str) -> bool:
    return bool(name) and all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in name)


_SYSTEM = schema.text(32, _is_system)


def _payload(value: Any, where: str) -> NDArray:
    data = schema.array("u1", "f4", shape=(None,))(value, where)
    if data.dtype == np.uint8 and data.max(initial=0) > 1:
        raise WireError(f"{where}: bits must be 0 or 1")
    return data


def _stream_tree(stream: Stream) -> dict[str, Any]:
    quantiser = stream.quantiser and [stream.quantiser.bits, float(stream.quantiser.limit)]
    return {"name": stream.name, "data": stream.data, "modulation": stream.modulation, "code": stream.code,
            "quantiser": quantiser}  # fmt: skip


def _stream(tree: Any, where: str) -> Stream:
    values = schema.fields(
        tree,
        where,
        name=_NAME,
        data=_payload,
        modulation=schema.choice(MODULATIONS),
        code=schema.text(32, str.isprintable),
        quantiser=schema.optional(_pair(schema.integer(1, MAX_BITS), schema.number())),
    )
    if values["quantiser"] is not None:
        values["quantiser"] = Quantiser(*values["quantiser"])
    return Stream(**values)


def _encoded_tree(encoded: Encoded) -> dict[str, Any]:
    streams = [_stream_tree(stream) for stream in encoded.streams]
    return {"streams": streams, "side_info": encoded.side_info, "preview": encoded.preview}


def _encoded(tree: Any, where: str) -> Encoded:
    return Encoded(
        **schema.fields(
            tree,
            where,
            streams=schema.items(_stream, MAX_STREAMS),
            side_info=schema.blob(MAX_SIDE_INFO),
            preview=_OPTIONS,
        )
    )


def _received_stream(tree: Any, where: str) -> ReceivedStream:
    return ReceivedStream(
        **schema.fields(
            tree,
            where,
            name=_NAME,
            data=_payload,
            delivered=schema.boolean,
            crc_ok=schema.optional(schema.boolean),
            snr_db=schema.number(nan=True),
            llrs=schema.array("f4", shape=(None,)),
        )
    )


def _received(tree: Any, where: str) -> ReceivedImage:
    streams = schema.items(_received_stream, MAX_STREAMS)
    return ReceivedImage(**schema.fields(tree, where, streams=streams, side_info=schema.blob(MAX_SIDE_INFO)))


def _received_tree(received: ReceivedImage) -> dict[str, Any]:
    return {"streams": [dict(vars(stream)) for stream in received.streams], "side_info": received.side_info}


def _reconstruction(tree: Any, where: str) -> Reconstruction:
    return Reconstruction(
        **schema.fields(
            tree, where, image=schema.optional(_IMAGE), text=_TEXTS, outage_reason=_LINE, preview=_OPTIONS
        )
    )


def _flat(cls: type, **checks: schema.Check) -> Callable[[Any, str], Any]:
    return lambda tree, where: cls(**schema.fields(tree, where, **checks))


def _fields_of(message: Any) -> dict[str, Any]:
    return dict(vars(message))


_REQUEST = {"system": _SYSTEM, "options": _OPTIONS, "timeout_s": _TIMEOUT}

# kind, class, its tree, and the way back
_KINDS: tuple[tuple[str, type, Callable[[Any], Any], Callable[[Any, str], Any]], ...] = (
    ("hello", Hello, _fields_of, _flat(Hello, client=_LINE)),
    ("encode", EncodeRequest, _fields_of, _flat(EncodeRequest, image=_IMAGE, **_REQUEST)),
    ("decode", DecodeRequest, lambda m: {**vars(m), "received": _received_tree(m.received)},
     _flat(DecodeRequest, received=_received, **_REQUEST)),
    ("status", StatusRequest, _fields_of, _flat(StatusRequest)),
    ("welcome", Welcome, _fields_of,
     _flat(Welcome, server=_LINE, heartbeat_s=schema.number(0.01, 60.0), message_limit=schema.integer(1, 1 << 40))),
    ("heartbeat", Heartbeat, _fields_of,
     _flat(Heartbeat, state=schema.choice(("expecting", "queued", "running")), detail=_LINE,
           ahead=schema.integer(0, 1 << 31))),
    ("encoded", EncodedReply, lambda m: _encoded_tree(m.encoded), lambda t, w: EncodedReply(_encoded(t, w))),
    ("decoded", DecodedReply, lambda m: dict(vars(m.reconstruction)),
     lambda t, w: DecodedReply(_reconstruction(t, w))),
    ("report", StatusReply, _fields_of, _flat(StatusReply, status=schema.mapping(schema.anything, 64))),
    ("error", Failure, _fields_of, _flat(Failure, code=schema.choice(FAILURES), message=_LINE)),
)  # fmt: skip
_BY_CLASS = {cls: (kind, to_tree, from_tree) for kind, cls, to_tree, from_tree in _KINDS}
_BY_KIND = {kind: from_tree for kind, _, _, from_tree in _KINDS}
