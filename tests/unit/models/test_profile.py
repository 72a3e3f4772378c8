"""Profiles, and the one clear line for every way in which a checkpoint can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multisc.errors import BadInputError, ModelError
from multisc.models.captioner import Captioner
from multisc.models.checkpoint import find
from multisc.models.corrector import Corrector
from multisc.models.profile import CATALOGUE, EMBEDDED_DIRECTORY, load_profile, precision
from tests.support.miniatures import write_bart, write_llava


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


@pytest.mark.parametrize("name", CATALOGUE)
def test_foundation_names_published_checkpoints(name: str) -> None:
    profile = load_profile(name)
    assert set(CATALOGUE[name]) <= set(profile.sources)
    for part, checkpoint in CATALOGUE[name].items():
        if checkpoint.pickle:
            assert Path(profile.sources[part]) == checkpoint.directory
        else:
            assert profile.source(part) == f"{checkpoint.repository}@{checkpoint.revision}"


def test_the_paper_s_light_llava_is_the_default_and_the_large_one_can_be_chosen() -> None:
    assert "llava-interleave-qwen-0.5b" in load_profile("foundation").llava
    assert "llava-1.5-7b" in load_profile("foundation-7b").llava


def test_half_precision_on_cuda_single_elsewhere() -> None:
    assert (precision("cuda"), precision("cuda:1"), precision("cpu")) == (torch.float16, torch.float16, torch.float32)


def test_a_directory_needs_no_network_and_runs_no_code(tmp_path: Path) -> None:
    source = find(tmp_path)
    assert source.local
    assert source.arguments == {"local_files_only": True, "trust_remote_code": False}


def test_what_must_be_converted_first_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="run `multisc models fetch --models foundation`") as error:
        _ = load_profile("foundation").fcn
    one_line(error)


def test_systems_share_what_they_load(bart: Path) -> None:
    one, other = (load_profile(bart.parent) for _ in range(2))
    assert one.load(Corrector, "bart") is other.load(Corrector, "bart")


def test_directory_profile_has_the_parts_it_holds(tmp_path: Path) -> None:
    (tmp_path / "bart").mkdir()
    profile = load_profile(tmp_path)
    assert profile.bart == str(tmp_path / "bart")
    with pytest.raises(ModelError, match="no llava") as error:
        _ = profile.llava
    one_line(error)


@pytest.mark.parametrize("name", ["no-such-profile", "/no/such/directory"])
def test_unknown_profile(name: str) -> None:
    with pytest.raises(BadInputError, match="embedded, foundation, foundation-7b or a directory") as error:
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


def test_weights_that_do_not_fit_the_memory_are_not_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multisc.models.checkpoint.free_memory", lambda: 1000)
    with pytest.raises(ModelError, match=r"take 0.0 GB, cpu has 0.0 GB free; end other programs") as error:
        Corrector.load(copy)
    one_line(error)


def test_an_allocation_that_fails_is_one_line(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("transformers.BartForConditionalGeneration.from_pretrained", fail)
    with pytest.raises(ModelError, match="the memory of cpu is short; end other programs") as error:
        Corrector.load(copy)
    one_line(error)
