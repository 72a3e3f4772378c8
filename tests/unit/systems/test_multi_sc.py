"""Multi-SC as a system: side information, blocks, and text over the noisy channel on the Kodak images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multisc.codecs.text import TEXT_MODES
from multisc.errors import BadInputError
from multisc.evaluation.metrics import bleu
from multisc.images import load_image
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.profile import load_profile
from multisc.phy.transport import channel_uses
from multisc.streams import ReceivedImage, ReceivedStream
from multisc.systems.base import parse_options
from multisc.systems.multi_sc import SLICE_CODECS, MultiSc, MultiScOptions, SideInfo, split
from multisc.training.channel import NoisyCaptions
from tests.support.phy import arrive


@given(
    width=st.integers(16, 8000),
    height=st.integers(16, 8000),
    slice_size=st.tuples(st.integers(1, 1024), st.integers(1, 1024)),
    codec=st.sampled_from(SLICE_CODECS),
    blocks=st.sampled_from([1, 4]),
    mode=st.sampled_from(TEXT_MODES),
    dimensions=st.integers(1, 255),
    expected_db=st.integers(-30, 60),
    data=st.data(),
)
def test_side_information_survives(
    width, height, slice_size, codec, blocks, mode, dimensions, expected_db, data
) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    sent = SideInfo(width, height, box, *slice_size, codec, blocks, mode, dimensions, expected_db)
    assert SideInfo.unpack(sent.pack()) == sent
    assert len(sent.pack()) == 21


@given(st.binary(max_size=23) | st.binary(min_size=21, max_size=21))
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
        {"slice_size": 1025},
        {"slice_codec": "jpeg"},
        {"slice_codec": "jscc", "slice_code": "nr:1/2"},
        {"cbr": "0"},
        {"cbr": "five"},
        {"candidates": 0},
        {"candidates": 65},
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


@pytest.fixture(scope="module")
def system() -> MultiSc:
    return MultiSc("multi-sc", 4, "embedded")


@pytest.mark.parametrize(
    "options",
    [
        {"cbr": "1/12", "slice_codec": "pixels"},
        {"cbr": "1/48"},
        {"cbr": "1/24", "text_code": "nr:1/3", "slice_code": "nr:2/3"},
        {"cbr": 0.04, "slice_codec": "bpg", "slice_modulation": "16qam"},
    ],
)
def test_budget_is_filled_and_kept(system: MultiSc, photograph, options) -> None:
    encoded = system.encode(photograph, options)
    allowed = MultiScOptions(**{"cbr": str(options["cbr"])}).cbr
    numerator, _, denominator = allowed.partition("/")
    budget = int(float(numerator) / float(denominator or 1) * photograph.size)
    used = sum(map(channel_uses, encoded.streams))
    assert 0.85 * budget < used <= budget
    shown = system.decode(arrive(encoded, 40.0), {"steps": 1})
    assert shown.image.shape == photograph.shape
    assert shown.preview["slice"].shape == encoded.preview["slice"].shape
    error = shown.preview["slice"].astype(float) - encoded.preview["slice"]
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 28


@pytest.mark.slow
def test_bpg_slice_holds_more_of_the_subject_at_equal_channel_uses(system: MultiSc, photograph) -> None:
    as_pixels, as_bpg = (system.encode(photograph, {"slice_codec": codec}) for codec in SLICE_CODECS[:2])
    uses = [channel_uses(encoded.streams[0]) for encoded in (as_pixels, as_bpg)]
    assert 0.8 * uses[0] < uses[1] <= uses[0]
    assert as_bpg.preview["slice"].size > 4 * as_pixels.preview["slice"].size


@pytest.mark.parametrize("cbr", ["1/2000", "1/1000"])
def test_budget_that_is_too_small(system: MultiSc, photograph, cbr) -> None:
    with pytest.raises(BadInputError, match=f"cbr {cbr}: .* channel uses"):
        system.encode(photograph, {"cbr": cbr, "slice_codec": "bpg"})


def test_slice_too_narrow_for_jscc_says_so_and_blames_no_budget_that_nobody_set(system: MultiSc, photograph) -> None:
    strip = np.ascontiguousarray(np.tile(photograph[:16], (1, 6, 1)))
    with pytest.raises(BadInputError, match=r"^a slice of \d+x\d+ pixels for deep JSCC: must be at least 16x16"):
        system.encode(strip, {"slice_codec": "jscc"})


@pytest.mark.parametrize(
    ("options", "codec"), [({}, "jscc"), ({"slice_code": "nr:1/2"}, "pixels"), ({"slice_codec": "pixels"}, "pixels")]
)
def test_codec_that_nobody_chose_is_jscc_unless_a_code_is_wanted(system: MultiSc, photograph, options, codec) -> None:
    encoded = system.encode(photograph, options)
    assert SideInfo.unpack(encoded.side_info).slice_codec == codec
    assert encoded.streams[0].kind == ("analog" if codec == "jscc" else "digital")


def test_slice_too_narrow_for_jscc_travels_as_pixels(system: MultiSc, photograph) -> None:
    strip = np.ascontiguousarray(np.tile(photograph[:12], (1, 6, 1)))
    encoded = system.encode(strip, {})
    assert SideInfo.unpack(encoded.side_info).slice_codec == "pixels"
    assert system.decode(arrive(encoded, 40.0), {"steps": 1}).image.shape == strip.shape


def test_noise_of_the_slice_is_what_the_generator_is_told(system: MultiSc, photograph) -> None:
    for codec in ("pixels", "jscc"):
        encoded = system.encode(photograph, {"slice_codec": codec})
        orders = [
            system._read(arrive(encoded, snr_db), MultiScOptions()).order([], 0) for snr_db in (-5.0, 0.0, 5.0, 10.0)
        ]
        found = [order.error for order in orders]
        assert found == sorted(found, reverse=True)
        real = np.sqrt(np.mean((orders[1].subject.astype(float) - encoded.preview["slice"]) ** 2)) / 255.0
        assert 0.4 * real < found[1] < 2.5 * real


def test_bpg_slice_without_a_code_is_refused(system: MultiSc, photograph) -> None:
    with pytest.raises(BadInputError, match="needs a code"):
        system.encode(photograph, {"slice_codec": "bpg", "slice_code": "none"})


@pytest.mark.parametrize("lost", [("slice",), ("slice", "text-tl", "text-br"), ("text-tl", "text-tr")])
def test_what_arrives_is_shown(system: MultiSc, photograph, lost) -> None:
    encoded = system.encode(photograph, {})
    shown = system.decode(arrive(encoded, 40.0, lost=lost), {"steps": 1})
    assert shown.image.shape == photograph.shape
    assert ("slice" in shown.preview) == ("slice" not in lost)
    for name, sent, received in zip(
        ("text-tl", "text-tr", "text-bl", "text-br"), encoded.preview["captions"], shown.text["received"], strict=True
    ):
        assert received == ("" if name in lost else sent)


def test_damaged_bpg_slice_is_left_out_and_the_texts_still_make_a_picture(system: MultiSc, photograph) -> None:
    encoded = system.encode(photograph, {"slice_codec": "bpg"})
    received = arrive(encoded, -3.0)
    assert received.streams[0].crc_ok is False
    shown = system.decode(received, {"steps": 1})
    assert shown.image.shape == photograph.shape
    assert "slice" not in shown.preview


def test_draft_has_what_is_there_before_the_picture(system: MultiSc, photograph) -> None:
    encoded = system.encode(photograph, {})
    draft = system.decode(arrive(encoded, 40.0, lost=("text-tr",)), {"draft": True})
    assert draft.outage
    sent = encoded.preview["captions"]
    assert draft.text == {"received": [sent[0], "", *sent[2:]]}
    assert draft.preview["slice"].shape == encoded.preview["slice"].shape
    assert draft.preview["box"] == encoded.preview["box"]
    assert draft.preview["size"] == [photograph.shape[1], photograph.shape[0]]


def test_nothing_arrives(system: MultiSc, photograph) -> None:
    encoded = system.encode(photograph, {})
    received = [ReceivedStream(s.name, np.zeros(0, np.float32), delivered=False) for s in encoded.streams]
    assert system.decode(ReceivedImage(received, encoded.side_info), {}).outage


def test_best_of_several_candidates_fits_the_captions_best(system: MultiSc, photograph) -> None:
    """Generation and selection: the picture that is shown is the one of the N that the captions fit best."""
    wide = np.pad(photograph, ((0, 0), (225, 225), (0, 0)), mode="edge")  # the slice leaves room for generated parts
    received = arrive(system.encode(wide, {}), 40.0)
    single = [system.decode(received, {"steps": 2, "seed": seed}).image for seed in (3, 4, 5)]
    shown = system.decode(received, {"steps": 2, "seed": 3, "candidates": 3})
    fit = [system._captioner.log_likelihood(split(picture, 4), shown.text["corrected"]).sum() for picture in single]
    assert len(set(fit)) == 3
    closest = single[int(np.argmax(fit))]
    assert np.abs(shown.image.astype(int) - closest).max() <= 3  # candidates are made in one batch, which rounds anew
    assert min(np.abs(closest.astype(int) - other).max() for other in single if other is not closest) > 20


@pytest.mark.slow
def test_several_pictures_at_once_are_those_of_one_at_a_time(system: MultiSc, photograph) -> None:
    pictures = [photograph, np.ascontiguousarray(photograph[:, ::-1]), photograph[:200]]
    modes = ["embedding", "byte", "token"]
    single = [system.encode(picture, {}) for picture in pictures]
    for one, together in zip(single, system.encode_many(pictures, {}), strict=True):
        assert together.side_info == one.side_info
        assert together.preview["captions"] == one.preview["captions"]
        assert all(np.array_equal(a.data, b.data) for a, b in zip(together.streams, one.streams, strict=True))
    received = [
        arrive(system.encode(picture, {"text_mode": mode}), -1.0, lost=("slice",) if mode == "byte" else ())
        for picture, mode in zip(pictures, modes, strict=True)
    ]
    lost = [ReceivedStream(s.name, np.zeros(0, np.float32), delivered=False) for s in single[0].streams]
    received.insert(1, ReceivedImage(lost, single[0].side_info))
    alone = [system.decode(one, {"steps": 2}) for one in received]
    for one, together in zip(alone, system.decode_many(received, {"steps": 2}), strict=True):
        assert (one.text, one.outage, one.outage_reason) == (together.text, together.outage, together.outage_reason)
        assert ("slice" in one.preview) == ("slice" in together.preview)
        if not one.outage:
            assert np.abs(one.image.astype(int) - together.image).max() <= 3
    assert [one.outage for one in alone] == [False, True, False, False]


@pytest.mark.parametrize("mode", TEXT_MODES)
def test_captions_arrive_in_every_mode_and_the_header_tells_which(system: MultiSc, photograph, mode: str) -> None:
    encoded = system.encode(photograph, {"text_mode": mode, "text_code": "nr:1/2"})
    shown = system.decode(arrive(encoded, 40.0), {"steps": 1})
    assert shown.text["received"] == encoded.preview["captions"]
    bits_per_caption = [stream.bits().size for stream in encoded.streams[1:]]
    lengths = [len(c) if mode == "byte" else len(system._captioner.encode(c)) for c in encoded.preview["captions"]]
    assert bits_per_caption == [{"embedding": 32, "token": 12, "byte": 8}[mode] * n for n in lengths]


def test_numbers_leave_no_choice_of_coefficients(system: MultiSc, photograph) -> None:
    with pytest.raises(BadInputError, match="text mode token: sends 12 coefficients of 1 bit, not 28"):
        system.encode(photograph, {"text_mode": "token", "text_dimensions": 28})
    with pytest.raises(BadInputError, match="one of embedding, token, byte"):
        system.encode(photograph, {"text_mode": "words"})


@pytest.mark.slow
def test_captions_of_the_kodak_images_over_the_channel(kodak) -> None:
    profile = load_profile("embedded")
    captioner = Captioner.load(profile.llava, "cpu")
    corrector = Corrector.load(profile.bart, "cpu")
    channel = NoisyCaptions(captioner)
    blocks = [block for path in sorted(kodak.glob("*.png")) for block in split(load_image(path), 4)]
    assert len(blocks) == 96
    sent = [captioner.decode(ids) for ids in captioner.caption(blocks)]

    def received(snr_db: float) -> list[str]:
        rng = np.random.default_rng(0)
        return [channel.receive(text, snr_db, rng) for text in sent]

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
