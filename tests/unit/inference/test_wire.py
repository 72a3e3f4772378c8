"""The wire protocol: every message survives the round trip, and no frames whatever do harm."""

import tracemalloc
from dataclasses import fields, is_dataclass

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multisc.codecs.quantise import Quantiser
from multisc.images import MAX_PIXELS
from multisc.link import schema, wire
from multisc.link.schema import OversizedError, VersionError, WireError
from multisc.streams import DIGITAL_MODULATIONS, Encoded, ReceivedImage, ReceivedStream, Reconstruction, Stream

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=15)
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ARRAYS = hnp.arrays(
    st.sampled_from([np.uint8, np.bool_, np.int32, np.int64, np.float32, np.float64]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | LINES
    | st.binary(max_size=20)
    | ARRAYS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LINES, inner, max_size=3), max_leaves=5
)
OPTIONS = st.dictionaries(st.text(min_size=1, max_size=20), VALUES, max_size=4)
IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))
FLOATS = hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32))
BITS = hnp.arrays(np.uint8, st.integers(0, 20), elements=st.integers(0, 1))
QUANTISERS = st.builds(Quantiser, st.integers(1, 8), st.floats(1e-3, 1e3))
STREAMS = (
    st.builds(Stream, NAMES, FLOATS, st.just("analog"))
    | st.builds(Stream, NAMES, BITS, st.sampled_from(DIGITAL_MODULATIONS), st.sampled_from(["none", "nr:1/2"]))
    | st.builds(Stream, NAMES, FLOATS, st.sampled_from(DIGITAL_MODULATIONS), st.just("none"), QUANTISERS)
)
ENCODED = st.builds(
    Encoded, st.lists(STREAMS, min_size=1, max_size=5, unique_by=lambda s: s.name), st.binary(max_size=64), OPTIONS
)
RECEIVED_STREAMS = st.builds(
    ReceivedStream, NAMES, FLOATS | BITS, st.booleans(), st.none() | st.booleans(), st.floats(), FLOATS
)
RECEIVED = st.builds(ReceivedImage, st.lists(RECEIVED_STREAMS, max_size=5), st.binary(max_size=64))
RECONSTRUCTIONS = st.builds(
    Reconstruction,
    st.none() | IMAGES,
    st.dictionaries(st.text(min_size=1, max_size=20), st.lists(LINES, max_size=4), max_size=3),
    LINES,
    OPTIONS,
)
MESSAGES = {
    wire.Hello: st.builds(wire.Hello, LINES),
    wire.EncodeRequest: st.builds(wire.EncodeRequest, NAMES, IMAGES, OPTIONS, st.floats(0, 3600)),
    wire.DecodeRequest: st.builds(wire.DecodeRequest, NAMES, RECEIVED, OPTIONS, st.floats(0, 3600)),
    wire.StatusRequest: st.builds(wire.StatusRequest),
    wire.Welcome: st.builds(wire.Welcome, LINES, st.floats(0.05, 60), st.integers(1, 1 << 40)),
    wire.Heartbeat: st.builds(
        wire.Heartbeat, st.sampled_from(["expecting", "queued", "running"]), LINES, st.integers(0, 1000)
    ),
    wire.EncodedReply: st.builds(wire.EncodedReply, ENCODED),
    wire.DecodedReply: st.builds(wire.DecodedReply, RECONSTRUCTIONS),
    wire.StatusReply: st.builds(wire.StatusReply, OPTIONS),
    wire.Failure: st.builds(wire.Failure, st.sampled_from(wire.FAILURES), LINES),
}
ANY_MESSAGE = st.one_of(*MESSAGES.values())
REQUEST = wire.EncodeRequest("echo", np.zeros((2, 3, 3), np.uint8), {"seed": 1}, 5.0)


def same(a, b):
    """Equality that looks into arrays and takes NaN for equal to NaN."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def header(frames, **changes):
    """The frames with fields of the header changed."""
    tree = msgpack.unpackb(frames[1], ext_hook=msgpack.ExtType)
    return [frames[0], msgpack.packb({**tree, **changes}), *frames[2:]]


def without_arrays(frames):
    return header(frames, arrays=[])[:2]


def body(frames, **changes):
    """The frames with fields of the body changed."""
    tree = msgpack.unpackb(frames[1], ext_hook=msgpack.ExtType)
    return header(frames, body={**tree["body"], **changes})


def test_every_message_has_a_strategy():
    assert set(MESSAGES) == set(wire._BY_CLASS)


@given(st.integers(0, 2**64 - 1), ANY_MESSAGE)
@settings(max_examples=300, deadline=None)
def test_round_trip(number, message):
    frames = [bytes(frame) for frame in wire.pack(number, message)]
    again, copy = wire.unpack(frames)
    assert again == number
    assert same(message, copy)
    assert wire.message_id(frames) == number


def test_arrays_of_any_layout_arrive_as_they_look():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)[::2, ::-1]
    options = {"big-endian": np.arange(5, dtype=">f4"), "transposed": np.eye(3, 2).T, "scalar": np.array(3.5)}
    _, copy = wire.unpack(wire.pack(1, wire.EncodeRequest("echo", image, options)))
    np.testing.assert_array_equal(copy.image, image)
    for name, value in options.items():
        np.testing.assert_array_equal(copy.options[name], value)
        assert copy.options[name].shape == value.shape
    copy.image[0] = 0  # it owns its memory


def test_tuples_and_numpy_scalars_are_sent_as_lists_and_numbers():
    options = {"box": (1, 2), "x": np.float32(0.5), "n": np.int64(3), "b": np.bool_(True)}
    _, copy = wire.unpack(wire.pack(1, wire.EncodeRequest("echo", REQUEST.image, options)))
    assert copy.options == {"box": [1, 2], "x": 0.5, "n": 3, "b": True}


@pytest.mark.parametrize(
    "options",
    [
        {"x": object()},
        {"x": np.array([object()])},
        {"x": np.array(["text"])},
        {"x": np.zeros((1, 1, 1, 1, 1))},
        {"x": {1: 2}},
        {"x": 1 << 64},
        {"x": "\ud800"},
        {"x": [[[[[[[[1]]]]]]]]},
        {"x": [np.zeros(1)] * 64},
        {"x": "a" * wire.HEADER_LIMIT},
        {"": 1},
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_sender(options):
    with pytest.raises(WireError):
        wire.pack(1, wire.EncodeRequest("echo", REQUEST.image, options))


def test_a_value_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(WireError, match="deep"):
        wire.pack(1, wire.EncodeRequest("echo", REQUEST.image, {"x": endless}))


@pytest.mark.parametrize(
    "message",
    [
        wire.EncodeRequest("Echo!", REQUEST.image),
        wire.EncodeRequest("echo", np.zeros((2, 3), np.uint8)),
        wire.EncodeRequest("echo", np.zeros((2, 3, 3), np.float32)),
        wire.EncodeRequest("echo", np.zeros((0, 3, 3), np.uint8)),
        wire.EncodeRequest("echo", np.zeros((1, 16385, 3), np.uint8)),
        wire.EncodeRequest("echo", REQUEST.image, timeout_s=float("nan")),
        wire.EncodeRequest("echo", REQUEST.image, timeout_s=-1.0),
        wire.DecodeRequest("echo", ReceivedImage([ReceivedStream("x", np.array([0, 2], np.uint8))], b"")),
        wire.DecodeRequest("echo", ReceivedImage([ReceivedStream("x", np.zeros(3))], b"")),
        wire.DecodeRequest("echo", ReceivedImage([], b"x" * 65)),
        wire.Failure("unheard-of", "x"),
        wire.Heartbeat("sleeping"),
    ],
)
def test_a_message_out_of_bounds_is_refused_by_the_sender(message):
    with pytest.raises(WireError):
        wire.pack(1, message)


FRAMES = [bytes(frame) for frame in wire.pack(7, REQUEST)]
SENT = [bytes(f) for f in wire.pack(7, wire.EncodedReply(Encoded([Stream("a", np.zeros(3, np.float32), "analog")])))]


@pytest.mark.parametrize(
    ("frames", "error", "says"),
    [
        ([], WireError, "first frame"),
        ([b""], WireError, "first frame"),
        ([b"", *FRAMES], WireError, "first frame"),
        ([b"MSC\x01extra", *FRAMES[1:]], WireError, "first frame"),
        ([b"MSC\x02", *FRAMES[1:]], VersionError, "version 2: this side speaks version 1"),
        ([FRAMES[0]], WireError, "no header"),
        ([FRAMES[0], b"\xc1"], WireError, "not msgpack"),
        ([FRAMES[0], b""], WireError, "not msgpack"),
        ([FRAMES[0], FRAMES[1][:-1], *FRAMES[2:]], WireError, "not msgpack"),
        ([FRAMES[0], FRAMES[1] + b"\0", *FRAMES[2:]], WireError, "not msgpack"),
        ([FRAMES[0], b"\x91" * 2000 + b"\0"], WireError, "not msgpack"),
        ([FRAMES[0], b"\xdf\xff\xff\xff\xff"], WireError, "not msgpack"),
        ([FRAMES[0], b"\x01"], WireError, "must be a map"),
        ([FRAMES[0], b"\0" * (wire.HEADER_LIMIT + 1)], OversizedError, "header of"),
        ([*FRAMES[:2], *[b""] * 65], OversizedError, "65 arrays"),
        (FRAMES[:2], WireError, "0 array frames"),
        ([*FRAMES, b""], WireError, "2 array frames"),
        ([*FRAMES[:2], FRAMES[2][:-1]], WireError, "needs 18 bytes, but its frame has 17"),
        ([*FRAMES[:2], FRAMES[2] + b"\0"], WireError, "has 19"),
        (header(FRAMES, arrays=[["u1", [1 << 31] * 4]]), WireError, "its frame has 18"),
        (header(FRAMES, arrays=[["u1", [-2, -3, 3]]]), WireError, "integer"),
        (header(FRAMES, arrays=[["u1", [2.0, 3, 3]]]), WireError, "integer"),
        (header(FRAMES, arrays=[["u1", [True, 18]]]), WireError, "integer"),
        (header(FRAMES, arrays=[["O", [2, 3, 3]]]), WireError, "one of"),
        (header(FRAMES, arrays=[["u1", [1] * 5]]), WireError, "at most 4"),
        (header(FRAMES, arrays=[["u1"]]), WireError, "list of two"),
        (header(FRAMES, kind="exec"), WireError, "one of"),
        (header(FRAMES, kind=["encode"]), WireError, "one of"),
        (header(FRAMES, id=-1), WireError, "integer"),
        (header(FRAMES, id="7"), WireError, "integer"),
        (header(FRAMES, extra=1), WireError, "unknown field 'extra'"),
        (header(without_arrays(FRAMES), body=None), WireError, "must be a map"),
        (header(FRAMES, body=msgpack.ExtType(1, b"\0\0")), WireError, "must be a map"),
        (header(FRAMES, kind="hello", body={"client": "x"}), WireError, "no field refers"),
        (body(FRAMES, extra=1), WireError, "unknown field 'extra'"),
        (body(FRAMES, image=msgpack.ExtType(1, b"\0\1")), WireError, "unknown, or used twice"),
        (body(FRAMES, image=msgpack.ExtType(2, b"\0\0")), WireError, "not msgpack"),
        (body(FRAMES, image=msgpack.ExtType(1, b"\0")), WireError, "not msgpack"),
        (body(without_arrays(FRAMES), image=[0] * 18), WireError, "must be an array"),
        (body(FRAMES, system="../etc"), WireError, "alphabet"),
        (body(FRAMES, system="a" * 33), WireError, "32 characters"),
        (body(FRAMES, timeout_s=1e9), WireError, "0.0 to 3600"),
        (body(FRAMES, timeout_s=True), WireError, "must be a number"),
        (body(FRAMES, options={"a": msgpack.ExtType(1, b"\0\0")}), WireError, "used twice"),
        (body(FRAMES, options={"a": msgpack.Timestamp(0)}), WireError, "not sent"),
        (body(FRAMES, options={str(i): 1 for i in range(65)}), WireError, "at most 64"),
        (body(without_arrays(SENT), streams=[]), WireError, "must be 1 to 16"),
        (body(without_arrays(SENT), streams=[None] * 17), WireError, "at most 16"),
        (body(SENT, side_info=b"x" * 65), WireError, "at most 64 bytes"),
    ],
)
def test_broken_frames_are_refused_with_one_line(frames, error, says):
    with pytest.raises(error) as caught:
        wire.unpack(frames)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_booleans_must_be_0_or_1():
    flags = wire.EncodeRequest("echo", REQUEST.image, {"flags": np.array([True, False])})
    frames = [bytes(frame) for frame in wire.pack(1, flags)]
    frames[frames.index(b"\1\0")] = b"\2\0"
    with pytest.raises(WireError, match="neither 0 nor 1"):
        wire.unpack(frames)


def test_two_keys_of_which_one_is_bytes_are_refused():
    with pytest.raises(WireError):
        wire.unpack(header(FRAMES, **{"body": {b"system": "x"}}))


def test_the_size_limit_counts_every_frame():
    size = sum(map(len, FRAMES))
    wire.unpack(FRAMES, limit=size)
    with pytest.raises(OversizedError, match=f"message of {size} bytes"):
        wire.unpack(FRAMES, limit=size - 1)


def test_a_huge_shape_allocates_nothing():
    frames = header(FRAMES, arrays=[["f8", [1 << 31, 1 << 20]]])
    tracemalloc.start()
    with pytest.raises(WireError):
        wire.unpack(frames)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(ANY_MESSAGE, st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_frames_are_either_understood_or_refused(message, data):
    frames = [bytearray(frame) for frame in wire.pack(3, message)]
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(frames) - 1))
        change = data.draw(st.sampled_from(["byte", "byte", "byte", "cut", "grow", "drop", "double", "swap"]))
        frame = frames[where]
        if change == "byte" and frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del frame[data.draw(st.integers(0, len(frame))) :]
        elif change == "grow":
            frame += data.draw(st.binary(max_size=9))
        elif change == "drop" and len(frames) > 1:
            del frames[where]
        elif change == "double":
            frames.insert(where, bytearray(frame))
        elif change == "swap":
            other = data.draw(st.integers(0, len(frames) - 1))
            frames[where], frames[other] = frames[other], frames[where]
    harmless([bytes(frame) for frame in frames])


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_frames_are_refused(frames):
    harmless(frames)
    harmless([wire.MAGIC, *frames])


@given(st.sampled_from([row[0] for row in wire._KINDS]), VALUES)
@settings(deadline=None)
def test_a_valid_envelope_with_any_body_is_understood_or_refused(kind, value):
    try:
        tree = msgpack.packb({"id": 1, "kind": kind, "arrays": [], "body": value}, default=lambda _: None)
    except UnicodeEncodeError:
        return
    harmless([wire.MAGIC, tree])


def harmless(frames):
    """Frames lead to a message or to a WireError, and to nothing else."""
    refusal = ""
    try:
        _, message = wire.unpack(frames)
    except WireError as error:
        refusal = str(error)
    else:
        wire.pack(1, message)  # what was understood is within bounds
    assert "\n" not in refusal
    assert 0 <= wire.message_id(frames) < 1 << 64


@given(st.text())
def test_one_line_is_printable_and_short(text):
    line = wire.one_line(text, 50)
    assert len(line) <= 50
    assert line.isprintable()


def test_schema_text_of_a_terminal_escape():
    assert wire.one_line("a\x1b[31mred\nb") == "a [31mred b"
    assert schema.fields({}, "x") == {}


def test_the_largest_picture_fits_one_message() -> None:
    assert 3 * MAX_PIXELS + (1 << 20) < wire.MESSAGE_LIMIT
