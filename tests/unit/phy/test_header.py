"""The header's bytes and coding: round trips, limits, and hostile input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.phy.config import ORTHOGONAL_MODES, PhyConfig
from multisc.phy.header import (
    CODES,
    VERSION,
    BurstHeader,
    HeaderCodec,
    HeaderError,
    StreamEntry,
    pack_description,
    parse_description,
)
from multisc.phy.transport import StreamDescriptor
from multisc.streams import DIGITAL_MODULATIONS

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=15)


@st.composite
def descriptors(draw: st.DrawFn, name: str) -> StreamDescriptor:
    length, symbols = draw(st.integers(0, 1 << 24)), draw(st.integers(0, 1 << 24))
    if draw(st.booleans()):
        gain = draw(st.floats(0, 1e6, width=32))
        return StreamDescriptor(name, "analog", "none", length, symbols, gain)
    code = draw(st.sampled_from([*CODES, "pyldpc:648:3:6"]))
    limit = draw(st.floats(0.001953125, 1e6, width=32))
    quantiser = Quantiser(draw(st.integers(1, 8)), limit) if draw(st.booleans()) else None
    return StreamDescriptor(name, draw(st.sampled_from(DIGITAL_MODULATIONS)), code, length, symbols, 1.0, quantiser)


@st.composite
def headers(draw: st.DrawFn) -> BurstHeader:
    names = draw(st.lists(NAMES, max_size=16, unique=True))
    indices = draw(st.permutations(range(16)))
    powers = st.integers(-4000, 2000).map(lambda hundredths: hundredths / 100)
    entries = tuple(
        StreamEntry(i, draw(descriptors(name)), draw(powers)) for i, name in zip(indices, names, strict=False)
    )
    total = draw(st.integers(1, 65535))
    return BurstHeader(
        image_id=draw(st.integers(0, 2**32 - 1)),
        sequence=draw(st.integers(0, total - 1)),
        total=total,
        image_streams=16,
        orthogonal=draw(st.sampled_from(ORTHOGONAL_MODES)),
        system=draw(st.one_of(st.just(""), NAMES)),
        side_info=draw(st.binary(max_size=64)),
        streams=entries,
        payload_symbols=draw(st.integers(0, 512)),
    )


def example(payload: int = 100) -> BurstHeader:
    entries = [
        StreamEntry(0, StreamDescriptor("slice", "16qam", "nr:1/2", 8000, 4000, 1.0, Quantiser(4, 2.5)), 1.5),
        StreamEntry(1, StreamDescriptor("text", "qpsk", "pyldpc:648:3:6", 320, 324)),
        StreamEntry(2, StreamDescriptor("features", "analog", "none", 513, 257, 0.75)),
    ]
    return BurstHeader(0xDEADBEEF, 3, 9, 5, "cdm", "multi-sc", bytes(range(20)), tuple(entries), payload)


@settings(max_examples=80, deadline=None)
@given(headers())
def test_bytes_round_trip(header: BurstHeader) -> None:
    assert parse_description(pack_description(header), header.payload_symbols) == header


@settings(max_examples=15, deadline=None)
@given(headers())
def test_coded_round_trip(header: BurstHeader) -> None:
    codec = HeaderCodec(PhyConfig())
    symbols = codec.encode(header)
    noise = np.full(symbols.shape, 0.1, np.float32)
    first = codec.control_symbols
    control, head = codec.decode_control(symbols[:first], noise[:first])
    assert codec.symbols(control.description_bytes) == len(symbols)
    decoded, sent = codec.decode_description(control, head, symbols[first:], noise[first:])
    assert decoded == header
    np.testing.assert_array_equal(np.concatenate([codec.control_sent(head), sent]), symbols)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 2**32},
        {"image_id": -1},
        {"total": 0, "sequence": 0},
        {"total": 65536},
        {"sequence": 9},
        {"image_streams": 17},
        {"side_info": bytes(65)},
        {"system": "a" * 16},
        {"system": "Upper"},
    ],
)
def test_fields_outside_their_range_are_refused(change: dict) -> None:
    with pytest.raises(BadInputError):
        pack_description(BurstHeader(**{**example().__dict__, **change}))


def test_control_and_description_of_different_headers_do_not_mix() -> None:
    codec = HeaderCodec(PhyConfig())
    one, two = codec.encode(example(100)), codec.encode(example(101))
    noise = np.full(one.shape, 0.1, np.float32)
    first = codec.control_symbols
    control, head = codec.decode_control(one[:first], noise[:first])
    with pytest.raises(HeaderError, match="CRC"):
        codec.decode_description(control, head, two[first:], noise[first:])


def test_few_carriers_bound_the_header() -> None:
    """22 data carriers could not hold every description in the symbols a burst may have: refused at both ends."""
    narrow = HeaderCodec(PhyConfig(fft_size=128, cyclic_prefix=16, occupied=24))
    entries = [StreamEntry(i, StreamDescriptor(f"a-long-name-{i}", "qpsk", "none", 1, 1)) for i in range(16)]
    long = BurstHeader(1, 0, 1, 16, "fdm", "", b"", tuple(entries), 1)
    with pytest.raises(BadInputError, match="at most 512"):
        narrow.encode(long)
    assert narrow.symbols(len(pack_description(example())) + 3) == len(narrow.encode(example()))
    for size, refused in ((200, False), (1023, True)):
        sent = narrow.control_sent((VERSION << 28 | size << 18 | 1 << 8).to_bytes(4, "big"))
        if refused:
            with pytest.raises(HeaderError, match="OFDM symbols"):
                narrow.decode_control(sent, np.full(sent.shape, 0.1, np.float32))
        else:
            assert narrow.decode_control(sent, np.full(sent.shape, 0.1, np.float32))[0].description_bytes == size


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip bits, overwrite, cut, stretch or duplicate."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        kind, at = rng.integers(5), int(rng.integers(max(1, len(out))))
        if kind == 0 and out:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and out:
            out[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            out += out[at:]
            del out[1023:]
    return bytes(out)


def fuzz(count: int) -> tuple[int, int]:
    """Parse mutated headers; whatever is accepted must be within every limit.

    Returns:
        How many were accepted and how many refused.
    """
    rng = np.random.default_rng(99)
    base = pack_description(example())
    accepted = refused = 0
    for _ in range(count):
        data = mutate(rng, base)
        try:
            header = parse_description(data, int(rng.integers(0, 1024)))
        except HeaderError:
            refused += 1
            continue
        accepted += 1
        assert header.payload_symbols <= 512
        assert header.sequence < header.total <= 65535
        assert len(header.streams) <= header.image_streams <= 16
        assert len(header.side_info) <= 64
        for entry in header.streams:
            d = entry.descriptor
            assert d.length <= 1 << 24
            assert d.symbols <= 1 << 24
            assert np.isfinite(d.gain)
            assert -40 <= entry.power_db <= 20
            assert len(d.code) <= 24
        assert all(0 <= n <= 1 << 24 for n in header.counts())
    return accepted, refused


def test_mutated_headers_are_refused_or_within_limits() -> None:
    accepted, refused = fuzz(5_000)
    assert accepted > 100
    assert refused > 1000


@pytest.mark.slow
def test_a_hundred_thousand_mutated_headers() -> None:
    assert sum(fuzz(100_000)) == 100_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1020), st.integers(0, 1023))
def test_any_bytes_parse_or_raise_header_error(data: bytes, payload: int) -> None:
    try:
        header = parse_description(data, payload)
    except HeaderError:
        return
    assert parse_description(pack_description(header), payload) == header
