"""The files of a measured curve: JSON, CSV and plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from multisc.evaluation.curve import CAPACITY, ENVELOPE
from multisc.files import write_atomically
from multisc.systems.mcs import Mcs

_COLUMNS = ("curve", "snr_db", "mcs", "outage", "outage_low", "outage_high", "psnr_db", "ms_ssim", "bytes", "images")


def write_report(result: dict[str, Any], out: Path) -> list[Path]:
    """Write ``curve.json``, ``curve.csv`` and ``curve.png`` of what ``curve.measure`` returned.

    Raises:
        MultiscError: when a file cannot be written.
    """
    files = {
        "curve.json": json.dumps(result, indent=1).encode(),
        "curve.csv": _table(result["points"]).encode(),
        "curve.png": _plot(result),
    }
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]


def _table(points: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for point in points:
        low, high = point["outage_ci95"]
        writer.writerow({**point, "outage_low": low, "outage_high": high})
    return text.getvalue()


def _plot(result: dict[str, Any]) -> bytes:
    """PSNR, MS-SSIM and outage against SNR, one above the other."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves: dict[str, list[dict[str, Any]]] = {}
    for point in result["points"]:
        curves.setdefault(point["curve"], []).append(point)
    names = sorted(result["schemes"], key=lambda name: Mcs.parse(name).efficiency)
    figure = Figure(figsize=(9, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    shades = colormaps["viridis"].resampled(max(len(names), 2))
    for axis, key in zip(axes[:2], ("psnr_db", "ms_ssim"), strict=True):
        for index, name in enumerate(names):
            # A scheme is drawn where most pictures get through; its end is the cliff.
            drawn = [p for p in curves[name] if p[key] is not None and p["outage"] < 0.5]
            axis.plot(*_xy(drawn, key), color=shades(index), linewidth=1, marker=".", markersize=4)
        envelope = [p for p in curves[ENVELOPE] if p[key] is not None]
        style = {"color": "black", "linewidth": 2, "marker": "o", "markersize": 4, "drawstyle": "steps-post"}
        axis.plot(*_xy(envelope, key), label="best scheme", **style)
        bound = [p for p in curves[CAPACITY] if p[key] is not None]
        axis.plot(*_xy(bound, key), color="crimson", linestyle="--", label="BPG at capacity")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    for index, name in enumerate(names):
        axes[2].plot(*_xy(curves[name], "outage"), color=shades(index), marker=".", markersize=4, label=name)
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    axes[2].grid(alpha=0.3)
    axes[0].set_ylabel("PSNR (dB)")
    axes[1].set_ylabel("MS-SSIM")
    axes[2].set_ylabel("outage")
    axes[2].set_xlabel("SNR: Es/N0 per channel use (dB)")
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_title(
        f"BPG ({result['chroma']}) + 5G NR LDPC + QAM, AWGN, CBR {result['cbr']}, {len(result['images'])} images"
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _xy(points: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [point["snr_db"] for point in points], [point[key] for point in points]
