"""The codecs of the slice: channel uses kept, pictures of the right size, damage found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from multisc.errors import BadInputError
from multisc.models.jscc import Jscc, JsccConfig
from multisc.models.jscc_network import JsccNetwork, JsccWidths
from multisc.phy.transport import channel_uses, demodulate, modulate
from multisc.streams import ReceivedStream
from multisc.systems.slices import JSCC_STRIDE, MAX_SIDE, BpgSlices, CodedSlice, JsccSlices, PixelSlices

BOX = (100, 40, 240, 200)
PHOTOGRAPH = np.asarray(data.chelsea())


@pytest.fixture(scope="module")
def jscc() -> JsccSlices:
    torch.manual_seed(1)
    return JsccSlices(Jscc(JsccNetwork(JsccWidths(8, 8, 8)), JsccConfig()), 10)


@pytest.fixture(params=["pixels", "bpg", "jscc"])
def codec(request: pytest.FixtureRequest):
    if request.param == "pixels":
        return PixelSlices(6, "qpsk", "none")
    return BpgSlices("qpsk", "nr:1/2") if request.param == "bpg" else request.getfixturevalue("jscc")


def arrive(coded: CodedSlice) -> ReceivedStream:
    sent = modulate(coded.stream)
    return demodulate(sent.descriptor, sent.symbols, np.full(sent.symbols.size, 1e-4, np.float32))


@pytest.mark.parametrize("uses", [3000, 12_000, 24_000])
def test_slice_keeps_to_its_channel_uses_and_arrives_at_its_size(codec, uses: int) -> None:
    coded = codec.encode(PHOTOGRAPH, BOX, MAX_SIDE, uses)
    assert 0.4 * uses < channel_uses(coded.stream) <= uses
    height, width = coded.piece.shape[:2]
    assert (height, width) <= (BOX[3], BOX[2])
    assert codec.decode(arrive(coded), (width, height)).piece.shape == coded.piece.shape


def test_side_is_a_limit(codec) -> None:
    coded = codec.encode(PHOTOGRAPH, BOX, 40, 100_000)
    assert coded.piece.shape == (33, 40, 3)


def test_too_few_channel_uses(codec) -> None:
    with pytest.raises(BadInputError, match=r"too few for any|must be at least 16x16"):
        codec.encode(PHOTOGRAPH, BOX, MAX_SIDE, 20)


@settings(max_examples=25, deadline=None)
@given(uses=st.integers(400, 30_000), bits=st.integers(1, 8), code=st.sampled_from(["none", "nr:1/3", "nr:3/4"]))
def test_pixels_are_as_many_as_fit(uses: int, bits: int, code: str) -> None:
    codec = PixelSlices(bits, "16qam", code)
    try:
        coded = codec.encode(PHOTOGRAPH, BOX, MAX_SIDE, uses)
    except BadInputError:
        assert channel_uses(codec.stream(PHOTOGRAPH[:8, :8])) > uses / 2
        return
    assert channel_uses(coded.stream) <= uses
    longest = max(coded.piece.shape)
    if longest < max(BOX[2:]):
        larger = codec.stream(np.zeros((round((longest + 2) * 200 / 240), longest + 2, 3), np.uint8))
        assert channel_uses(larger) > uses


def test_jscc_gives_up_bandwidth_before_size(jscc: JsccSlices) -> None:
    pixels = BOX[2] * BOX[3]
    for uses, ratio in ((pixels, 1 / 6), (pixels // 2 - 1, 1 / 12), (pixels // 4 - 1, 1 / 24)):
        coded = jscc.encode(PHOTOGRAPH, BOX, MAX_SIDE, uses)
        assert coded.piece.shape == (200, 240, 3)
        assert channel_uses(coded.stream) == pytest.approx(ratio * 3 * pixels, rel=0.02)
    assert jscc.encode(PHOTOGRAPH, BOX, MAX_SIDE, pixels // 16).piece.size < 3 * pixels


@pytest.mark.parametrize("count", [0, 77, 10**6])
def test_jscc_slice_of_another_length_holds_no_picture(jscc: JsccSlices, count: int) -> None:
    received = ReceivedStream("slice", np.zeros(count, np.float32))
    assert jscc.decode(received, (64, 48)) is None
    assert jscc.decode(received, (JSCC_STRIDE - 1, 48)) is None


def test_thin_slice_is_no_picture_for_jscc(jscc: JsccSlices) -> None:
    with pytest.raises(BadInputError, match="must be at least 16x16"):
        jscc.encode(PHOTOGRAPH, (0, 0, 200, 12), MAX_SIDE, 10_000)


def test_bpg_slice_of_another_size_or_with_a_wrong_crc_is_refused() -> None:
    codec = BpgSlices("qpsk", "nr:1/2")
    coded = codec.encode(PHOTOGRAPH, BOX, MAX_SIDE, 12_000)
    height, width = coded.piece.shape[:2]
    received = arrive(coded)
    assert codec.decode(received, (width + 1, height)) is None
    assert codec.decode(ReceivedStream("slice", received.data, crc_ok=False), (width, height)) is None
    noise = np.random.default_rng(1).integers(0, 2, received.data.size).astype(np.uint8)
    assert codec.decode(ReceivedStream("slice", noise, crc_ok=True), (width, height)) is None
