"""BLIP, which its publisher offers as a pickle: converted once, tensors only, and the same model afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration

from multisc.cli import main
from multisc.errors import ModelError
from multisc.models.blip import BlipCaptioner
from multisc.models.profile import CATALOGUE, load_profile
from tests.support.fake_hub import FakeHub, running_hub
from tests.support.hub_blip import blip, pin_blip

BLIP = "Salesforce/blip-image-captioning-base"
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
Published = tuple[Path, BlipForConditionalGeneration, FakeHub]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """The pickle, the model that is in it, and the hub that has it."""
    model = blip(tmp_path / "blip")
    file = tmp_path / "blip/pytorch_model.bin"
    with running_hub({BLIP: tmp_path / "blip"}, tmp_path / "cache", monkeypatch) as hub:
        pin_blip(file, monkeypatch)
        yield file, model, hub


def fetch_blip() -> int:
    return main(["models", "fetch", "--models", "foundation", "--parts", "blip"])


def test_blip_is_converted_once_and_says_what_the_original_says(published: Published) -> None:
    _, model, hub = published
    assert fetch_blip() == 0
    here = CATALOGUE["foundation"]["blip"].directory
    assert not list(here.glob("*.bin"))
    asked = len(hub.asked)
    assert fetch_blip() == 0
    assert len(hub.asked) == asked
    assert main(["models", "verify", "--models", "foundation", "--parts", "blip"]) == 0
    captioner = BlipCaptioner.load(load_profile("foundation").blip)
    pixels = captioner.processor.image_processor([Image.fromarray(PICTURE)], return_tensors="pt").pixel_values
    with torch.inference_mode():
        whole = model.generate(pixel_values=pixels, num_beams=3, do_sample=False, max_new_tokens=12)[0].tolist()
    said = captioner.caption([PICTURE], max_tokens=12)[0]
    assert len(said) > 1
    assert said == whole[1 : 1 + len(said)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(captioner.model.state_dict()[name], tensor)


class Bomb:
    """Code in a pickle."""

    target: Path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("content", ["code", "a list", "a number among the tensors", "half a file"])
def test_a_pickle_of_anything_but_tensors_is_refused(
    published: Published,
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Even were its digest the published one."""
    file, model, _ = published
    Bomb.target = tmp_path / "exploded"
    tensors = model.state_dict()
    if content == "half a file":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        torch.save(
            {
                "code": {**tensors, "extra": Bomb()},
                "a list": list(tensors.values()),
                "a number among the tensors": {**tensors, "epoch": 3},
            }[content],
            file,
        )
    pin_blip(file, monkeypatch)
    assert fetch_blip() == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "pytorch_model.bin: holds more than tensors (" in line
    assert not (tmp_path / "exploded").exists()
    assert not list(CATALOGUE["foundation"]["blip"].directory.glob("model.safetensors*"))
    with pytest.raises(ModelError, match="run `multisc models fetch --models foundation`"):
        BlipCaptioner.load(load_profile("foundation").blip)


def test_a_damaged_copy_in_the_cache_is_fetched_anew(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the hub's library keeps is a link to the bytes: both must go, or they would be taken again."""
    assert fetch_blip() == 0
    shutil.rmtree(CATALOGUE["foundation"]["blip"].directory)
    (kept,) = (tmp_path / "cache").rglob("pytorch_model.bin")
    data = kept.read_bytes()
    kept.resolve().write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert fetch_blip() == 1
    assert "its SHA-256 is" in capsys.readouterr().err
    assert fetch_blip() == 0


def test_blip_cut_short_on_the_way_is_refused(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    file, _, _ = published
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert fetch_blip() == 1
    assert "its SHA-256 is" in capsys.readouterr().err
    file.write_bytes(whole)
    assert fetch_blip() == 0
