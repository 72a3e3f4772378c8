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
from scipy.stats import t

from multisc.channel import ChannelConfig
from multisc.evaluation.descriptor import PARTS, describe
from multisc.evaluation.metrics import psnr_db
from multisc.evaluation.sweep import pass_through
from multisc.images import load_image
from multisc.phy.config import PhyConfig
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


def interval(values: NDArray[np.float64]) -> list[float]:
    """The mean over pictures and its 95 % confidence interval (Student's t)."""
    mean, half = values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [round(float(x), 4) for x in (mean, mean - half, mean + half)]


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
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    args = parser.parse_args()
    system, phy = MultiSc("multi-sc", 4, args.models), PhyConfig()
    paths = sorted(args.images.glob("*.png"))
    sources = [load_image(path) for path in paths]
    received, captions = [], []
    for number, source in enumerate(sources):
        encoded = system.encode(source, {})
        noise = time_noise_variance(args.snr, phy.amplitude)
        arrived = pass_through(encoded, system.name, phy, ChannelConfig(noise_variance=noise, seed=number)).received
        if arrived is None:
            raise SystemExit(f"{paths[number].name}: outage at {args.snr:g} dB")
        received.append(arrived)
        captions.append(encoded.preview["captions"])
    wanted = np.stack([vector(source) for source in sources])
    own: dict[str, NDArray[np.float64]] = {}
    decibel: dict[str, NDArray[np.float64]] = {}
    report: dict[str, dict] = {}
    shown: dict[str, list[NDArray[np.uint8]]] = {}
    for name, change in VARIANTS.items():
        cosines, nearest, psnr = [], [], []
        for seed in range(args.seeds):
            pictures = []
            for number, (arrived, source) in enumerate(zip(received, sources, strict=True)):
                changed = change(arrived, received[(number + 1) % len(received)])
                picture = system.decode(changed, {"seed": seed}).image
                if picture is None:
                    raise SystemExit(f"{paths[number].name}, {name}: nothing was decoded")
                pictures.append(picture)
                similar = wanted @ vector(picture)
                cosines.append(similar)
                nearest.append(int(similar.argmax()) == number)
                psnr.append(psnr_db(source, picture))
            shown.setdefault(name, pictures)
        table = np.array(cosines).reshape(args.seeds, len(sources), len(sources))
        own[name] = table.diagonal(axis1=1, axis2=2).mean(0)
        others = (table.mean(0).sum(1) - own[name]) / (len(sources) - 1)
        decibel[name] = np.array(psnr).reshape(args.seeds, -1).mean(0)
        report[name] = {
            "cosine": interval(own[name]),
            "cosine_others": round(float(others.mean()), 4),
            "retrieval_top1": round(float(np.mean(nearest)), 4),
            "psnr_db": interval(decibel[name]),
        }
        if name != "as received":
            report[name]["cosine_lost"] = interval(own["as received"] - own[name])
            report[name]["psnr_lost_db"] = interval(decibel["as received"] - decibel[name])
            report[name]["images_worse"] = int((own["as received"] > own[name]).sum())
        print(f"{name}: {report[name]}", flush=True)
    document = {
        "snr_db": args.snr,
        "seeds": args.seeds,
        "images": [path.stem for path in paths],
        "variants": report,
        "cosine_by_image": {name: [round(float(v), 4) for v in values] for name, values in own.items()},
        "captions_sent": captions,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ablation.json").write_text(json.dumps(document, indent=1) + "\n")
    some = list(range(0, len(sources), 3))
    pick = {name: [row[k] for k in some] for name, row in shown.items()}
    sheet([sources[k] for k in some], pick).quantize(128).save(args.out / "ablation.png", optimize=True)


if __name__ == "__main__":
    main()
