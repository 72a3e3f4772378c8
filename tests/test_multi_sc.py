"""Multi-SC as a system: side information, blocks, and text over the noisy channel on the Kodak images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multisc.codecs.text import TextCodec
from multisc.errors import BadInputError
from multisc.evaluation.metrics import bleu
from multisc.images import load_image
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.profile import load_profile
from multisc.phy.transport import demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import Stream
from multisc.systems.base import parse_options
from multisc.systems.multi_sc import MultiScOptions, SideInfo, split


@given(
    width=st.integers(16, 8000),
    height=st.integers(16, 8000),
    slice_size=st.tuples(st.integers(1, 255), st.integers(1, 255)),
    blocks=st.sampled_from([1, 4]),
    dimensions=st.integers(1, 255),
    data=st.data(),
)
def test_side_information_survives(width, height, slice_size, blocks, dimensions, data) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    sent = SideInfo(width, height, box, *slice_size, blocks, dimensions)
    assert SideInfo.unpack(sent.pack()) == sent
    assert len(sent.pack()) == 16


@given(st.binary(max_size=20))
def test_side_information_that_is_none_is_refused_or_makes_sense(data: bytes) -> None:
    try:
        found = SideInfo.unpack(data)
    except BadInputError:
        return
    x, y, width, height = found.box
    assert 0 < x + width <= found.width
    assert 0 < y + height <= found.height
    assert found.width * found.height <= 64_000_000
    assert found.pack() == data


def test_blocks_are_the_quarters_of_the_picture(photograph) -> None:
    top_left, top_right, bottom_left, bottom_right = split(photograph, 4)
    top, bottom = np.hstack([top_left, top_right]), np.hstack([bottom_left, bottom_right])
    np.testing.assert_array_equal(np.vstack([top, bottom]), photograph)
    assert top_left.shape == (150, 225, 3)
    np.testing.assert_array_equal(split(photograph, 1)[0], photograph)


@pytest.mark.parametrize(
    "options",
    [
        {"slice_size": 7},
        {"slice_bits": 9},
        {"steps": 0},
        {"ip_scale": -0.1},
        {"text_modulation": "analog"},
        {"slice_size": "64"},
        {"slice_size": 64.0},
        {"seed": True},
        {"sliec_size": 64},
    ],
)
def test_options_outside_their_range_are_refused(options) -> None:
    with pytest.raises(BadInputError):
        parse_options(MultiScOptions, options, "multi-sc")


@pytest.mark.slow
def test_captions_of_the_kodak_images_over_the_channel(kodak) -> None:
    profile = load_profile("embedded")
    captioner = Captioner.load(profile.llava, "cpu")
    corrector = Corrector.load(profile.bart, "cpu")
    codec = TextCodec(captioner.table)
    blocks = [block for path in sorted(kodak.glob("*.png")) for block in split(load_image(path), 4)]
    assert len(blocks) == 96
    tokens = captioner.caption(blocks)
    sent = [captioner.decode(ids) for ids in tokens]

    def received(snr_db: float) -> list[str]:
        rng = np.random.default_rng(0)
        texts = []
        for ids in tokens:
            stream = modulate(Stream("text", codec.coefficients(ids), quantiser=codec.quantiser))
            n0 = noise_variance(snr_db)
            shape = stream.symbols.shape
            noise = np.sqrt(n0 / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
            noisy = (stream.symbols + noise).astype(np.complex64)
            arrived = demodulate(stream.descriptor, noisy, np.full(shape, n0, np.float32))
            texts.append(captioner.decode(codec.tokens(arrived.data)))
        return texts

    assert received(20.0) == sent
    noisy = received(0.0)
    corrected = corrector.correct(noisy)
    before = np.mean([bleu([a], [b]) for a, b in zip(sent, noisy, strict=True)])
    after = np.mean([bleu([a], [b]) for a, b in zip(sent, corrected, strict=True)])
    assert 0.2 < before < 0.95
    assert after > before
    untouched = corrector.correct(sent)
    assert np.mean([a != b for a, b in zip(sent, untouched, strict=True)]) <= 0.02
    print(f"mean BLEU over {len(sent)} captions at 0 dB: {before:.3f} received, {after:.3f} corrected")
