"""PDUs: what goes in comes out, and vectors are GNU Radio's own."""

from __future__ import annotations

import numpy as np
import pmt
import pytest
from gnuradio.multisc import pdu
from hypothesis import given
from hypothesis import strategies as st

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.streams import ReceivedStream, Stream


@given(kind=st.sampled_from([np.uint8, np.float32, np.complex64]), size=st.integers(0, 300), seed=st.integers(0, 99))
def test_vectors_are_those_of_gnu_radio(kind, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = (255 * rng.random(size) + (1j * rng.normal(size=size) if kind is np.complex64 else 0)).astype(kind)
    vector = pdu.to_vector(array)
    assert pmt.equal(vector, pmt.to_pmt(array))
    restored = pdu.to_array(vector)
    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array)
    np.testing.assert_array_equal(pdu.to_array(pmt.to_pmt(array)), array)


def test_values_that_are_not_numbers_survive() -> None:
    array = np.array([0.0, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(pdu.to_array(pdu.to_vector(array)), array)


def test_other_types_are_refused() -> None:
    with pytest.raises(BadInputError, match="uint8, float32 or complex64"):
        pdu.to_vector(np.zeros(3))
    with pytest.raises(BadInputError, match="u8, f32 or c32"):
        pdu.to_array(pmt.init_f64vector(2, [1.0, 2.0]))
    for message in (pmt.PMT_NIL, pmt.intern("x"), pmt.cons(pmt.PMT_NIL, pmt.PMT_NIL)):
        with pytest.raises(BadInputError, match="PDU"):
            pdu.unpack(message)


def test_a_stream_survives() -> None:
    envelope = pdu.Envelope(2**32 - 1, 3, 5, "multi-sc", b"\x00side\xff")
    stream = Stream("slice", np.linspace(-1, 1, 7, dtype=np.float32), "16qam", "nr:1/2", Quantiser(6, 1.5))
    meta, data = pdu.unpack(pdu.pack_stream(stream, envelope))
    restored = pdu.unpack_stream(meta, data)
    np.testing.assert_array_equal(restored.data, stream.data)
    assert (restored.name, restored.modulation, restored.code) == ("slice", "16qam", "nr:1/2")
    assert restored.quantiser == stream.quantiser
    assert pdu.envelope_of(meta) == envelope


@pytest.mark.parametrize("crc_ok", [None, True, False])
def test_a_received_stream_survives(crc_ok) -> None:
    envelope = pdu.Envelope(0, 0, 1, "x", b"")
    received = ReceivedStream("a", np.ones(4, np.uint8), True, crc_ok, 3.5, np.full(4, -2.5, np.float32))
    meta, data = pdu.unpack(pdu.pack_received(received, envelope, Quantiser(2, 1.0), "none"))
    restored = pdu.unpack_received(meta, data)
    assert (restored.name, restored.delivered, restored.crc_ok, restored.snr_db) == ("a", True, crc_ok, 3.5)
    np.testing.assert_array_equal(restored.llrs, received.llrs)
    assert pdu.quantiser_of(meta) == Quantiser(2, 1.0)


def test_the_end_is_recognised() -> None:
    assert pdu.is_end(pdu.END)
    envelope = pdu.Envelope(0, 0, 1, "x", b"")
    assert not pdu.is_end(pdu.pack_stream(Stream("a", np.ones(4, np.uint8)), envelope))
