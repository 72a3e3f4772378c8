"""Training of the feature's projection: the channel it is trained through, the colours, and the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel

from multisc.cli import main
from multisc.codecs.feature import FeatureStatistics
from multisc.training.towers import copy_tower, vision_config
from multisc.training.vlf import Channel, Example, fit_colours


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Pictures whose colours are a linear map of y's strong directions."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((16, 16)))[0] * np.exp(-np.arange(16) / 2.0)[:, None]
    features = rng.standard_normal((300, 4, 16)) @ axes
    told = features.reshape(300, -1) @ rng.standard_normal((64, 192)) * 0.02 + 0.5
    latents = np.zeros((2, 3, 3), np.float16)
    return [Example(latents, f.astype(np.float16), c.astype(np.float16)) for f, c in zip(features, told, strict=True)]


@pytest.mark.parametrize("count", [12, 250])  # fewer pictures than coefficients, and more
def test_colours_are_learned_from_the_feature(examples: list[Example], count: int) -> None:
    statistics = FeatureStatistics.measure(np.stack([e.feature for e in examples]).astype(np.float32))
    weights = fit_colours(statistics, examples[:count], 0.1)
    assert weights.shape == (4 * 4 + 1, 192)
    known = statistics.whiten(np.stack([e.feature for e in examples]))[:, :, :4].reshape(300, -1)
    wanted = np.stack([e.colours for e in examples]).astype(np.float64)
    for part in (slice(0, count), slice(250, 300))[: 1 + (count == 250)]:
        error = np.mean((known[part] @ weights[:-1] + weights[-1] - wanted[part]) ** 2)
        assert 1.0 - error / wanted[part].var(axis=0).mean() > 0.8


def test_the_feature_arrives_noisier_at_a_lower_snr(examples: list[Example]) -> None:
    statistics = FeatureStatistics.measure(np.stack([e.feature for e in examples]).astype(np.float32))
    channel = Channel(statistics)

    def error(snr_db: float) -> float:
        rng = np.random.default_rng(1)
        received = [channel.pass_on(e.feature, (snr_db, snr_db), rng) for e in examples]
        return float(np.mean((np.stack(received) - np.stack([e.feature for e in examples])) ** 2))

    found = [error(snr) for snr in (20.0, 5.0, -10.0)]
    assert found == sorted(found)
    assert found[-1] < np.stack([e.feature for e in examples]).astype(np.float32).var()


def test_tower_of_clip_goes_on_as_that_of_blip() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).eval()
    tower = Blip2VisionModel(vision_config(clip)).eval()
    pixels = torch.randn(8, 3, 32, 32)
    copy_tower(clip, tower, pixels)
    seen: list[torch.Tensor] = []
    tower.post_layernorm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        wanted = clip(pixels).last_hidden_state
        tower(pixels)
    assert float((seen[0] - wanted).square().mean() / wanted.var()) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blip2"], "--out is missing"),
        (["blip2", "--models", "foundation"], "--models is for bart and vlf alone"),
        (["vlf", "--models", "foundation", "--out", "x"], "takes the place of --out"),
    ],
)
def test_command_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments, "--data", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
