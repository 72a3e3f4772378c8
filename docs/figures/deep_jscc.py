"""deep-jscc on the Kodak images: the numbers and the plot of docs/explanation/deep-jscc.md.

    .venv/bin/python docs/figures/deep_jscc.py            measure, then draw
    .venv/bin/python docs/figures/deep_jscc.py --draw     draw what was measured before

Every image is encoded, modulated, sent over white Gaussian noise, demodulated and decoded, as the flowgraph does it,
but without OFDM and with the true SNR for its estimate. Writes deep_jscc.json and deep_jscc.png beside this file. The
curve of bpg-ldpc is that of bpg_ldpc_kodak.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from multisc.images import load_image
from multisc.phy.transport import demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import ReceivedImage
from multisc.systems.deep_jscc import DeepJscc, deep_jscc

HERE = Path(__file__).parent
KODAK = HERE.parents[2] / "shared" / "data" / "kodak24"
CBRS = ("1/24", "1/12", "1/6")
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
ONE_ENCODER = ("1/12", 10.0)  # also: a transmitter that expects this whatever the channel
PUBLISHED = (("1/24", 1.0), ("1/12", 1.0))  # further points that others report


def send(system: DeepJscc, image: np.ndarray, cbr: str, expected_db: float, snr_db: float, seed: int) -> float:
    """Return the PSNR in dB of an image, uint8 (H, W, 3), at an Es/N0 of ``snr_db``."""
    rng = np.random.default_rng([seed, round(100 + snr_db)])
    encoded = system.encode(image, {"cbr": cbr, "snr_db": expected_db})
    sent = modulate(encoded.streams[0])
    count = sent.symbols.size
    variance = noise_variance(snr_db)
    noise = np.sqrt(variance / 2) * (rng.standard_normal(count) + 1j * rng.standard_normal(count))
    noisy = (sent.symbols + noise).astype(np.complex64)
    stream = demodulate(sent.descriptor, noisy, np.full(count, variance, np.float32))
    shown = system.decode(ReceivedImage([stream], encoded.side_info), {}).image
    assert shown is not None
    return -10.0 * math.log10(np.mean((shown / 255.0 - image / 255.0) ** 2))


def measure(images: Path) -> None:
    """Write deep_jscc.json."""
    system = deep_jscc("embedded")
    paths = sorted(images.glob("*.png"))
    points: list[tuple[str, float, float | None]] = [(cbr, snr_db, None) for cbr in CBRS for snr_db in SNRS_DB]
    points += [(ONE_ENCODER[0], snr_db, ONE_ENCODER[1]) for snr_db in SNRS_DB]
    points += [(cbr, snr_db, None) for cbr, snr_db in PUBLISHED]
    rows = []
    for cbr, snr_db, expected_db in points:
        expected = snr_db if expected_db is None else expected_db
        found = [send(system, load_image(p), cbr, expected, snr_db, seed) for seed, p in enumerate(paths)]
        row = {"cbr": cbr, "snr_db": snr_db, "expected_db": expected_db, "psnr_db": round(float(np.mean(found)), 3)}
        print(row, flush=True)
        rows.append(row | {"each": [round(value, 3) for value in found]})
        (HERE / "deep_jscc.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def draw() -> None:
    """Write deep_jscc.png."""
    rows = json.loads((HERE / "deep_jscc.json").read_text())["rows"]
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for cbr, colour in zip(CBRS, ("#7fb7be", "#0e8a96", "#07414a"), strict=True):
        points = [(r["snr_db"], r["psnr_db"]) for r in rows if r["cbr"] == cbr and r["expected_db"] is None]
        points.sort()
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"deep-jscc, CBR {cbr}")
    points = sorted((r["snr_db"], r["psnr_db"]) for r in rows if r["expected_db"] is not None)
    label = f"deep-jscc, CBR {ONE_ENCODER[0]}, transmitter expects {ONE_ENCODER[1]:g} dB"
    axes.plot(*zip(*points, strict=True), "o:", color="#0e8a96", markerfacecolor="white", label=label)
    with open(HERE / "bpg_ldpc_kodak.csv", newline="") as file:
        digital = [r for r in csv.DictReader(file) if r["curve"] == "1/2:16qam"]
    through = [(float(r["snr_db"]), float(r["psnr_db"])) for r in digital if float(r["outage"]) <= 0.01]
    axes.plot(*zip(*through, strict=True), "-", color="#c0562f", label="bpg-ldpc, CBR 1/12, 1/2:16qam")
    axes.plot([through[0][0]] * 2, [18, through[0][1]], ":", color="#c0562f")
    axes.text(through[0][0] - 0.2, 18.6, "bpg-ldpc: outage", ha="right", color="#c0562f", fontsize=8)
    axes.set(xlabel="SNR, Es/N0 per channel use (dB)", ylabel="mean PSNR of 24 Kodak images (dB)", xlim=(-6, 21))
    axes.set_ylim(18, 41)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(HERE / "deep_jscc.png", dpi=110)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=KODAK, metavar="DIR")
    parser.add_argument("--draw", action="store_true", help="only draw")
    args = parser.parse_args()
    if not args.draw:
        measure(args.images)
    draw()


if __name__ == "__main__":
    main()
