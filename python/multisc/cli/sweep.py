"""Send pictures by every system at several SNRs and tell how they compare, with confidence intervals.

The physical layer is that of the flowgraphs, without GNU Radio. Interrupt it and start it again: it goes on where it
was. Options of a system follow its name, so that one system can be measured in several ways.

examples:
  multisc sweep --images kodak/ --snr 0,5,10,20 --out sweep
  multisc sweep --images photo.png --snr 0:20:2 --system multi-sc --system bpg-ldpc,cbr=1/12,snr_db=10 --out sweep
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from multisc.cli import radio
from multisc.cli.arguments import image_files, option, options, seed, snr_values
from multisc.errors import BadInputError
from multisc.evaluation.sweep import SweepConfig, Variant, measure
from multisc.evaluation.sweep_report import SHOWN, write_report
from multisc.files import make_folder, printable
from multisc.inference.backend import Backend
from multisc.models.profile import fingerprint
from multisc.systems.registry import SYSTEMS, get_entry


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="a directory of images, or one image"
    )
    parser.add_argument("--snr", type=snr_values, required=True, metavar="DB", help="Es/N0: 0,5,10 or FROM:TO:STEP")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="sweep.json, sweep.csv, sweep.png")
    parser.add_argument(
        "--system",
        dest="variants",
        action="append",
        type=_variant,
        metavar="NAME[,OPTION=VALUE...]",
        help=f"may be repeated; default: all ({', '.join(SYSTEMS)})",
    )
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    radio.add_orthogonal(parser)
    radio.add_waveform(parser)
    radio.add_channel(parser)
    radio.add_models(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, write the files and print the means."""
    phy = radio.waveform(args, orthogonal=args.orthogonal)
    config = SweepConfig(
        variants=tuple(args.variants or [_variant(name) for name in SYSTEMS]),
        images=image_files(args.images),
        snr_db=args.snr,
        seed=args.seed,
        channel=radio.channel(args, None, phy.amplitude),
        phy=phy,
        models=args.inference or fingerprint(args.models),
    )
    make_folder(args.out)
    with (
        Backend(args.inference, args.models, args.inference_keys) as backend,
        tqdm(desc="sweep", unit="picture", disable=None, file=sys.stderr) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = measure(config, backend, args.out / "kept", progress)
    files = write_report({"command": shlex.join(["multisc", *args.argv]), **result}, args.out)
    print(f"{'system':<32} {'SNR dB':>6} {'outage':>6} {'CBR':>8} " + " ".join(f"{name:>10}" for name in SHOWN))
    for row in result["rows"]:
        means = [row["metrics"].get(name) for name in SHOWN]
        numbers = " ".join(f"{'-' if mean is None else format(mean['mean'], '.3f'):>10}" for mean in means)
        place = f"{row['system']:<32} {row['snr_db']:6g} {row['outage']:6.2f} {row['cbr']:#8.3g}"
        print(f"{place} {numbers}")
    print(", ".join(printable(file) for file in files))
    return 0


def _variant(text: str) -> Variant:
    """Read ``NAME,OPTION=VALUE,...``."""
    name, *pairs = text.split(",")
    try:
        get_entry(name)
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Variant(text, name, options([option(pair) for pair in pairs]))
