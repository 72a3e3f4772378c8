"""Streams to symbols and back, and descriptions that lie."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.phy.transport import StreamDescriptor, channel_uses, demodulate, modulate
from multisc.streams import DIGITAL_MODULATIONS, Stream

QUIET = np.float32(1e-3)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 3000),
    name=st.sampled_from(DIGITAL_MODULATIONS),
    code=st.sampled_from(["none", "nr:1/3", "nr:1/2", "nr:5/6"]),
    seed=st.integers(0, 99),
)
def test_bits_round_trip(count: int, name: str, code: str, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, count).astype(np.uint8)
    sent = modulate(Stream("a", bits, name, code))
    assert sent.descriptor.symbols == sent.symbols.size == channel_uses(Stream("a", bits, name, code))
    got = demodulate(sent.descriptor, sent.symbols, np.full(sent.symbols.size, QUIET))
    np.testing.assert_array_equal(got.data, bits)
    assert got.delivered
    if code != "none" and count:
        assert got.crc_ok is True


@pytest.mark.parametrize("code", ["none", "nr:1/2"])
def test_coefficients_round_trip_to_within_a_step(code: str) -> None:
    values = np.random.default_rng(2).uniform(-2, 2, 501).astype(np.float32)
    stream = Stream("a", values, "16qam", code, Quantiser(6, 2.0))
    sent = modulate(stream)
    assert sent.symbols.size == channel_uses(stream)
    got = demodulate(sent.descriptor, sent.symbols, np.full(sent.symbols.size, QUIET))
    assert np.abs(got.data - values).max() <= 2.0 / 64 + 1e-6


@pytest.mark.parametrize("count", [0, 1, 2, 77])
def test_features_round_trip(count: int) -> None:
    values = np.random.default_rng(3).standard_normal(count).astype(np.float32)
    sent = modulate(Stream("a", values, "analog"))
    assert sent.symbols.size == channel_uses(Stream("a", values, "analog"))
    got = demodulate(sent.descriptor, sent.symbols, np.full(sent.symbols.size, QUIET))
    np.testing.assert_allclose(got.data, values, rtol=1e-5, atol=1e-6)


def test_erasures_give_no_information_and_a_code_fills_them() -> None:
    bits = np.random.default_rng(4).integers(0, 2, 4000).astype(np.uint8)
    plain, coded = modulate(Stream("a", bits, "qpsk")), modulate(Stream("a", bits, "qpsk", "nr:1/2"))
    for sent in (plain, coded):
        variance = np.full(sent.symbols.size, QUIET)
        variance[::4] = np.inf
        heard = sent.symbols.copy()
        heard[::4] = 0
        got = demodulate(sent.descriptor, heard, variance)
        assert (got.llrs.reshape(-1, 2)[::4] == 0).all()
        assert got.delivered
        if sent is coded:
            assert got.crc_ok
            np.testing.assert_array_equal(got.data, bits)


def test_a_stream_of_which_nothing_arrived_says_so() -> None:
    sent = modulate(Stream("a", np.ones(100, np.uint8), "qpsk", "nr:1/2"))
    got = demodulate(sent.descriptor, np.zeros_like(sent.symbols), np.full(sent.symbols.size, np.float32(np.inf)))
    assert not got.delivered
    assert got.crc_ok is False or not got.data.any()


def test_descriptions_that_lie_are_refused() -> None:
    sent = modulate(Stream("a", np.ones(1000, np.uint8), "qpsk", "nr:1/2"))
    variance = np.full(sent.symbols.size, QUIET)
    for change in (
        {"length": 1 << 24},
        {"length": 998},
        {"symbols": 5},
        {"code": "none"},
        {"code": "nr:9/9"},
        {"code": "pyldpc:999999999:3:6"},
        {"modulation": "256qam"},
        {"quantiser": Quantiser(7, 1.0)},
    ):
        with pytest.raises(BadInputError):
            demodulate(replace(sent.descriptor, **change), sent.symbols, variance)
    with pytest.raises(BadInputError):
        demodulate(StreamDescriptor("a", "analog", "none", 7, sent.symbols.size), sent.symbols, variance)


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadInputError, match="finite"):
        modulate(Stream("a", np.array([1.0, np.nan], np.float32), "analog"))
