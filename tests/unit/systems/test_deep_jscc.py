"""Deep joint source-channel coding: quality over the channel, sizes and budgets, checkpoints and what they refuse."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from multisc.errors import BadInputError, ModelError
from multisc.images import load_image
from multisc.models.jscc import Jscc
from multisc.models.profile import load_profile
from multisc.phy.transport import demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import Encoded, ReceivedImage, ReceivedStream
from multisc.systems.budget import channel_uses
from multisc.systems.deep_jscc import DeepJscc, SideInfo, deep_jscc
from multisc.systems.registry import get_entry

CBRS = ("1/24", "1/12", "1/6")


@pytest.fixture(scope="module")
def system() -> DeepJscc:
    torch.set_num_threads(1)
    return deep_jscc("embedded")


@pytest.fixture(scope="module")
def jscc() -> Jscc:
    torch.set_num_threads(1)
    return Jscc.load(load_profile("embedded").deep_jscc)


@pytest.fixture(scope="module")
def picture(photograph):
    """Part of the cat, uint8 (160, 224, 3)."""
    return np.ascontiguousarray(photograph[60:220, 100:324])


def over_the_air(encoded: Encoded, snr_db: float, gains=None, seed: int = 0) -> ReceivedImage:
    """Modulate, fade by ``gains`` dealt to the symbols in turn, add noise, equalise, demodulate."""
    rng = np.random.default_rng(seed)
    sent = modulate(encoded.streams[0])
    count = sent.symbols.size
    variance = np.full(count, noise_variance(snr_db))
    if gains is not None:
        variance = variance / np.resize(gains, count)
    noise = rng.standard_normal(count) + 1j * rng.standard_normal(count)
    received = (sent.symbols + noise * np.sqrt(variance / 2)).astype(np.complex64)
    stream = demodulate(sent.descriptor, received, variance.astype(np.float32))
    return ReceivedImage([stream], encoded.side_info)


def psnr(shown, image) -> float:
    return -10.0 * math.log10(np.mean((shown / 255.0 - image / 255.0) ** 2))


def link_psnr(system, image, cbr, snr_db, expected_db=None, gains=None) -> float:
    encoded = system.encode(image, {"cbr": cbr, "snr_db": snr_db if expected_db is None else expected_db})
    return psnr(system.decode(over_the_air(encoded, snr_db, gains), {}).image, image)


@pytest.mark.slow
def test_kodak_at_10_db(system, kodak) -> None:
    """The numbers to reach: 27 dB at CBR 1/12, 29.5 dB at 1/6, mean of 24 pictures, Es/N0 10 dB."""
    images = [load_image(path) for path in sorted(kodak.glob("*.png"))]
    assert len(images) == 24
    assert np.mean([link_psnr(system, image, "1/12", 10.0) for image in images]) >= 27.0
    assert np.mean([link_psnr(system, image, "1/6", 10.0) for image in images]) >= 29.5


@pytest.mark.parametrize("cbr", CBRS)
def test_quality_rises_with_the_snr_and_has_no_cliff(system, picture, cbr) -> None:
    """One checkpoint from -10 to 22.5 dB; a transmitter that knows the SNR. An ideal code gains 1 dB for 1 dB."""
    found = [link_psnr(system, picture, cbr, snr_db) for snr_db in np.arange(-10.0, 25.0, 2.5).tolist()]
    steps = np.diff(found)
    assert (steps > 0).all()
    assert steps.max() < 2.5
    assert found[2] > 17.0  # at -5 dB


def test_a_transmitter_that_expects_another_snr_still_degrades_gracefully(system, picture) -> None:
    found = [link_psnr(system, picture, "1/12", snr_db, expected_db=10.0) for snr_db in (-5.0, 0.0, 5.0, 10.0, 15.0)]
    assert (np.diff(found) > 0).all()
    assert np.diff(found).max() < 5.0
    assert link_psnr(system, picture, "1/12", -3.0) > link_psnr(system, picture, "1/12", -3.0, expected_db=20.0)


def test_more_channel_uses_give_a_better_picture(system, picture) -> None:
    for snr_db in (0.0, 10.0, 20.0):
        found = [link_psnr(system, picture, cbr, snr_db) for cbr in ("1/48", *CBRS)]
        assert (np.diff(found) > 0.3).all()


def test_rayleigh_fading_costs_decibels_not_the_picture(system, picture) -> None:
    gains = np.random.default_rng(3).exponential(1.0, 44)
    faded = link_psnr(system, picture, "1/6", 10.0, gains=gains)
    assert link_psnr(system, picture, "1/6", -5.0) < faded < link_psnr(system, picture, "1/6", 10.0)


def test_what_is_lost_blurs_the_picture(system, picture) -> None:
    """A third of the symbols never arrives, as when one of three bursts is lost."""
    encoded = system.encode(picture, {"cbr": "1/6"})
    arrived = np.resize([1.0, 1.0, 0.0], modulate(encoded.streams[0]).symbols.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        received = over_the_air(encoded, 10.0, gains=arrived)
    shown = system.decode(received, {}).image
    flat = np.broadcast_to(picture.mean((0, 1)), picture.shape)
    assert psnr(flat, picture) + 3.0 < psnr(shown, picture) < link_psnr(system, picture, "1/6", 10.0)


@pytest.mark.parametrize("cbr", CBRS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (33, 47), (64, 64), (97, 130)])
def test_a_picture_of_any_size_keeps_its_size_and_the_budget(system, photograph, cbr, height, width) -> None:
    image = photograph[100 : 100 + height, 150 : 150 + width]
    encoded = system.encode(image, {"cbr": cbr})
    symbols = modulate(encoded.streams[0]).symbols
    uses = channel_uses(Fraction(cbr), height, width)
    assert uses * 0.99 - 1 <= symbols.size <= uses
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1.0, rel=1e-5)
    shown = system.decode(over_the_air(encoded, 20.0), {}).image
    assert shown.shape == image.shape
    assert shown.dtype == np.uint8
    flat = np.broadcast_to(image.mean((0, 1)), image.shape)
    assert psnr(shown, image) > psnr(flat, image) + 1.0


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_colour(system, level) -> None:
    image = np.full((48, 64, 3), level, np.uint8)
    shown = system.decode(over_the_air(system.encode(image, {"cbr": "1/12"}), 20.0), {}).image
    assert psnr(shown, image) > 25.0


def test_the_receiver_needs_nothing_but_what_was_sent(system, picture) -> None:
    encoded = system.encode(picture, {"cbr": "1/24", "snr_db": 3.0})
    received = over_the_air(encoded, 3.0)
    as_sent = system.decode(received, {"cbr": "1/24", "snr_db": 3.0}).image
    np.testing.assert_array_equal(system.decode(received, {}).image, as_sent)
    np.testing.assert_array_equal(system.decode(received, {"cbr": "1/6", "snr_db": 20.0}).image, as_sent)


def test_the_same_picture_gives_the_same_features(jscc, picture) -> None:
    first = jscc.encode(picture, 1 / 6, 5.0)
    np.testing.assert_array_equal(jscc.encode(picture, Fraction(1, 6), 5.0), first)
    assert not np.array_equal(jscc.encode(picture, 1 / 6, 15.0), first)
    np.testing.assert_array_equal(jscc.encode(picture, 1 / 6, math.nan), jscc.encode(picture, 1 / 6))


@pytest.mark.parametrize("snr_db", [math.nan, math.inf, -math.inf, 200.0, -200.0])
def test_any_estimate_of_the_snr_gives_a_picture(jscc, picture, snr_db) -> None:
    features = jscc.encode(picture, 1 / 12)
    shown = jscc.decode(features, (224, 160), 1 / 12, snr_db)
    assert shown.std() > 3.0


def test_hostile_features_give_some_picture(jscc, picture) -> None:
    features = jscc.encode(picture, 1 / 12)
    for bad in (np.nan, np.inf, -np.inf, np.float32(3e38)):
        broken = features.copy()
        broken[::7] = bad
        assert jscc.decode(broken, (224, 160), 1 / 12, 10.0).shape == picture.shape
        assert jscc.decode(np.full_like(features, bad), (224, 160), 1 / 12, 10.0).shape == picture.shape
    assert jscc.decode(np.zeros_like(features), (224, 160), 1 / 12, 10.0).shape == picture.shape


def test_nothing_received_is_an_outage(system, picture) -> None:
    encoded = system.encode(picture, {})
    stream = ReceivedStream("features", np.zeros(encoded.streams[0].data.size, np.float32), delivered=False)
    for streams in ([], [stream]):
        found = system.decode(ReceivedImage(streams, encoded.side_info), {})
        assert found.outage
        assert "nothing" in found.outage_reason


@pytest.mark.parametrize("cbr", ["1/3", "1/5", "0.2", "1/100", "4"])
def test_another_bandwidth_than_the_checkpoints_is_refused(system, picture, cbr) -> None:
    with pytest.raises(BadInputError, match=r"the checkpoint serves 1/48 to 1/6$"):
        system.encode(picture, {"cbr": cbr})


@pytest.mark.parametrize("options", [{"cbr": "much"}, {"cbr": "0"}, {"quality": 3}, {"snr_db": "good"}])
def test_options_that_make_no_sense_are_refused(system, picture, options) -> None:
    with pytest.raises(BadInputError):
        system.encode(picture, options)


@pytest.mark.parametrize("shape", [(15, 64, 3), (64, 15, 3), (1, 1, 3)])
def test_a_picture_below_the_stride_is_refused(system, shape) -> None:
    with pytest.raises(BadInputError, match="smaller than the encoder's stride; must be at least 16x16"):
        system.encode(np.zeros(shape, np.uint8), {})


def test_a_picture_with_more_features_than_a_stream_holds_is_refused(system) -> None:
    image = np.broadcast_to(np.uint8(0), (4100, 4100, 3))
    with pytest.raises(BadInputError, match="use a lower cbr"):
        system.encode(image, {"cbr": "1/6"})


def test_features_of_another_picture_are_refused(system, jscc, picture) -> None:
    features = jscc.encode(picture, 1 / 12)
    with pytest.raises(BadInputError, match="features received"):
        jscc.decode(features[:-1], (224, 160), 1 / 12, 10.0)
    with pytest.raises(BadInputError, match="features received"):
        jscc.decode(features, (224, 160), 1 / 6, 10.0)
    received = ReceivedImage([ReceivedStream("features", features)], SideInfo(9000, 7000, Fraction(1, 6), 10).pack())
    with pytest.raises(BadInputError, match="features received"):
        system.decode(received, {})


@given(
    width=st.integers(16, 8000),
    height=st.integers(16, 8000),
    ratio=st.fractions(Fraction(1, 48), Fraction(1, 6), max_denominator=0xFFFF),
    expected_db=st.integers(-100, 100),
)
def test_side_information_survives(width, height, ratio, expected_db) -> None:
    sent = SideInfo(width, height, ratio, expected_db)
    assert SideInfo.unpack(sent.pack()) == sent


@given(st.binary(max_size=15) | st.binary(min_size=13, max_size=13))
def test_side_information_that_is_none_is_refused_or_makes_sense(data: bytes) -> None:
    try:
        found = SideInfo.unpack(data)
    except BadInputError:
        return
    assert 0 < found.width * found.height <= 64_000_000
    assert found.ratio > 0


def test_the_run_tells_the_transmitter_the_snr() -> None:
    entry = get_entry("deep-jscc")
    assert entry.needs_models
    assert "snr_db" in entry.context


def test_the_foundation_profile_names_the_way_to_a_checkpoint() -> None:
    with pytest.raises(ModelError, match="multisc train deep-jscc"):
        deep_jscc("foundation")


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the embedded checkpoint's files: configuration and tensors to spoil."""
    source = load_profile("embedded").deep_jscc
    with open(f"{source}/config.json") as file:
        return tmp_path, json.load(file), load_file(f"{source}/model.safetensors")


def _write(directory, config, tensors) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")


def test_a_checkpoint_says_which_bandwidths_it_serves(checkpoint, picture) -> None:
    directory, config, tensors = checkpoint
    _write(directory, config | {"lowest_cbr": "1/12", "highest_cbr": "1/12"}, tensors)
    narrow = Jscc.load(directory)
    assert narrow.encode(picture, 1 / 12).size == 160 * 224 // 2
    with pytest.raises(BadInputError, match="cbr 1/6: the checkpoint serves 1/12 to 1/12"):
        narrow.encode(picture, Fraction(1, 6))


def test_a_checkpoint_that_is_not_there_or_a_pickle(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        Jscc.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        Jscc.load(tmp_path)
    torch.save({}, tmp_path / "model.bin")
    with pytest.raises(ModelError, match=r"model\.bin is a pickle"):
        Jscc.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"lowest_cbr": "1/3"},
        {"lowest_cbr": "0"},
        {"highest_cbr": "1/2"},
        {"highest_cbr": None},
        {"highest_cbr": "1/0"},
        {"widths": {"quarter": 64, "eighth": 96, "sixteenth": 10**9}},
        {"widths": {"quarter": 64, "eighth": 96, "sixteenth": 0}},
        {"widths": {"half": 1}},
        {"widths": None},
    ],
)
def test_a_damaged_configuration_is_refused(checkpoint, change) -> None:
    directory, config, tensors = checkpoint
    _write(directory, config | change, tensors)
    with pytest.raises(ModelError, match="JSCC"):
        Jscc.load(directory)


def test_weights_that_do_not_fit_are_named(checkpoint) -> None:
    directory, config, tensors = checkpoint
    _write(directory, config | {"widths": config["widths"] | {"quarter": 32}}, tensors)
    with pytest.raises(ModelError, match=r"tensor encoder\.\S* has shape .*, config\.json asks for"):
        Jscc.load(directory)
    _write(directory, config, {name: t for name, t in tensors.items() if name != "mean"})
    with pytest.raises(ModelError, match="tensor mean is missing"):
        Jscc.load(directory)
    _write(directory, config, tensors | {"extra": torch.zeros(3)})
    with pytest.raises(ModelError, match="tensor extra is not one of this network"):
        Jscc.load(directory)
    (directory / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="not a safetensors file"):
        Jscc.load(directory)
