"""``multisc models`` against a hub on this machine that has miniatures of the foundation models."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from multisc.cli import main
from multisc.errors import ModelError
from multisc.models import hub as module
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.generator import Generator
from multisc.models.profile import CATALOGUE, FOUNDATION, Pickle, load_profile
from multisc.models.segmenter import Segmenter
from multisc.models.torchvision_fcn import CLASSES, write_config
from tests.support import hub_miniatures
from tests.support.fake_hub import FakeHub, running_hub
from tests.support.fake_torchvision import published_fcn, stand_in

PARTS = "llava,bart,stable-diffusion,ip-adapter"
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return hub_miniatures.foundation(tmp_path_factory.mktemp("published"))


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    with running_hub(published, tmp_path / "cache", monkeypatch) as running:
        yield running


def fetch(*arguments: str) -> int:
    return main(["models", "fetch", *arguments])


def test_from_the_hub_to_pictures(hub: FakeHub, monkeypatch, capsys):
    """Fetched once, verified, and then every class of the foundation path runs without another request."""
    assert fetch("--parts", PARTS) == 0
    assert not [line for line in hub.asked if "not-wanted" in line or line.endswith((".bin", ".ckpt", ".ot"))]
    assert not [line for line in hub.asked if "fp16" in line or "plus" in line]
    assert main(["models", "verify", "--models", "foundation", "--parts", PARTS]) == 0
    assert capsys.readouterr().out.endswith("all well\n")
    asked = len(hub.asked)
    hub.silent = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    profile = load_profile("foundation")
    captioner = Captioner.load(profile.llava)
    said = captioner.caption([PICTURE, PICTURE[:20]], max_tokens=4)
    assert len(said) == 2
    text = captioner.processor.tokenizer.decode(captioner._prompt([PICTURE], "Relay.")["input_ids"][0])
    assert "user\n" + "<image>" * 4 + "\nRelay." in text
    assert Corrector.load(profile.bart).correct(["a dog runs.", ""])[1] == ""
    generator = Generator.load(profile.stable_diffusion, profile.ip_adapter)
    assert (
        generator.generate(["a dog"] * 4, PICTURE[:16, :16], (3, 4, 16, 16), (50, 40), steps=1).shape == PICTURE.shape
    )
    assert len(hub.asked) == asked
    assert main(["models", "list", "--models", "foundation", "--json"]) == 0
    rows = {row["part"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["bart"]["present"]
    assert rows["bart"]["disk_bytes"] > 0
    assert not rows["fcn"]["present"]


def test_a_directory_of_one_s_own(hub: FakeHub, tmp_path, capsys):
    target = tmp_path / "models"
    assert fetch("--parts", "bart", "--to", str(target)) == 0
    assert not (target / "bart/pytorch_model.bin").exists()
    assert main(["models", "verify", "--models", str(target)]) == 0
    Corrector.load(load_profile(target).bart)
    weights = target / "bart/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert main(["models", "verify", "--models", str(target)]) == 1
    assert capsys.readouterr().out == (
        "bart: model.safetensors is not what was published, and was removed; fetch it again\n"
    )
    assert fetch("--parts", "bart", "--to", str(target)) == 0
    assert main(["models", "verify", "--models", str(target)]) == 0


def test_a_download_that_breaks_off_goes_on_from_there(hub: FakeHub):
    hub.cut["model.safetensors"] = 1000
    assert fetch("--parts", "bart") == 0
    assert "GET bytes=1000- model.safetensors" in hub.asked
    assert main(["models", "verify", "--models", "foundation", "--parts", "bart"]) == 0


def test_the_inference_process_tells_each_percent(hub: FakeHub, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(module, "_listeners", [lines.append])
    Corrector.load(load_profile("foundation").bart)
    assert lines[-1].startswith("fetching facebook/bart-base: 100% of 0 MB")


def test_a_hub_that_is_silent(hub: FakeHub, monkeypatch, capsys):
    monkeypatch.setattr(module, "STALL_S", 0.3)
    hub.silent = True
    assert fetch("--parts", "bart") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"multisc models: model facebook/bart-base: {hub.address} did not give it (")
    assert line.endswith(
        "check the network, set HF_ENDPOINT to a mirror, or copy the checkpoint here and name its directory "
        "with --models"
    )


def test_a_repository_that_is_not_there(hub: FakeHub):
    del hub.repositories  # nothing may be looked up any more
    hub.repositories = {}
    with pytest.raises(ModelError, match=r"did not give it .*; check the network") as error:
        Corrector.load("owner/no-such-model")
    assert "\n" not in str(error.value)


def test_what_was_not_fetched_is_one_line_and_exit_code_1(hub: FakeHub, capsys):
    assert main(["models", "verify", "--models", "foundation", "--parts", "bart,fcn"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{part}: not here or not complete; run `multisc models fetch --models foundation --parts {part}`"
        for part in ("bart", "fcn")
    ]
    assert hub.asked == []


@pytest.fixture
def directory(published, tmp_path):
    """A profile with the corrector alone."""
    folder = tmp_path / "own"
    shutil.copytree(published["facebook/bart-base"], folder / "bart", ignore=shutil.ignore_patterns("*.bin", "*.ot"))
    return folder


def lose(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def scramble(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:8] + b"!" + file.read_bytes()[9:])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def misnamed(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def reshape(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "encoder_ffn_dim": 24}))


def other_tokenizer(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lose, "tokenizer.json is missing; copy the whole checkpoint there"),
        (cut, "its header says"),
        (scramble, "damaged header"),
        (pickled, "pytorch_model.bin, a pickle, which can run code; get its safetensors"),
        (misnamed, "is no safetensors file"),
        (reshape, "copy the whole checkpoint there again"),
        (other_tokenizer, "its tokenizer is another model's"),
    ],
)
def test_each_kind_of_damage_is_one_line_with_its_remedy(directory, damage, says, capsys):
    damage(directory / "bart")
    assert main(["models", "verify", "--models", str(directory)]) == 1
    line = capsys.readouterr().out
    assert line.startswith("bart: ")
    assert line.count("\n") == 1
    assert says in line


def test_verifying_says_what_it_does_and_nothing_else():
    command = [sys.executable, "-m", "multisc", "models", "verify", "--parts", "stable-diffusion,ip-adapter"]
    quiet = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=120, check=True)
    steps = ("stable-diffusion: files", "ip-adapter: files", "stable-diffusion: loading")
    assert done.stderr.splitlines() == list(steps)
    assert done.stdout == "embedded: stable-diffusion, ip-adapter: all well\n"


def test_the_embedded_models_are_listed_without_a_network(capsys):
    assert main(["models", "list", "--models", "embedded"]) == 0
    text = capsys.readouterr().out
    assert "llava" in text
    assert main(["models", "verify", "--parts", "fcn,bart"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fetch", "--models", "embedded"], "nothing to fetch; must be one of foundation"),
        (["verify", "--models", "foundation", "--parts", "lava"], "--parts lava: foundation has fcn, llava"),
        (["list", "--models", "/no/such/place"], "must be embedded, foundation, foundation-7b or a directory"),
        (["list", "--to", "x"], "--to DIR goes with fetch"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert main(["models", *arguments]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


# ---- torchvision's FCN: published as a pickle ---------------------------------------------------------------------


@pytest.fixture
def torchvision(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture
def fcn(tmp_path, monkeypatch):
    """The published pickle on a server of its own; returns its path and the checkpoint in the catalogue."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with published_fcn(tmp_path / "pytorch.org", monkeypatch) as published:
        yield published


def test_the_fcn_is_converted_once_and_finds_subjects(fcn, torchvision):
    file, checkpoint = fcn
    assert fetch("--parts", "fcn") == 0
    assert sorted(path.name for path in checkpoint.directory.iterdir()) == ["config.json", "model.safetensors"]
    wanted = torch.load(file, weights_only=True)
    found = load_file(checkpoint.directory / "model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    file.unlink()
    assert fetch("--parts", "fcn") == 0  # it is here
    assert main(["models", "verify", "--models", "foundation", "--parts", "fcn"]) == 0
    segmenter = Segmenter.load(load_profile("foundation").fcn)
    probabilities = segmenter.probabilities(PICTURE)
    assert probabilities.shape[0] == len(CLASSES)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    subject = segmenter.segment(PICTURE)
    assert subject.mask.shape == PICTURE.shape[:2]
    assert subject.label in CLASSES[1:]


def test_a_pickle_with_another_digest_is_refused(fcn, capsys):
    file, checkpoint = fcn
    file.write_bytes(file.read_bytes() + b"x")
    assert fetch("--parts", "fcn") == 1
    assert "its SHA-256 is" in capsys.readouterr().err
    assert not (checkpoint.directory / "model.safetensors").exists()


def test_a_pickle_with_code_is_refused_and_not_run(fcn, tmp_path, monkeypatch, capsys):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    file, checkpoint = fcn
    torch.save({"weight": Bomb()}, file)
    pickled = Pickle(checkpoint.pickle.file, module.digest(file))
    monkeypatch.setitem(
        CATALOGUE["foundation"], "fcn", module.Checkpoint("torchvision/fcn", "V1", "BSD", (), 1, 1, pickled)
    )
    assert fetch("--parts", "fcn") == 1
    assert "holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


def test_a_server_that_does_not_have_it(fcn, capsys):
    fcn[0].unlink()
    assert fetch("--parts", "fcn") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the server did not give it (HTTP Error 404: File not found); check the network" in line


def test_without_torchvision_the_remedy_is_named(tmp_path, monkeypatch):
    write_config(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match=r"needs a torchvision that fits torch .*; install it, or use --models"):
        Segmenter.load(tmp_path)


def test_the_catalogue_holds_what_can_be_checked():
    for checkpoint in {**FOUNDATION, **CATALOGUE["foundation-7b"]}.values():
        pinned = len(checkpoint.revision) == 40 or checkpoint.pickle
        assert pinned or "interleave" in checkpoint.repository
        assert checkpoint.parameters * 1.9 < checkpoint.download < checkpoint.parameters * 4.2
