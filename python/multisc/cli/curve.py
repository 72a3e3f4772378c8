"""Measure quality against SNR of the digital reference chain: BPG, 5G NR LDPC, QAM on the AWGN channel.

Each modulation and coding scheme is a curve of its own; the best of them at each SNR is the envelope; BPG at the
capacity of the channel is the bound. docs/explanation/bpg-ldpc.md has every definition. A measurement that was
interrupted resumes when the command runs again.

examples:
  multisc curve bpg-ldpc --images kodak/ --cbr 1/12 --snr 0:20:1 --out curve-1-12
  multisc curve bpg-ldpc --images photo.png --cbr 1/6 --snr 4:12:0.25 --mcs 1/2:16qam,2/3:16qam --out cliff
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from multisc.cli.arguments import image_files, positive, seed, snr_values
from multisc.codecs.bpg.encoder import FORMATS
from multisc.errors import MultiscError
from multisc.evaluation.curve import CurveConfig, measure
from multisc.evaluation.curve_report import write_report
from multisc.files import printable
from multisc.systems.bpg_ldpc import BpgLdpcOptions
from multisc.systems.mcs import LITERATURE, Mcs, table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("system", choices=["bpg-ldpc"], help="the chain")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="a directory of images, or one image"
    )
    parser.add_argument("--cbr", required=True, metavar="RATIO", help="channel uses over 3 H W, such as 1/12")
    parser.add_argument("--snr", type=snr_values, required=True, metavar="DB", help="Es/N0: FROM:TO:STEP, or 0,5,10")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="curve.json, curve.csv, curve.png")
    parser.add_argument(
        "--mcs",
        default="literature",
        metavar="LIST",
        help="literature (rates 1/3, 1/2, 2/3 with 4, 16, 64-QAM; default), all, or some: 1/2:16qam,3/4:64qam",
    )
    parser.add_argument("--chroma", choices=list(FORMATS), default="420", help="default: %(default)s")
    parser.add_argument(
        "--frames", type=positive, default=100, metavar="N", help="streams per scheme and SNR; default: %(default)s"
    )
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    parser.add_argument("--jobs", type=positive, default=0, metavar="N", help="processes; default: one per core")


def run(args: argparse.Namespace) -> int:
    """Measure, write the files and print the envelope."""
    BpgLdpcOptions(cbr=args.cbr, mcs=str(Mcs("1/2", "qpsk")), chroma=args.chroma)  # checks them
    config = CurveConfig(
        images=image_files(args.images),
        cbr=args.cbr,
        snr_db=args.snr,
        schemes=_schemes(args.mcs),
        chroma=args.chroma,
        frames=args.frames,
        seed=args.seed,
    )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MultiscError(f"{printable(args.out)}: cannot be made: {error.strerror}") from error
    with tqdm(desc="curve", unit="task", disable=None, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = measure(config, args.out / "kept", args.jobs, progress)
    files = write_report(result, args.out)
    print(f"{'SNR dB':>7} {'curve':<16} {'mcs':<10} {'PSNR dB':>8} {'MS-SSIM':>8} {'outage':>7}")
    for point in result["points"]:
        if point["curve"] not in config.schemes:
            numbers = " ".join(
                f"{'-' if value is None else format(value, '.3f'):>8}"
                for value in (point["psnr_db"], point["ms_ssim"])
            )
            name = f"{point['curve']:<16} {point['mcs']:<10}"
            print(f"{point['snr_db']:7.2f} {name} {numbers} {point['outage']:7.3f}")
    print(", ".join(printable(file) for file in files))
    return 0


def _schemes(text: str) -> tuple[str, ...]:
    if text == "literature":
        return LITERATURE
    if text == "all":
        return tuple(table())
    return tuple(dict.fromkeys(str(Mcs.parse(part.strip())) for part in text.split(",")))
