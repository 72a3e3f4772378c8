"""What the writers of published miniatures share: files and names of weights as an older release left them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def write_json(file: Path, values: object) -> None:
    """Write values the way the hub's files are."""
    file.write_text(json.dumps(values, indent=2))


def write_slow_tokenizer(directory: Path) -> None:
    """Write the vocabulary and merges of its ``tokenizer.json`` as ``vocab.json`` and ``merges.txt``."""
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    write_json(directory / "vocab.json", model["vocab"])
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")


def renamed(name: str, names: dict[str, str]) -> str:
    """Return a weight's name with each new part replaced by the old one, unless it has that already."""
    for new, old in names.items():
        if old not in name:
            name = name.replace(new, old)
    return name


def rename_weights(file: Path, names: dict[str, str]) -> None:
    """Rename the tensors of a safetensors file; ``names`` maps new parts to old ones."""
    tensors = {renamed(name, names): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def rename_shards(directory: Path, names: dict[str, str]) -> None:
    """Rename the tensors of all shards and of their index."""
    for file in directory.glob("*.safetensors"):
        rename_weights(file, names)
    index = directory / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] = {renamed(name, names): file for name, file in values["weight_map"].items()}
    write_json(index, values)
