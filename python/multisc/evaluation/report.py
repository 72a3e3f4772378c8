"""``report.html``: one transmitted image on one self-contained page, without scripts and without a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from multisc.codecs.pixels import Box
from multisc.evaluation import plots
from multisc.evaluation.differences import compare
from multisc.evaluation.result import Result, Scalar
from multisc.files import write_atomically

MAX_CAPTION = 2000
THUMBNAIL_SIDE = 240
BLOCKS = {1: ("whole picture",), 4: ("top left", "top right", "bottom left", "bottom right")}

_THIN = "\N{NARROW NO-BREAK SPACE}"  # between thousands
_PLACED = ("source", "received", "slice_sent", "slice_received", "mask")
_FROM_RECEIVER = ("received", "slice_received")
_METRICS = {  # name: (label, which way is better, what it is)
    "psnr_db": ("PSNR", "higher is better", "dB, all samples of R, G, B, peak 255"),
    "ssim": ("SSIM", "higher is better", "structural similarity, at most 1"),
    "ms_ssim": ("MS-SSIM", "higher is better", "the same over five scales, 0 to 1"),
    "cosine": ("Cosine", "higher is better", "shape, colour and texture; unrelated pictures about 0, equal ones 1"),
    "effnet_cosine": (
        "EfficientNet cosine",
        "higher is better",
        "what is seen; unrelated pictures about 0, equal ones 1",
    ),
    "lpips": ("LPIPS", "lower is better", "learned perceptual distance, equal pictures 0"),
    "slice_psnr_db": ("Slice PSNR", "higher is better", "dB, the received slice against the sent one"),
    "bleu": ("BLEU", "higher is better", "final captions against the sent ones, 0 to 1"),
    "minilm": ("MiniLM", "higher is better", "meaning of the final captions; other scenes about 0, equal ones 1"),
    "bleu_received": ("BLEU, received", "higher is better", "before correction"),
    "bleu_corrected": ("BLEU, corrected", "higher is better", "after correction"),
    "word_error_rate": ("Word errors", "lower is better", "of the final captions, edits per word sent"),
    "word_error_rate_received": ("Word errors, received", "lower is better", "before correction"),
    "word_error_rate_corrected": ("Word errors, corrected", "lower is better", "after correction"),
}


def write_report(
    path: str | os.PathLike[str],
    result: Result,
    pictures: Mapping[str, NDArray[np.uint8]],
    constellations: Mapping[str, NDArray[np.complex64]],
    captions: Mapping[str, Sequence[str]] | None = None,
    box: Box | None = None,
    label: str = "",
) -> None:
    """Write the page.

    Args:
        path: where; its directory must exist.
        result: the numbers; its captions are shown block by block with their differences marked.
        pictures: uint8 pictures (H, W, 3) or (H, W) by name. "source", "received" (what the receiver shows),
            "slice_sent", "slice_received" and "mask" have their places; others follow under their names. Any may be
            missing. On an outage what comes from the receiver is not shown.
        constellations: received symbols by stream, complex64, scaled to unit mean power.
        captions: further lists of strings by name.
        box: the subject in the source, (x, y, width, height) in pixels.
        label: what the subject is.

    Raises:
        MultiscError: when the file cannot be written.
    """
    page = (
        _environment()
        .get_template("report.html")
        .render(_context(result, pictures, constellations, captions or {}, box, label))
    )
    write_atomically(path, page.encode("utf-8", "replace"))


def _context(
    result: Result,
    pictures: Mapping[str, NDArray[np.uint8]],
    constellations: Mapping[str, NDArray[np.complex64]],
    captions: Mapping[str, Sequence[str]],
    box: Box | None,
    label: str,
) -> dict[str, Any]:
    hidden = _FROM_RECEIVER if result.outage else ()
    shown = {name: picture for name, picture in pictures.items() if name not in hidden}
    source = shown.get("source")
    return {
        "result": result,
        "channel_name": result.channel.kind.upper()
        if result.channel.kind in ("awgn", "tdl")
        else result.channel.kind,
        "verdict": _verdict(result),
        "facts": _facts(result),
        "pictures": {name: _figure(shown[name]) if name in shown else None for name in _PLACED if name != "mask"},
        "veil": plots.mask_uri(shown["mask"]) if "mask" in shown else None,
        "box": box,
        "label": label,
        "blocks": _blocks(result, source),
        "more_pictures": {name: _figure(picture) for name, picture in shown.items() if name not in _PLACED},
        "more_captions": {name: [_cut(text) for text in texts] for name, texts in captions.items() if texts},
        "constellations": {
            stream.name: plots.constellation(constellations[stream.name], stream.modulation)
            for stream in result.streams
            if stream.name in constellations
        },
        "metrics": _metrics(result),
        "timings": _timings(result),
        "details": _details(result),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("multisc.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters.update(decibel=_decibel, count=_count, value=_value, rate=_rate)
    return environment


def _clean(value: Any) -> Any:
    """What the template is about to print; in text from the air or a file name control characters become U+FFFD."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "".join(c if c.isprintable() or c == _THIN else "\N{REPLACEMENT CHARACTER}" for c in value)
    return value


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CAPTION else text[: MAX_CAPTION - 1] + "…"


def _decibel(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", _THIN).replace("-", "−")


def _rate(errors: int | None, total: int | None) -> str:
    """Errors per bit, two digits."""
    if errors is None or not total:
        return "–"
    return f"{errors / total:.1e}".replace("e-0", "e−").replace("e-", "e−") if errors else "0"


def _value(value: Scalar) -> str:
    """A parameter or a counter as a person would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _count(value)
    if isinstance(value, float):
        return _count(int(value)) if value.is_integer() and abs(value) < 1e12 else f"{value:.5g}".replace("-", "−")
    return value


def _figure(picture: NDArray[np.uint8], side: int = plots.MAX_SHOWN_SIDE) -> dict[str, Any]:
    height, width = picture.shape[:2]
    return {"uri": plots.picture_uri(picture, side), "width": width, "height": height}


def _verdict(result: Result) -> str:
    """One sentence on what arrived."""
    delivered = [stream for stream in result.streams if stream.delivered]
    known = [s for s in delivered if s.bit_errors is not None and s.bits]
    errors, bits = sum(s.bit_errors or 0 for s in known), sum(s.bits or 0 for s in known)
    sentence = f"{len(delivered)} of {len(result.streams)} streams arrived"
    if known and errors == 0:
        sentence += ", without a wrong bit"
    elif known:
        sentence += f", {_count(errors)} of {_count(bits)} payload bits wrong after decoding ({_rate(errors, bits)})"
    return sentence + "."


def _facts(result: Result) -> list[dict[str, str]]:
    """The numbers at the top: label, value, unit, note."""
    channel, metrics = result.channel, result.metrics
    asked = sorted({stream.snr_db for stream in result.streams if stream.snr_db is not None})
    snr = _value(channel.snr_db) if channel.snr_db is not None else " / ".join(map(_value, asked)) or "–"
    known = {"measured": channel.snr_measured_db, "estimated": channel.snr_estimated_db}
    notes = [f"{_decibel(value)} {name}" for name, value in known.items() if value is not None]
    facts = [
        {"label": "SNR (Es/N0)", "value": snr, "unit": "dB", "note": ", ".join(notes)},
        {
            "label": "CBR",
            "value": f"{result.cbr:#.3g}",
            "unit": "",
            "note": f"about 1/{1 / result.cbr:,.0f}" if result.cbr else "",
        },
        {
            "label": "Channel uses",
            "value": _count(result.channel_uses),
            "unit": "",
            "note": f"{_count(result.channel_uses_total)} with pilots, headers, preambles",
        },
    ]
    for name, digits in (("psnr_db", 1), ("ms_ssim", 3), ("cosine", 3)):
        value = metrics.get(name)
        if value is not None:
            unit = "dB" if name == "psnr_db" else ""
            better = _METRICS[name][1]
            text = f"{value:.{digits}f}".replace("-", "−")
            facts.append({"label": _METRICS[name][0], "value": text, "unit": unit, "note": better})
    if metrics.get("bleu") is not None:
        before = metrics.get("bleu_received")
        note = "higher is better" if before is None else f"{before:.3f} before correction"
        facts.append({"label": "BLEU", "value": f"{metrics['bleu']:.3f}", "unit": "", "note": note})
    return facts


def _blocks(result: Result, source: NDArray[np.uint8] | None) -> list[dict[str, Any]]:
    """What became of each caption: its name, its part of the source, and its stages with differences marked."""
    text = result.text
    names = BLOCKS.get(len(text.sent), tuple(f"text {index + 1}" for index in range(len(text.sent))))
    parts = _quarters(source) if source is not None and len(text.sent) == 4 else [None] * len(text.sent)
    blocks = []
    for index, (name, sent, part) in enumerate(zip(names, text.sent, parts, strict=True)):
        stages = []
        before = None
        for stage in ("received", "corrected"):
            lines = getattr(text, stage)
            if index >= len(lines):
                continue
            pieces = compare(_cut(sent), _cut(lines[index]), before)
            wrong = sum(len((p.sent or p.words).split()) for p in pieces if p.kind not in ("same", "repaired"))
            stages.append({"name": stage, "pieces": pieces, "wrong": wrong, "empty": not lines[index].strip()})
            before = _cut(lines[index])
        figure = None if part is None else _figure(part, THUMBNAIL_SIDE)
        blocks.append(
            {"name": name, "sent": _cut(sent), "words": len(sent.split()), "stages": stages, "part": figure}
        )
    return blocks


def _quarters(image: NDArray[np.uint8]) -> list[NDArray[np.uint8] | None]:
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    return [
        image[top:bottom, left:right]
        for top, bottom in ((0, rows), (rows, image.shape[0]))
        for left, right in ((0, columns), (columns, image.shape[1]))
    ]


def _metrics(result: Result) -> list[dict[str, str | None]]:
    rows = []
    for name, value in result.metrics.items():
        label, better, meaning = _METRICS.get(name, (name, "", ""))
        text = None if value is None else f"{value:.2f}" if name.endswith("_db") else f"{value:.4f}"
        rows.append(
            {
                "label": label,
                "value": text and text.replace("-", "−"),
                "better": better,
                "meaning": meaning,
                "reason": result.metrics_reasons.get(name),
            }
        )
    return rows


def _timings(result: Result) -> list[dict[str, Any]]:
    longest = max(result.timings_s.values(), default=0.0) or 1.0
    return [
        {"name": name.replace("_", " "), "seconds": f"{seconds:.2f}", "percent": round(100 * seconds / longest, 1)}
        for name, seconds in result.timings_s.items()
    ]


def _details(result: Result) -> dict[str, dict[str, Scalar]]:
    channel = result.channel
    return {
        "Channel": {
            "kind": channel.kind,
            "seed": channel.seed,
            "sample rate, Hz": channel.sample_rate_hz,
            "carrier offset put in, Hz": channel.cfo_hz,
            "carrier offset found, Hz": channel.cfo_estimated_hz,
            **{name.replace("_", " "): value for name, value in channel.parameters.items()},
        },
        "Receiver": {name.replace("_", " "): value for name, value in result.receiver.items()},
        **(
            {"Radio": {name.replace("_", " "): value for name, value in result.radio.items()}} if result.radio else {}
        ),
        "Options": {name.replace("_", " "): value for name, value in result.options.items()},
        "Files": dict(result.files),
    }
