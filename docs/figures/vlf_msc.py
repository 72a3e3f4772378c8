"""VLF-MSC and its two baselines at equal channel uses: the numbers and the plot of docs/explanation/vlf-msc.md.

    .venv/bin/python docs/figures/vlf_msc.py

Sends captioned photographs that no text model was trained on over white noise, through the project's modulation, and
writes vlf_msc.json and vlf_msc.png beside this file. "Dealt out wrongly" is what the same outputs score against the
other photographs: what comes out when y is that of another picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import sacrebleu
from numpy.typing import NDArray

import multisc
from multisc.evaluation.descriptor import similarity
from multisc.phy.transport import channel_uses, demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import Encoded, ReceivedImage
from multisc.systems.registry import get_system
from multisc.training.data import CaptionedImage, load_caption_data, load_pixels

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data"
NAMES = ("vlf-msc", "text-only", "image-only")


def arrive(encoded: Encoded, snr_db: float, rng: np.random.Generator) -> ReceivedImage:
    """Send streams over white Gaussian noise at an Es/N0 in dB."""
    n0 = noise_variance(snr_db)
    streams = []
    for stream in encoded.streams:
        sent = modulate(stream)
        noise = np.sqrt(n0 / 2) * (rng.standard_normal((2, sent.symbols.size)).T @ [1, 1j])
        variance = np.full(sent.symbols.size, n0, np.float32)
        streams.append(demodulate(sent.descriptor, (sent.symbols + noise).astype(np.complex64), variance))
    return ReceivedImage(streams, encoded.side_info)


def bleu(texts: list[str], images: list[CaptionedImage]) -> float:
    """BLEU-4 of one sentence a picture against the human sentences."""
    longest = max(len(image.captions) for image in images)
    references: list = [[(*image.captions, *[None] * longest)[k] for image in images] for k in range(longest)]
    return sacrebleu.corpus_bleu(texts, references).score / 100.0


def score(shown: list[NDArray[np.uint8]], texts: list[str], sources: list, images: list[CaptionedImage]) -> dict:
    """Both outputs against their own photographs and against the others."""
    cosine = np.array([[similarity(source, picture) for picture in shown] for source in sources])
    count = len(shown)
    own = cosine.diagonal()
    wrong = [bleu(texts[shift:] + texts[:shift], images) for shift in range(1, count)]
    return {
        "cosine": float(own.mean()),
        "cosine_ci95": float(1.96 * own.std(ddof=1) / np.sqrt(count)),
        "cosine_wrong": float((cosine.sum() - own.sum()) / (count * (count - 1))),
        "top1": float((cosine.argmax(axis=0) == np.arange(count)).mean()),
        "bleu": bleu(texts, images),
        "bleu_wrong": float(np.mean(wrong)),
        "bleu_wrong_highest": float(np.max(wrong)),
        "distinct_texts": len(set(texts)),
    }


def plot(rows: list[dict], uses: int) -> None:
    """Draw picture and text scores against the SNR."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label in zip(axes, ("cosine", "bleu"), ("picture: cosine", "text: BLEU-4"), strict=True):
        for colour, name in zip(("C0", "C1", "C2"), NAMES, strict=True):
            own = [row for row in rows if row["system"] == name]
            snrs = [row["snr_db"] for row in own]
            bars = [row["cosine_ci95"] for row in own] if key == "cosine" else None
            axis.errorbar(snrs, [r[key] for r in own], bars, color=colour, marker="o", capsize=3, label=name)
            wrong = [row[f"{key}_wrong"] for row in own]
            axis.plot(snrs, wrong, color=colour, ls=":", label=f"{name}, dealt out wrongly")
        axis.set_xlabel("Es/N0, dB")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    figure.suptitle(f"{uses} channel uses a picture, white noise, embedded models")
    figure.savefig(HERE / "vlf_msc.png", dpi=110)


def main() -> None:
    """Run every system at every SNR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 5.0, 10.0], metavar="DB")
    parser.add_argument("--uses", type=int, default=256, help="channel uses a picture; default: %(default)s")
    parser.add_argument("--count", type=int, default=24, help="photographs; default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps; default: %(default)s")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR")
    args = parser.parse_args()
    images = list(load_caption_data(args.data).held_out[: args.count])
    sources = [load_pixels(args.data, image.path) for image in images]
    rows = []
    for name in NAMES:
        system = get_system(name)
        sent = [system.encode(source, {"channel_uses": args.uses}) for source in sources]
        used = [sum(map(channel_uses, encoded.streams)) for encoded in sent]
        for snr_db in args.snr:
            shown, texts = [], []
            for index, encoded in enumerate(sent):
                received = arrive(encoded, snr_db, np.random.default_rng(index))
                result = system.decode(received, {"steps": args.steps, "seed": index})
                assert result.image is not None, result.outage_reason
                shown.append(result.image)
                texts.append(result.text["received"][0])
            row = {"system": name, "snr_db": snr_db, "channel_uses": float(np.mean(used))}
            row |= {key: round(value, 4) for key, value in score(shown, texts, sources, images).items()}
            rows.append(row)
            print(row, flush=True)
    facts = {"version": multisc.__version__, "photographs": args.count, "steps": args.steps, "uses": args.uses}
    (HERE / "vlf_msc.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    plot(rows, args.uses)


if __name__ == "__main__":
    main()
