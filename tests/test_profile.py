"""Profiles, and the one clear line for every way in which a checkpoint can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from miniatures import write_bart, write_llava
from safetensors.torch import load_file, save_file

from multisc.errors import BadInputError, ModelError
from multisc.models.captioner import Captioner
from multisc.models.checkpoint import find
from multisc.models.corrector import Corrector
from multisc.models.profile import EMBEDDED_DIRECTORY, FOUNDATION, load_profile


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bart(tmp_path_factory.mktemp("models") / "bart")


@pytest.fixture
def copy(bart: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bart, tmp_path / "bart"))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_embedded_parts_are_directories_of_the_package() -> None:
    profile = load_profile("embedded")
    assert profile.llava == str(EMBEDDED_DIRECTORY / "llava")
    assert profile.bart == str(EMBEDDED_DIRECTORY / "bart")


def test_foundation_names_hub_repositories() -> None:
    profile = load_profile("foundation")
    assert profile is FOUNDATION
    source = find(profile.llava)
    assert (source.name, source.local) == ("llava-hf/llava-interleave-qwen-0.5b-hf", False)
    assert source.arguments["trust_remote_code"] is False
    assert find("owner/name@v1.0").revision == "v1.0"


def test_directory_profile_has_the_parts_it_holds(tmp_path: Path) -> None:
    (tmp_path / "bart").mkdir()
    profile = load_profile(tmp_path)
    assert profile.bart == str(tmp_path / "bart")
    with pytest.raises(ModelError, match="no llava") as error:
        _ = profile.llava
    one_line(error)


@pytest.mark.parametrize("name", ["no-such-profile", "/no/such/directory"])
def test_unknown_profile(name: str) -> None:
    with pytest.raises(BadInputError, match="embedded, foundation or a directory") as error:
        load_profile(name)
    one_line(error)


def test_directory_without_parts(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="none of the subdirectories"):
        load_profile(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "/no/such/place", "../up", "a/b/c", Path("owner/name"), "owner/name@"])
def test_neither_directory_nor_hub_name(source: str | Path) -> None:
    with pytest.raises(ModelError, match="no such directory") as error:
        find(source)
    one_line(error)


def test_whole_checkpoint_loads(copy: Path) -> None:
    assert Corrector.load(copy).correct([""]) == [""]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing; copy") as error:
        Corrector.load(copy)
    one_line(error)


def test_missing_processor(llava: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(llava, tmp_path / "llava"))
    (copied / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="copy") as error:
        Captioner.load(copied)
    one_line(error)


def test_pickle_instead_of_safetensors_is_never_opened(copy: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "exploded",)

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle.*convert it to safetensors") as error:
        Corrector.load(copy)
    one_line(error)
    assert not (tmp_path / "exploded").exists()


def test_pickle_named_safetensors(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(ModelError, match="copy") as error:
        Corrector.load(copy)
    one_line(error)


def test_truncated_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="copy") as error:
        Corrector.load(copy)
    one_line(error)


def test_weight_of_another_shape(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "model.encoder.layers.0.fc1.weight"
    weights[name] = weights[name][:-1].clone()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="copy") as error:
        Corrector.load(copy)
    one_line(error)


def test_missing_weight_is_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weight .*fc1\.weight") as error:
        Corrector.load(copy)
    one_line(error)


def test_broken_configuration(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="copy") as error:
        Corrector.load(copy)
    one_line(error)


def test_tokenizer_of_another_model(copy: Path) -> None:
    document = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(50)}
    (copy / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="tokenizer is another model's") as error:
        Corrector.load(copy)
    one_line(error)


def test_llava_checkpoint_in_place_of_bart(llava: Path) -> None:
    with pytest.raises(ModelError) as error:
        Corrector.load(llava)
    one_line(error)


def test_sharded_checkpoint_and_its_missing_shard(tmp_path: Path) -> None:
    directory = write_llava(tmp_path / "sharded", shard_size="20KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole = Captioner.load(write_llava(tmp_path / "whole"))
    assert (Captioner.load(directory).table == whole.table).all()
    shards[-1].unlink()
    with pytest.raises(ModelError, match=f"{shards[-1].name} is missing; copy") as error:
        Captioner.load(directory)
    one_line(error)


def test_broken_index_of_shards(tmp_path: Path) -> None:
    directory = write_llava(tmp_path / "sharded", shard_size="20KB")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": [1, 2]}')
    with pytest.raises(ModelError, match="not an index of shards"):
        Captioner.load(directory)


def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a network and with nothing in the cache, minus the retries.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"the hub did not give it.*check the network, or name a directory") as error:
        Corrector.load("owner/no-such-model@main")
    one_line(error)
