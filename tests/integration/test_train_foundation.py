"""Training on top of the published models, in miniature: the command, what it starts from, what takes it up."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from multisc.cli import main
from multisc.codecs.text import Reading
from multisc.models.corrector import Corrector
from multisc.models.profile import CATALOGUE, load_profile, trained_directory
from multisc.systems.registry import get_system
from multisc.training import bart, data, vlf
from multisc.training.loop import Schedule
from tests.support.fake_hub import FakeHub
from tests.support.hub_profiles import PROFILES, fetched_profiles
from tests.support.phy import arrive
from tests.support.training_data import SENTENCES, write_training_data

STAGE = Schedule(steps=2, learning_rate=1e-3, warm_up=1, save_every=2)
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with fetched_profiles(tmp_path_factory.mktemp("foundation")) as hub:
        yield hub


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two steps of each training, and nothing of them left behind."""
    monkeypatch.setattr(data, "HELD_OUT_IMAGES", 2)
    monkeypatch.setattr(bart, "MEASURED_SNR_DB", (-4.0, 30.0))
    recipe = bart.BartRecipe(batch=4, beams=2, fine_tuning=STAGE)
    monkeypatch.setattr(bart, "train_published", functools.partial(bart.train_published, recipe=recipe))
    projection = replace(vlf.VlfRecipe(), batch=2, schedule=STAGE)
    monkeypatch.setattr(vlf, "train", functools.partial(vlf.train, recipe=projection))
    yield
    for name in PROFILES:
        for made in ("bart", "work"):
            shutil.rmtree(trained_directory(name) / made, ignore_errors=True)


@pytest.mark.parametrize("name", PROFILES)
def test_the_published_bart_learns_the_channel_and_the_profile_takes_it_up(
    fetched: FakeHub,
    small: None,
    root: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = CATALOGUE[name]["bart"].source
    assert load_profile(name).bart == published
    before = Corrector.load(published)
    assert before.model.generation_config.no_repeat_ngram_size == 3
    assert main(["train", "bart", "--models", name, "--data", str(root)]) == 0
    made = trained_directory(name) / "bart"
    assert load_profile(name).bart == str(made)

    record = json.loads((made / "training.json").read_text())
    assert record["models"] == {"llava": Path(load_profile(name).llava).name, "start": Path(published).name}
    assert record["log"][0]["learning_rate"] == STAGE.learning_rate
    assert [row["snr_db"] for row in record["held_out"]] == [-4.0, 30.0]
    assert record["held_out"][0]["bleu_received"] < 0.9
    assert record["held_out"][1]["bleu_received"] == 1.0

    after = Corrector.load(made)
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert after.tokenizer(SENTENCES)["input_ids"] == before.tokenizer(SENTENCES)["input_ids"]
    assert after.model.generation_config.no_repeat_ngram_size in (0, None)
    old, new = before.model.state_dict(), after.model.state_dict()
    assert old.keys() == new.keys()
    moved = [key for key in old if not np.allclose(old[key], new[key], atol=2e-3)]
    far = [key for key in old if not np.allclose(old[key], new[key], atol=2e-2)]
    assert moved  # it was trained
    assert not far  # but not from scratch

    asked = []

    def correct(self: Corrector, readings: list[Reading], *_: object) -> list[str]:
        asked.append(self.model.name_or_path)
        return [reading.text for reading in readings]

    monkeypatch.setattr(Corrector, "correct_readings", correct)
    system = get_system("multi-sc", name)
    shown = system.decode(arrive(system.encode(PICTURE, {}), -1.0), {"steps": 1})
    assert len(shown.text["corrected"]) == 4
    assert set(asked) == {str(made)}


def test_a_second_training_starts_from_what_is_published_and_start_from_what_was_made(
    fetched: FakeHub,
    small: None,
    root: Path,
    tmp_path: Path,
) -> None:
    command = ["train", "bart", "--models", "foundation", "--data", str(root)]
    made = trained_directory("foundation") / "bart"
    assert main(command) == 0
    first = load_file(made / "model.safetensors")
    shutil.rmtree(trained_directory("foundation") / "work")
    assert main(command) == 0
    second = load_file(made / "model.safetensors")
    assert all(np.array_equal(first[key], second[key]) for key in first)
    kept = Path(shutil.copytree(made, tmp_path / "kept"))
    assert main([*command, "--start", str(kept), "--work", str(tmp_path)]) == 0
    assert json.loads((made / "training.json").read_text())["models"]["start"] == "kept"


@pytest.mark.parametrize("name", PROFILES)
def test_a_projection_for_the_published_pair(
    fetched: FakeHub,
    small: None,
    root: Path,
    name: str,
) -> None:
    made = trained_directory(name) / "vlf-projection"
    before = load_file(made / "model.safetensors")
    assert main(["train", "vlf", "--models", name, "--data", str(root)]) == 0
    after = load_file(made / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    record = json.loads((made / "training.json").read_text())
    assert set(record["models"]) == {"blip2", "stable_diffusion"}
    assert record["log"][-1]["step"] == STAGE.steps
    system = get_system("vlf-msc", name)
    shown = system.decode(arrive(system.encode(PICTURE, {"dimensions": 16}), 10.0), {"dimensions": 16, "steps": 1})
    assert shown.image is not None
