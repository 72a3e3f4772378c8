"""What captions and slice each add to Multi-SC: the tables of docs/results/ablation.md.

    .venv/bin/python docs/figures/ablation.py --snr 10 --seeds 2

Every Kodak image is encoded, sent over white noise and decoded as received, with the captions emptied, with the
captions of the next image, and without its slice. Writes ablation.json and ablation.png beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.channel import ChannelConfig
from multisc.cli.arguments import option
from multisc.evaluation import effnet
from multisc.evaluation.descriptor import PARTS, describe
from multisc.evaluation.metrics import psnr_db
from multisc.evaluation.sweep import pass_through
from multisc.images import load_image
from multisc.phy.config import PhyConfig
from multisc.phy.transport import channel_uses
from multisc.phy.units import time_noise_variance
from multisc.streams import ReceivedImage, ReceivedStream
from multisc.systems.multi_sc import MultiSc

HERE = Path(__file__).parent
KODAK = HERE.parents[2] / "shared" / "data" / "kodak24"
SLICE = "slice"
Variant = Callable[[ReceivedImage, ReceivedImage], ReceivedImage]


def _without(received: ReceivedImage, lost: Callable[[ReceivedStream], bool]) -> ReceivedImage:
    streams = [replace(s, delivered=False) if lost(s) else s for s in received.streams]
    return replace(received, streams=streams)


def _with_texts_of(received: ReceivedImage, other: ReceivedImage) -> ReceivedImage:
    texts = {s.name: s for s in other.streams if s.name != SLICE}
    return replace(received, streams=[texts.get(s.name, s) for s in received.streams])


VARIANTS: dict[str, Variant] = {
    "as received": lambda received, _: received,
    "empty captions": lambda received, _: _without(received, lambda s: s.name != SLICE),
    "captions of the next image": _with_texts_of,
    "empty slice": lambda received, _: _without(received, lambda s: s.name == SLICE),
}


def vector(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The unit vectors of the descriptor's parts, end to end, so that a dot product is the metric ``cosine``."""
    parts = describe(picture)
    units = [parts[part] / max(1e-9, float(np.linalg.norm(parts[part]))) for part in PARTS]
    return np.concatenate(units) / np.sqrt(len(PARTS))


JUDGES: dict[str, Callable[[NDArray[np.uint8]], NDArray]] = {"effnet_cosine": effnet.vector, "cosine": vector}


def interval(values: NDArray[np.float64]) -> list[float]:
    """The mean over pictures and its 95 % confidence interval (bootstrap of the pictures, 10,000 draws)."""
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return [round(float(x), 4) for x in (values.mean(), low, high)]


def sheet(sources: list[NDArray[np.uint8]], shown: dict[str, list[NDArray[np.uint8]]]) -> Image.Image:
    """Sources in the first row, each variant's pictures below."""
    rows = [sources, *shown.values()]
    width, height = 180, 120
    canvas = Image.new("RGB", (width * len(sources), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            small = Image.fromarray(picture)
            small.thumbnail((width - 4, height - 4), Image.Resampling.LANCZOS)
            canvas.paste(small, (x * width + (width - small.width) // 2, y * height + (height - small.height) // 2))
    return canvas


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snr", type=float, default=10.0, metavar="DB")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="of the diffusion; default: %(default)s")
    parser.add_argument("--images", type=Path, default=KODAK, metavar="DIR")
    parser.add_argument("--models", default="embedded")
    parser.add_argument("--set", action="append", default=[], type=option, metavar="NAME=VALUE", help="of the system")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    args = parser.parse_args()
    options = dict(args.set)
    system, phy = MultiSc("multi-sc", 4, args.models), PhyConfig()
    paths = sorted(args.images.glob("*.png"))
    sources = [load_image(path) for path in paths]
    received, captions, ratios = [], [], []
    for number, source in enumerate(sources):
        encoded = system.encode(source, options)
        ratios.append(sum(map(channel_uses, encoded.streams)) / source.size)
        noise = time_noise_variance(args.snr, phy.amplitude)
        arrived = pass_through(encoded, system.name, phy, ChannelConfig(noise_variance=noise, seed=number)).received
        if arrived is None:
            raise SystemExit(f"{paths[number].name}: outage at {args.snr:g} dB")
        received.append(arrived)
        captions.append(encoded.preview["captions"])
    wanted = {name: np.stack([judge(source) for source in sources]) for name, judge in JUDGES.items()}
    own: dict[str, dict[str, NDArray[np.float64]]] = {}
    report: dict[str, dict] = {}
    shown: dict[str, list[NDArray[np.uint8]]] = {}
    for name, change in VARIANTS.items():
        alike: dict[str, list[NDArray]] = {judge: [] for judge in JUDGES}
        psnr = []
        for seed in range(args.seeds):
            pictures = []
            for number, (arrived, source) in enumerate(zip(received, sources, strict=True)):
                changed = change(arrived, received[(number + 1) % len(received)])
                picture = system.decode(changed, {"seed": seed, **options}).image
                if picture is None:
                    raise SystemExit(f"{paths[number].name}, {name}: nothing was decoded")
                pictures.append(picture)
                for judge, look in JUDGES.items():
                    alike[judge].append(wanted[judge] @ look(picture))
                psnr.append(psnr_db(source, picture))
            shown.setdefault(name, pictures)
        tables = {judge: np.array(a).reshape(args.seeds, len(sources), len(sources)) for judge, a in alike.items()}
        own[name] = {judge: table.diagonal(axis1=1, axis2=2).mean(0) for judge, table in tables.items()}
        own[name]["psnr_db"] = np.array(psnr).reshape(args.seeds, -1).mean(0)
        report[name] = {measure: interval(values) for measure, values in own[name].items()}
        for judge, table in tables.items():
            others = (table.mean(0).sum(1) - own[name][judge]) / (len(sources) - 1)
            report[name][f"{judge}_others"] = round(float(others.mean()), 4)
            nearest = table.argmax(2) == np.arange(len(sources))
            report[name][f"retrieval_top1_by_{judge}"] = round(float(nearest.mean()), 4)
        if name != "as received":
            for measure, values in own[name].items():
                lost = own["as received"][measure] - values
                report[name][f"{measure}_lost"] = interval(lost)
                report[name][f"images_worse_by_{measure}"] = int((lost > 0).sum())
        print(f"{name}: {report[name]}", flush=True)
    document = {
        "snr_db": args.snr,
        "options": options,
        "cbr": round(float(np.mean(ratios)), 5),
        "seeds": args.seeds,
        "images": [path.stem for path in paths],
        "variants": report,
        "by_image": {
            name: {measure: [round(float(v), 4) for v in values] for measure, values in measures.items()}
            for name, measures in own.items()
        },
        "captions_sent": captions,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ablation.json").write_text(json.dumps(document, indent=1) + "\n")
    some = list(range(0, len(sources), 3))
    pick = {name: [row[k] for k in some] for name, row in shown.items()}
    sheet([sources[k] for k in some], pick).quantize(128).save(args.out / "ablation.png", optimize=True)


if __name__ == "__main__":
    main()
