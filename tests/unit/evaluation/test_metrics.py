"""The metrics against their published definitions, written out the slow way, and against known answers."""

import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity

from multisc.errors import BadInputError, ModelError
from multisc.evaluation import metrics
from multisc.evaluation.descriptor import PARTS, describe
from multisc.evaluation.lpips import _LAYERS, Lpips
from multisc.evaluation.metrics import MetricUnavailable
from tests.support.paths import DATA

KODAK = DATA / "kodak24"


def photograph(height=200, width=220, seed=3):
    """Noise with the 1/f spectrum of photographs, in colour."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.standard_normal((3, height, width))) / frequency
    field = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
    return np.clip(128 + 45 * field / field.std(), 0, 255).astype(np.uint8)


def noisy(image, deviation, seed=4):
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def test_psnr_of_a_known_error():
    a = np.full((20, 30, 3), 100, np.uint8)
    assert metrics.psnr_db(a, a + np.uint8(10)) == pytest.approx(10 * math.log10(255**2 / 100))
    b = a.copy()
    b[0, 0, 0] += 60
    assert metrics.psnr_db(a, b) == pytest.approx(10 * math.log10(255**2 / (3600 / 1800)))


def test_psnr_of_identical_pictures_is_refused_with_a_reason():
    with pytest.raises(MetricUnavailable, match="infinite"):
        metrics.psnr_db(photograph(), photograph())


def test_psnr_of_gaussian_noise_is_what_theory_says():
    a = np.full((400, 400, 3), 128, np.uint8)
    # Rounding adds 1/12 to the variance; the sample variance of 480,000 values is within 1 % with certainty.
    assert metrics.psnr_db(a, noisy(a, 10)) == pytest.approx(10 * math.log10(255**2 / (100 + 1 / 12)), abs=0.05)


def test_ssim_equals_skimage_with_the_settings_of_wang():
    a = photograph()
    for b in (noisy(a, 20), photograph(seed=9), 255 - a):
        _, full = structural_similarity(
            a,
            b,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            full=True,
        )
        assert metrics.ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


def slow_ms_ssim(a, b):
    """Wang, Simoncelli, Bovik 2003, equation 7, one channel, with two-dimensional windows and explicit loops."""
    x, y = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            a, b = (convolve2d(p, np.full((2, 2), 0.25), mode="valid")[::2, ::2] for p in (a, b))
        mean_a, mean_b = (convolve2d(p, window, mode="valid") for p in (a, b))
        variance_a = convolve2d(a * a, window, mode="valid") - mean_a**2
        variance_b = convolve2d(b * b, window, mode="valid") - mean_b**2
        covariance = convolve2d(a * b, window, mode="valid") - mean_a * mean_b
        term = (2 * covariance + c2) / (variance_a + variance_b + c2)
        if scale == 4:
            term = term * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        result *= max(term.mean(), 0.0) ** weight
    return result


@pytest.mark.parametrize(("height", "width"), [(176, 176), (200, 221)])
def test_ms_ssim_is_the_published_definition(height, width):
    a = photograph(height, width)
    for b in (noisy(a, 5), noisy(a, 60), photograph(height, width, seed=9)):
        wanted = np.mean([slow_ms_ssim(a[:, :, c].astype(float), b[:, :, c].astype(float)) for c in range(3)])
        assert metrics.ms_ssim(a, b) == pytest.approx(wanted, abs=1e-9)


def test_ms_ssim_weights_sum_to_one():
    assert sum(metrics.MS_SSIM_WEIGHTS) == pytest.approx(1.0, abs=2e-4)


def test_ms_ssim_of_a_negative_is_not_nan():
    a = photograph()
    assert 0.0 <= metrics.ms_ssim(a, 255 - a) < 0.2


@pytest.mark.parametrize("metric", [metrics.ssim, metrics.ms_ssim, metrics.cosine])
def test_similarities_are_one_for_equal_pictures_and_fall_with_noise(metric):
    a = photograph()
    values = [metric(a, noisy(a, deviation)) for deviation in (0, 5, 20, 80)]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.2


@pytest.mark.parametrize("metric", [metrics.psnr_db, metrics.ssim, metrics.ms_ssim, metrics.cosine])
def test_picture_metrics_are_symmetric(metric):
    a, b = photograph(), noisy(photograph(), 30)
    assert metric(a, b) == pytest.approx(metric(b, a), abs=1e-12)


def test_ms_ssim_needs_176_pixels_and_says_so():
    small = photograph(175, 300)
    with pytest.raises(MetricUnavailable, match=r"176x176.*300x175"):
        metrics.ms_ssim(small, small)


@pytest.mark.parametrize("metric", [metrics.psnr_db, metrics.ssim, metrics.ms_ssim])
def test_pictures_of_different_size_have_no_value(metric):
    with pytest.raises(MetricUnavailable, match="sent 220x200, shown 200x220"):
        metric(photograph(), photograph().transpose(1, 0, 2))


def test_arrays_that_are_no_pictures_are_refused():
    with pytest.raises(BadInputError, match="uint8"):
        metrics.psnr_db(photograph().astype(np.float32), photograph())


def test_descriptor_has_the_documented_length_and_nothing_undefined():
    for image in (photograph(), np.zeros((16, 16, 3), np.uint8), np.full((50, 16, 3), 255, np.uint8)):
        parts = describe(image)
        assert [parts[name].shape for name in PARTS] == [(1764,), (192,), (160,)]
        assert all(np.isfinite(parts[name]).all() for name in PARTS)


def test_cosine_of_flat_pictures():
    grey, black = np.full((40, 40, 3), 128, np.uint8), np.zeros((40, 40, 3), np.uint8)
    assert metrics.cosine(grey, grey) == pytest.approx(1.0)
    assert -1.0 <= metrics.cosine(grey, black) < metrics.cosine(grey, grey)


@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak images are not beside the checkout")
def test_cosine_tells_photographs_apart():
    images = [np.asarray(Image.open(path)) for path in sorted(KODAK.glob("*.png"))]
    unrelated = [metrics.cosine(a, b) for a, b in itertools.pairwise(images)]
    blurred = [metrics.cosine(a, np.asarray(Image.fromarray(a).filter(ImageFilter.GaussianBlur(2)))) for a in images]
    grey = [metrics.cosine(a, np.full_like(a, 128)) for a in images]
    assert abs(np.mean(unrelated)) < 0.25
    assert abs(np.mean(grey)) < 0.1
    assert np.mean(blurred) > 0.7
    assert min(blurred) > max(unrelated)


SENT = ["A red parrot sits on a branch.", "two birds with long tails"]


def test_bleu_of_equal_sentences_is_one_even_when_they_are_short():
    assert metrics.bleu(SENT, SENT) == 1.0
    assert metrics.bleu(["a cat"], ["A CAT"]) == 1.0


def test_bleu_of_a_known_case():
    # 13a splits off the full stop. Of 7 words, 6 pairs, 5 triples and 4 quadruples 6, 4, 2 and none match (which the
    # smoothing counts as half a one); equal lengths, so no brevity penalty.
    wanted = (6 / 7 * 4 / 6 * 2 / 5 * 0.5 / 4) ** 0.25
    assert metrics.bleu(["the cat sat on the mat ."], ["the cat sat in the mat."]) == pytest.approx(wanted, abs=1e-9)


def test_bleu_falls_with_errors_and_unrelated_text_is_near_zero():
    one_error = ["A red parrot sits on a fence.", SENT[1]]
    three_errors = ["A blue parrot sits in a fence.", SENT[1]]
    assert 1.0 > metrics.bleu(SENT, one_error) > metrics.bleu(SENT, three_errors) > 0.2
    assert metrics.bleu(SENT, ["quantum flux", "seven dishes were washed"]) < 0.05
    assert metrics.bleu(SENT, ["", ""]) == 0.0


def test_text_metrics_without_text_have_a_reason():
    for function in (metrics.bleu, metrics.word_error_rate):
        with pytest.raises(MetricUnavailable, match="empty"):
            function(["", " "], ["a", "b"])
        with pytest.raises(MetricUnavailable, match="2 sentences were sent, 1 received"):
            function(SENT, SENT[:1])


def test_word_and_token_error_rates():
    assert metrics.word_error_rate(SENT, SENT) == 0.0
    assert metrics.word_error_rate(["a b c d"], ["a x c d"]) == 0.25
    assert metrics.word_error_rate(["a b c d"], ["a c d"]) == 0.25
    assert metrics.word_error_rate(["a b"], ["a q w e b"]) == 1.5
    assert metrics.word_error_rate(SENT, ["", ""]) == 1.0
    assert metrics.error_rate([[5, 9, 5], [1]], [[5, 5], [2]]) == 0.5


def test_edit_distance_of_textbook_words():
    assert metrics.edit_distance("kitten", "sitting") == 3
    assert metrics.edit_distance("saturday", "sunday") == 3
    assert metrics.edit_distance("", "abc") == metrics.edit_distance("abc", "") == 3


def miniature_weights(seed=5):
    """LPIPS tensors with the real names and kernel sizes and few channels."""
    generator = np.random.default_rng(seed)
    tensors, channels = {}, 3
    for index, ((layer, side, _, _, _), count) in enumerate(zip(_LAYERS, (6, 8, 10, 7, 5), strict=True)):
        scale = 1 / np.sqrt(channels * side * side)
        tensors[f"{layer}.weight"] = generator.normal(0, scale, (count, channels, side, side)).astype(np.float32)
        tensors[f"{layer}.bias"] = generator.normal(0, 0.1, count).astype(np.float32)
        tensors[f"lin{index}.model.1.weight"] = generator.random((1, count, 1, 1)).astype(np.float32)
        channels = count
    tensors["scaling_layer.shift"] = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 3, 1, 1)
    tensors["scaling_layer.scale"] = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 3, 1, 1)
    return tensors


@pytest.fixture
def lpips_file(tmp_path, monkeypatch):
    numpy_io = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "lpips.safetensors"
    numpy_io.save_file(miniature_weights(), path)
    monkeypatch.setenv("MULTISC_LPIPS", str(path))
    return path


def test_lpips_without_weights_says_what_to_do(monkeypatch):
    monkeypatch.delenv("MULTISC_LPIPS", raising=False)
    with pytest.raises(MetricUnavailable, match="MULTISC_LPIPS"):
        metrics.lpips(photograph(), photograph())


@pytest.mark.parametrize(("height", "width"), [(31, 31), (64, 97), (200, 131)])
def test_lpips_equals_the_same_network_in_torch(lpips_file, height, width):
    torch = pytest.importorskip("torch")
    import torch.nn.functional as f

    weights = {name: torch.from_numpy(tensor) for name, tensor in miniature_weights().items()}
    a = photograph(height, width)
    b = noisy(a, 40)
    outputs = []
    for image in (a, b):
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        x = (x - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
        outputs.append([])
        for layer, _, stride, padding, pooled in _LAYERS:
            x = f.max_pool2d(x, 3, 2) if pooled else x
            x = f.relu(f.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride, padding))
            outputs[-1].append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
    wanted = sum(
        f.conv2d((one - other) ** 2, weights[f"lin{index}.model.1.weight"]).mean().item()
        for index, (one, other) in enumerate(zip(*outputs, strict=True))
    )
    assert wanted > 0.01
    assert metrics.lpips(a, b) == pytest.approx(wanted, rel=1e-4)
    assert metrics.lpips(a, a) == 0.0


def test_lpips_of_a_small_picture_says_so(lpips_file):
    with pytest.raises(MetricUnavailable, match="31x31"):
        metrics.lpips(photograph(30, 40), photograph(30, 40))


def test_damaged_lpips_weights(lpips_file):
    numpy_io = pytest.importorskip("safetensors.numpy")
    whole = lpips_file.read_bytes()
    lpips_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a safetensors file"):
        Lpips.load(lpips_file)
    lpips_file.write_text("hello")
    with pytest.raises(ModelError, match="not a safetensors file"):
        Lpips.load(lpips_file)
    with pytest.raises(ModelError, match="none"):
        Lpips.load(lpips_file.with_name("none"))
    tensors = miniature_weights()
    tensors["net.slice3.6.weight"] = tensors["net.slice3.6.weight"][:, :-1]
    numpy_io.save_file(tensors, lpips_file)
    with pytest.raises(ModelError, match=r"net\.slice3\.6\.weight"):
        Lpips.load(lpips_file)
    del tensors["lin4.model.1.weight"], tensors["net.slice3.6.weight"]
    numpy_io.save_file(tensors, lpips_file)
    with pytest.raises(ModelError, match="no tensor"):
        Lpips.load(lpips_file)


ALL = ("psnr_db", "ssim", "ms_ssim", "cosine", "effnet_cosine", "lpips")
TEXT = ("bleu", "word_error_rate")


def test_measure_gives_every_name_a_value_or_a_reason(monkeypatch):
    monkeypatch.delenv("MULTISC_LPIPS", raising=False)
    monkeypatch.setattr(metrics.minilm_network, "installed", lambda: None)
    a = photograph()
    text = {"sent": SENT, "received": ["A rqd parrot sits on a branch.", SENT[1]], "corrected": SENT}
    values, reasons = metrics.measure(a, noisy(a, 20), text)
    assert set(values) == {"minilm", *ALL, *(f"{t}{s}" for t in TEXT for s in ("", "_received", "_corrected"))}
    assert set(reasons) == {"lpips", "minilm"} == {name for name, value in values.items() if value is None}
    assert values["bleu"] == values["bleu_corrected"] == 1.0
    assert values["bleu_received"] < 1.0
    assert values["word_error_rate_received"] == pytest.approx(1 / 12)


def test_measure_of_an_outage_has_no_picture_metric_but_keeps_the_text():
    values, reasons = metrics.measure(photograph(), None, {"sent": SENT, "received": SENT}, "no preamble was found")
    for name in ALL:
        assert values[name] is None
        assert reasons[name] == "outage: no preamble was found"
    assert values["bleu"] == values["bleu_received"] == 1.0
    assert "corrected" in reasons["bleu_corrected"]


def test_measure_of_a_system_without_text():
    a = photograph()
    values, reasons = metrics.measure(a, noisy(a, 3), {})
    assert values["bleu"] is None
    assert "no text" in reasons["bleu"]


def test_bad_lpips_weights_are_a_reason_not_a_crash(lpips_file):
    lpips_file.write_text("broken")
    _, reasons = metrics.measure(photograph(), photograph(seed=8), {})
    assert "not a safetensors file" in reasons["lpips"]


def test_metrics_never_import_torch():
    code = "import sys, multisc.evaluation.metrics, sacrebleu; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_are_fast_enough_for_a_sweep():
    a = photograph(512, 768)
    b = noisy(a, 10)
    metrics.cosine(a, b)
    started = time.perf_counter()
    for metric in (metrics.psnr_db, metrics.ssim, metrics.ms_ssim, metrics.cosine):
        metric(a, b)
    assert time.perf_counter() - started < 10.0
