"""vlm-csc, vlf-msc and its baselines: what they send, what they show, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from multisc.codecs.feature import TRANSPORTS
from multisc.codecs.text import TEXT_MODES
from multisc.errors import BadInputError, ModelError
from multisc.models.feature_prompt import FeatureGenerator, FeatureProjection
from multisc.models.profile import EMBEDDED_DIRECTORY, FOUNDATION, load_profile
from multisc.phy.transport import channel_uses
from multisc.streams import Encoded, ReceivedImage
from multisc.systems import vlf_msc, vlm_csc
from multisc.systems.base import System, parse_options
from multisc.systems.registry import get_system
from tests.support.miniatures_blip import TOKENS, WIDTH, write_blip, write_blip2, write_projection
from tests.support.phy import arrive

NAMES = ("vlm-csc", "vlf-msc", "text-only", "image-only")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile of miniatures around the embedded diffusion model."""
    root = tmp_path_factory.mktemp("models")
    write_blip(root / "blip")
    write_blip2(root / "blip2")
    for part in ("stable-diffusion", "ip-adapter"):
        (root / part).symlink_to(EMBEDDED_DIRECTORY / part)
    write_projection(root / "vlf-projection", str(root / "stable-diffusion"))
    return str(root)


@pytest.fixture(scope="module")
def systems(models: str) -> dict[str, System]:
    return {name: get_system(name, models) for name in NAMES}


def uses(encoded: Encoded) -> int:
    return sum(map(channel_uses, encoded.streams))


@pytest.mark.parametrize("name", NAMES)
def test_picture_and_text_come_out(systems: dict[str, System], photograph: NDArray[np.uint8], name: str) -> None:
    system = systems[name]
    assert system.name == name
    whole = {"dimensions": WIDTH} if name == "vlf-msc" else {}
    encoded = system.encode(photograph, {"seed": 3, "steps": 2} | whole)
    assert len(encoded.streams) == 1
    assert len(encoded.side_info) <= 8
    shown = system.decode(arrive(encoded, 90.0), {"seed": 3, "steps": 2})
    assert shown.image is not None
    assert shown.image.shape == photograph.shape
    assert len(shown.text["received"]) == len(encoded.preview["captions"]) == 1
    again = system.decode(arrive(encoded, 90.0), {"seed": 3, "steps": 2})
    np.testing.assert_array_equal(shown.image, again.image)
    if name != "image-only":  # its text is of the rebuilt picture
        assert shown.text["received"] == encoded.preview["captions"]


@pytest.mark.parametrize("name", NAMES)
def test_outage_only_when_nothing_arrives(
    systems: dict[str, System], photograph: NDArray[np.uint8], name: str
) -> None:
    encoded = systems[name].encode(photograph, {})
    shown = systems[name].decode(arrive(encoded, 60.0, lost={encoded.streams[0].name}), {})
    assert shown.outage
    assert "was received" in shown.outage_reason
    assert not systems[name].decode(arrive(encoded, -5.0), {"steps": 1}).outage


@pytest.mark.parametrize("options", [{}, {"transport": "digital", "bits": 6}, {"tokens": 4, "dimensions": 16}])
def test_both_outputs_are_driven_by_what_arrived(
    systems: dict[str, System], photograph: NDArray[np.uint8], options: dict
) -> None:
    system = systems["vlf-msc"]
    assert isinstance(system, vlf_msc.VlfMsc)
    one, other = system.encode(photograph, options), system.encode(255 - photograph, options)
    swapped = ReceivedImage(arrive(other, 60.0).streams, one.side_info)
    shown = [system.decode(received, {"steps": 2}) for received in (arrive(one, 60.0), swapped, arrive(other, 60.0))]
    assert shown[0].text["received"] != shown[1].text["received"] == shown[2].text["received"]
    assert not np.array_equal(shown[0].image, shown[1].image)  # type: ignore[arg-type]
    np.testing.assert_array_equal(shown[1].image, shown[2].image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("vlf-msc", {"channel_uses": 25}, 24),
        ("vlf-msc", {"channel_uses": 9, "tokens": 2}, 9),
        ("vlf-msc", {"channel_uses": 40, "transport": "digital", "bits": 3}, 36),
        ("vlf-msc", {"channel_uses": 120, "transport": "digital", "code": "nr:1/3"}, 96),
        ("vlf-msc", {"cbr": "1/20000"}, 20),
        ("image-only", {"channel_uses": 200}, 192),
    ],
)
def test_budget_is_filled_and_kept(
    systems: dict[str, System], photograph: NDArray[np.uint8], name: str, options: dict, least: int
) -> None:
    encoded = systems[name].encode(photograph, options)
    allowed = options.get("channel_uses") or photograph.size // 20000
    assert least <= uses(encoded) <= allowed
    assert not systems[name].decode(arrive(encoded, 60.0), {"steps": 1}).outage


@pytest.mark.parametrize("name", ["vlm-csc", "text-only"])
@pytest.mark.parametrize("options", [{}, {"text_code": "nr:1/2"}, {"text_bits": 2, "text_modulation": "16qam"}])
def test_a_larger_budget_gives_each_token_more_dimensions(
    systems: dict[str, System], photograph: NDArray[np.uint8], name: str, options: dict
) -> None:
    system = systems[name]
    smallest = uses(system.encode(photograph, options | {"text_dimensions": 8}))
    found = [system.encode(photograph, options | {"channel_uses": smallest * k}) for k in (1, 2)]
    assert uses(found[0]) <= smallest < uses(found[1]) <= 2 * smallest
    assert found[0].preview["captions"] == found[1].preview["captions"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vlf-msc", {"channel_uses": 1}, "1 channel uses allowed: one dimension of 4 tokens takes 2"),
        ("vlf-msc", {"dimensions": 17}, "17 dimensions of the feature: must be 1 to 16"),
        ("vlf-msc", {"tokens": 5}, "5 tokens of the feature: must be 1 to 4"),
        ("text-only", {"channel_uses": 3}, "3 channel uses allowed: the caption of .* takes at least"),
        ("vlm-csc", {"cbr": "1/400000"}, "cbr 1/400000: 1 channel uses allowed: the caption of .* takes at least"),
        ("image-only", {"channel_uses": 2}, "2 channel uses allowed: the embedding of"),
    ],
)
def test_what_the_models_or_the_budget_do_not_allow(
    systems: dict[str, System], photograph: NDArray[np.uint8], name: str, options: dict, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        systems[name].encode(photograph, options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (vlf_msc.VlfOptions, {"channel_uses": -1}),
        (vlf_msc.VlfOptions, {"channel_uses": 10, "cbr": "1/100"}),
        (vlf_msc.VlfOptions, {"channel_uses": 10, "dimensions": 4}),
        (vlf_msc.VlfOptions, {"transport": "pigeon"}),
        (vlf_msc.VlfOptions, {"modulation": "analog"}),
        (vlf_msc.VlfOptions, {"bits": 0}),
        (vlf_msc.VlfOptions, {"tokens": 256}),
        (vlf_msc.VlfOptions, {"steps": 0}),
        (vlf_msc.ImageOptions, {"cbr": "none"}),
        (vlf_msc.ImageOptions, {"steps": 201}),
        (vlm_csc.CaptionOptions, {"text_mode": "morse"}),
        (vlm_csc.CaptionOptions, {"text_dimensions": 256}),
        (vlm_csc.CaptionOptions, {"channel_uses": 10, "text_dimensions": 4}),
        (vlm_csc.CaptionOptions, {"seed": -1}),
    ],
)
def test_options_outside_their_range_are_refused(kind: type, options: dict) -> None:
    with pytest.raises(BadInputError):
        parse_options(kind, options, "the system")


@given(
    width=st.integers(1, 8000),
    height=st.integers(1, 8000),
    transport=st.sampled_from(TRANSPORTS),
    tokens=st.integers(1, 255),
    dimensions=st.integers(1, 65535),
)
def test_side_information_of_the_feature_survives(
    width: int, height: int, transport: str, tokens: int, dimensions: int
) -> None:
    sent = vlf_msc.SideInfo(width, height, transport, tokens, dimensions)
    assert vlf_msc.SideInfo.unpack(sent.pack()) == sent


@given(st.integers(1, 8000), st.integers(1, 8000), st.sampled_from(TEXT_MODES), st.integers(1, 255))
def test_side_information_of_the_caption_survives(width: int, height: int, mode: str, dimensions: int) -> None:
    sent = vlm_csc.SideInfo(width, height, mode, dimensions)
    assert vlm_csc.SideInfo.unpack(sent.pack(), "vlm-csc") == sent


@given(st.binary(max_size=9))
def test_side_information_that_is_none_is_refused_or_makes_sense(data: bytes) -> None:
    for unpack in (vlf_msc.SideInfo.unpack, lambda d: vlm_csc.SideInfo.unpack(d, "vlm-csc")):
        try:
            found = unpack(data)
        except BadInputError:
            continue
        assert 0 < found.width * found.height <= 64_000_000
        assert found.pack() == data


@pytest.mark.parametrize("name", NAMES)
def test_a_header_that_lies_is_refused(systems: dict[str, System], photograph: NDArray[np.uint8], name: str) -> None:
    encoded = systems[name].encode(photograph, {})
    received = arrive(encoded, 60.0)
    lies = {
        "vlf-msc": vlf_msc.SideInfo(64, 64, "analog", TOKENS, WIDTH).pack(),
        "vlm-csc": vlm_csc.SideInfo(64, 64, "embedding", 17).pack(),
        "text-only": vlm_csc.SideInfo(64, 64, "token", 3).pack(),
        "image-only": vlf_msc.ImageOnly.LAYOUT.pack(64, 64, 7, 3),
    }
    for side_info in (lies[name], b"", encoded.side_info + b"\0", bytes(len(encoded.side_info))):
        with pytest.raises(BadInputError):
            systems[name].decode(ReceivedImage(received.streams, side_info), {})


def test_foundation_without_a_projection_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="multisc train vlf --models foundation --data DIR"):
        vlf_msc.vlf_msc("foundation")
    # What that command writes is found without a word more.
    place = tmp_path / "multisc" / "foundation" / "vlf-projection"
    place.mkdir(parents=True)
    profile = load_profile("foundation")
    assert profile.source("vlf-projection") == str(place)
    assert set(profile.sources) == {*FOUNDATION, "vlf-projection"}


def test_projection_survives_its_file(models: str, tmp_path: Path) -> None:
    first = FeatureProjection.load(Path(models) / "vlf-projection")
    first.save(tmp_path)
    second = FeatureProjection.load(tmp_path)
    np.testing.assert_array_equal(first.statistics.basis, second.statistics.basis)
    assert first.ip_adapter.keys() == second.ip_adapter.keys()
    for name, tensor in first.ip_adapter.items():
        np.testing.assert_array_equal(tensor.numpy(), second.ip_adapter[name].numpy())


def test_projection_of_another_blip2(models: str, tmp_path: Path) -> None:
    write_projection(tmp_path / "other", f"{models}/stable-diffusion", TOKENS + 1)
    generator = FeatureGenerator.load(f"{models}/stable-diffusion", tmp_path / "other")
    blip2 = load_profile(models).load(vlf_msc.Blip2, "blip2")
    with pytest.raises(ModelError, match=r"takes a feature of 5 x 16, BLIP-2 makes one of 4 x 16; train one"):
        vlf_msc.VlfMsc(blip2, generator)


@pytest.fixture
def copied(models: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(models) / "vlf-projection", tmp_path / "vlf-projection"))


def _without(copied: Path, name: str) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights[name]
    save_file(weights, copied / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json is missing"),
        (lambda d: (d / "config.json").write_text("{}"), "multisc train vlf"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04pickle"), "multisc train vlf"),
        (lambda d: _without(d, "feature.basis"), "multisc train vlf"),
        (lambda d: _without(d, "image_proj.proj.3.weight"), "multisc train vlf"),
        (lambda d: _without(d, "ip_adapter.1.to_k_ip.weight"), "trained for another diffusion model"),
    ],
)
def test_damaged_projection(models: str, copied: Path, damage, message: str) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=message) as error:
        FeatureGenerator.load(f"{models}/stable-diffusion", copied)
    assert "\n" not in str(error.value)


def test_embedded_projection_belongs_to_the_embedded_models() -> None:
    found = FeatureProjection.load(EMBEDDED_DIRECTORY / "vlf-projection")
    config = json.loads((EMBEDDED_DIRECTORY / "blip2" / "config.json").read_text())
    sizes = (config["num_query_tokens"], config["qformer_config"]["hidden_size"])
    assert (found.statistics.tokens, found.statistics.width) == sizes
    FeatureGenerator.load(EMBEDDED_DIRECTORY / "stable-diffusion", EMBEDDED_DIRECTORY / "vlf-projection")
