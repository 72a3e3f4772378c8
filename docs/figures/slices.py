"""How the slice arrives by each codec at equal channel uses: the tables of docs/multi-sc.md.

    .venv/bin/python docs/figures/slices.py

The box of each Kodak image's subject is coded within the channel uses of a slice of 64 pixels at 6 bits a colour
sample in QPSK, crosses white noise, is decoded and enlarged to the box. Writes slices.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.codecs import pixels
from multisc.codecs.quantise import Quantiser
from multisc.evaluation.effnet import vector
from multisc.images import load_image
from multisc.models.jscc import Jscc
from multisc.models.profile import load_profile
from multisc.models.segmenter import Segmenter
from multisc.models.slice_denoiser import SliceDenoiser
from multisc.phy.transport import channel_uses, demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import ReceivedStream, Stream
from multisc.systems.slices import MAX_SIDE, USUAL_SIDE, BpgSlices, JsccSlices, PixelSlices, SliceCodec

HERE = Path(__file__).parent
KODAK = HERE.parents[2] / "shared" / "data" / "kodak24"
SNRS_DB = (-5, 0, 5, 10, 15)
BITS = 6
BPG = (("qpsk", "nr:1/2"), ("16qam", "nr:1/2"))


def cross(stream: Stream, snr_db: float, seed: int) -> ReceivedStream:
    """Send a stream over white noise."""
    sent = modulate(stream)
    variance = noise_variance(snr_db)
    noise = np.random.default_rng(seed).standard_normal((2, sent.symbols.size)) * np.sqrt(variance / 2.0)
    noisy = (sent.symbols + noise[0] + 1j * noise[1]).astype(np.complex64)
    return demodulate(sent.descriptor, noisy, np.full(noisy.size, variance, np.float32))


def psnr(shown: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """PSNR in dB of a slice enlarged to its box."""
    size = (wanted.shape[1], wanted.shape[0])
    large = np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.LANCZOS), np.float64)
    return float(10 * np.log10(255.0**2 / np.mean((large - wanted) ** 2)))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="embedded")
    parser.add_argument("--images", type=Path, default=KODAK, metavar="DIR")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    args = parser.parse_args()
    profile = load_profile(args.models)
    segmenter, denoiser = profile.load(Segmenter, "fcn"), profile.load(SliceDenoiser, "slice-denoiser")
    jscc = profile.load(Jscc, "deep-jscc")
    plain = PixelSlices(BITS, "qpsk", "none")
    rows: dict[str, dict[str, list[list[float]]]] = {}
    paths = sorted(args.images.glob("*.png"))
    if not paths:
        raise SystemExit(f"--images {args.images}: no PNG files are there")
    for number, path in enumerate(paths):
        image = load_image(path)
        box = segmenter.segment(image).box
        x, y, w, h = box
        wanted = image[y : y + h, x : x + w]
        seen = vector(wanted)
        uses = channel_uses(plain.stream(pixels.crop(image, box, USUAL_SIDE)))
        codecs: dict[str, SliceCodec] = {
            "pixels": replace(plain, denoiser=denoiser),
            "jscc": JsccSlices(jscc, 10),
            **{f"bpg {modulation} {code}": BpgSlices(modulation, code) for modulation, code in BPG},
        }
        for name, codec in codecs.items():
            coded = codec.encode(image, box, USUAL_SIDE if name == "pixels" else MAX_SIDE, uses)
            assert channel_uses(coded.stream) <= uses
            size = (coded.piece.shape[1], coded.piece.shape[0])
            for snr_db in SNRS_DB:
                received = cross(coded.stream, snr_db, number)
                variants = {name: codec.decode(received, size)}
                if name == "pixels":
                    decided = Quantiser(BITS, 1.0).dequantise((received.llrs < 0).astype(np.uint8))
                    variants = {
                        "pixels, hard decision": plain.decode(replace(received, data=decided), size),
                        "pixels, each by itself": plain.decode(received, size),
                        "pixels, denoised": variants[name],
                    }
                for variant, made in variants.items():
                    found = rows.setdefault(variant, {}).setdefault(str(snr_db), [])
                    if made is None:  # an outage: the box stays grey
                        grey = np.full_like(wanted, 128)
                        found.append([psnr(grey, wanted), float(vector(grey) @ seen), 0.0, 0.0])
                        continue
                    error = float(np.sqrt(np.mean((made.piece.astype(float) - coded.piece) ** 2))) / 255.0
                    found.append([psnr(made.piece, wanted), float(vector(made.piece) @ seen), error, made.error])
    table = {
        name: {snr: [round(float(v), 4) for v in np.mean(found, 0)] for snr, found in by_snr.items()}
        for name, by_snr in rows.items()
    }
    for name, by_snr in table.items():
        values = (f"{snr}: {v[0]:5.2f} dB {v[1]:.3f} ({v[2]:.3f}, {v[3]:.3f})" for snr, v in by_snr.items())
        print(f"{name:24}", *values, sep="  ")
    meaning = ["psnr_db in the box", "effnet_cosine of the box", "rms error of the slice", "expected rms error"]
    (args.out / "slices.json").write_text(json.dumps({"columns": meaning, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
