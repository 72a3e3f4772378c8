"""The files of a sweep: JSON, CSV and plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from multisc.files import write_atomically

# What is plotted and printed, with the label of its axis.
SHOWN = {
    "psnr_db": "PSNR (dB)",
    "ms_ssim": "MS-SSIM",
    "cosine": "cosine similarity",
    "effnet_cosine": "EfficientNet cosine",
    "bleu": "BLEU of the text",
}


def write_report(result: dict[str, Any], out: Path) -> list[Path]:
    """Write ``sweep.json``, ``sweep.csv`` and ``sweep.png`` of what ``sweep.measure`` returned.

    Raises:
        MultiscError: when a file cannot be written.
    """
    files = {
        "sweep.json": _json(result).encode(),
        "sweep.csv": _table(result["rows"]).encode(),
        "sweep.png": _plot(result),
    }
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]


def _json(result: dict[str, Any]) -> str:
    """The result with a line for each row and each picture, which keeps a thousand of them readable."""
    parts = []
    for name, value in result.items():
        if name in ("rows", "pictures"):
            lines = ",\n  ".join(json.dumps(item, allow_nan=False) for item in value)
            parts.append(f' "{name}": [\n  {lines}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value, allow_nan=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _table(rows: list[dict[str, Any]]) -> str:
    names = sorted({name for row in rows for name in row["metrics"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["system", "snr_db", "pictures", "outage", "outage_low", "outage_high", "cbr", "channel_uses_total"]
    writer.writerow(head + [column for name in names for column in (name, f"{name}_low", f"{name}_high")])
    for row in rows:
        line = [row["system"], row["snr_db"], row["pictures"], row["outage"], *row["outage_ci95"], row["cbr"]]
        line.append(row["channel_uses_total"])
        for name in names:
            found = row["metrics"].get(name, {"mean": None, "ci95": None})
            line += [found["mean"], *(found["ci95"] or (None, None))]
        writer.writerow(line)
    return text.getvalue()


def _plot(result: dict[str, Any]) -> bytes:
    """Outage and each metric against SNR, a curve per system with its confidence band."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        rows.setdefault(row["system"], []).append(row)
    shown = [name for name in SHOWN if any(name in row["metrics"] for row in result["rows"])]
    figure = Figure(figsize=(9, 2.6 * (1 + len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + len(shown), 1, sharex=True, squeeze=False)[:, 0]
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for index, (system, points) in enumerate(rows.items()):
        style: dict[str, Any] = {"color": colours[index % len(colours)], "marker": "osv^D<>"[index % 7]}
        style |= {"markersize": 4, "linewidth": 1.2, "linestyle": "-" if index < len(colours) else "--"}
        for axis, name in zip(axes, shown, strict=False):
            drawn = [(point["snr_db"], point["metrics"][name]) for point in points if name in point["metrics"]]
            axis.plot([snr for snr, _ in drawn], [found["mean"] for _, found in drawn], label=system, **style)
            bands = [(snr, *found["ci95"]) for snr, found in drawn if found["ci95"]]
            if bands:
                axis.fill_between(*zip(*bands, strict=True), color=style["color"], alpha=0.12, linewidth=0)
        axes[-1].plot([p["snr_db"] for p in points], [p["outage"] for p in points], label=system, **style)
    for axis, name in zip(axes, [*shown, "outage"], strict=True):
        axis.set_ylabel(SHOWN.get(name, "outage rate"))
        # The means set the range: the interval of two pictures would reach to nonsense, such as a BLEU of 6.
        means = [mean for line in axis.get_lines() for mean in line.get_ydata()]
        if means:
            beyond = 3.0 if name == "psnr_db" else 0.03
            axis.set_ylim(min(means if name == "psnr_db" else [0, *means]) - beyond, max(1, *means) + beyond)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("SNR: Es/N0 per channel use (dB)")
    kind, count = result["channel"]["kind"], len(result["images"])
    axes[0].set_title(f"{kind} channel, {count} picture{'s' * (count != 1)}, mean and 95 % confidence band")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
