# SPDX-License-Identifier: GPL-3.0-or-later
"""The vision encoder that several checkpoints share: once on disk, beside them, and once in memory."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from multisc.errors import ModelError
from multisc.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, EfficientNetLiteModel

DIRECTORY = "vision-encoder"  # beside the checkpoints that use it
WEIGHTS_NAME = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


def save_encoder(encoder: EfficientNetLite, directory: Path) -> None:
    """Write ``config.json`` and float16 ``model.safetensors``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": EfficientNetLiteConfig.model_type}) + "\n")
    save_file(
        _kept({name: tensor.cpu().half().contiguous() for name, tensor in encoder.state_dict().items()}),
        _file(directory),
    )


def save_without_encoder(model: Any, directory: Path) -> None:
    """Write a transformers model in float16 without the weights of its shared encoder; the model stays as it is."""
    towers = shared_towers(model)
    # Not ``model.half()``: other models may have the same encoder.
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{tower}.encoder.") for tower in towers)
    }
    model.config.dtype = torch.float16
    model.save_pretrained(directory, state_dict=state)


def shared_towers(model: nn.Module) -> dict[str, EfficientNetLiteModel]:
    """Return the towers of a model whose encoder stands elsewhere, by their names in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, EfficientNetLiteModel) and module.config.shared
    }


def attach(model: nn.Module, directory: Path, device: str, dtype: torch.dtype) -> None:
    """Give the towers of a model the encoder that stands beside its checkpoint.

    Args:
        model: loaded from ``directory``, on the device.
        directory: of the checkpoint.
        device: "cpu", "cuda", ...
        dtype: number format of the model.

    Raises:
        ModelError: when the encoder is missing, damaged or another network's.
    """
    for tower in shared_towers(model).values():
        if not _NAME.fullmatch(tower.config.shared):
            raise ModelError(f"model {directory}: {tower.config.shared!r} is no name of a directory beside it")
        place = (directory.resolve().parent / tower.config.shared).resolve()
        tower.encoder = load_encoder(place, device, dtype)


@functools.lru_cache(maxsize=4)
def load_encoder(directory: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> EfficientNetLite:
    """Return the encoder of a directory in evaluation mode; the same object each time.

    Raises:
        ModelError: when it is missing, damaged or another network's.
    """
    file = _file(directory)
    if not file.is_file():
        raise ModelError(f"vision encoder {file} is missing; copy the directory {DIRECTORY} of the same models there")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"vision encoder {file}: not a safetensors file ({error})") from error
    # Its random weights are drawn apart: what a caller draws must not depend on whether another asked before.
    with torch.random.fork_rng(devices=[]):
        encoder = EfficientNetLite()
    expected = _kept(encoder.state_dict())
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            raise ModelError(f"vision encoder {file}: {name} is missing or of another shape; it is another network's")
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return encoder.to(device, dtype).eval().requires_grad_(False)


def _file(directory: Path) -> Path:
    return directory / WEIGHTS_NAME


def _kept(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
