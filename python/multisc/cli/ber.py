"""Measure bit and frame error rates of a code and a modulation on the AWGN channel.

codes:
  nr:N:K          one 5G NR code block: K information bits, no CRC, rate-matched to N bits (TS 38.212)
  pyldpc:N:DV:DC  a regular Gallager code
  none            no code, frames of 960 bits

examples:
  multisc ber --code nr:1024:512 --decoder spa --schedule flooding --iterations 20 --ebn0 1.5
  multisc ber --code nr:1944:972 --decoder offset-minsum --schedule layered --modulation 16qam --ebn0 4 4.5 5 --json
  multisc ber --code none --modulation 64qam --ebn0 10
"""

from __future__ import annotations

import argparse
import json
import sys

from tqdm import tqdm

from multisc.cli.arguments import finite_float, seed
from multisc.errors import BadInputError
from multisc.phy.ldpc.decoder import ALGORITHMS, SCHEDULES
from multisc.phy.modulation import BITS_PER_SYMBOL, METHODS
from multisc.phy.montecarlo import ErrorRates, Link


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("--code", required=True, help="nr:N:K, pyldpc:N:DV:DC or none")
    parser.add_argument(
        "--ebn0", required=True, nargs="+", type=finite_float, metavar="DB", help="Eb/N0, one or several"
    )
    parser.add_argument("--modulation", choices=list(BITS_PER_SYMBOL), default="bpsk", help="default: %(default)s")
    parser.add_argument("--decoder", choices=list(ALGORITHMS), default="spa", help="default: %(default)s")
    parser.add_argument("--schedule", choices=SCHEDULES, default="flooding", help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=20, metavar="N", help="at most; default: %(default)s")
    parser.add_argument("--demapper", choices=METHODS, default="exact", help="soft bits; default: %(default)s")
    parser.add_argument(
        "--min-frame-errors", type=int, default=100, metavar="N", help="stop at this many; default: %(default)s"
    )
    parser.add_argument(
        "--max-frames", type=int, default=1_000_000, metavar="N", help="stop there in any case; default: %(default)s"
    )
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object per Eb/N0, each on its line")


def run(args: argparse.Namespace) -> int:
    """Simulate each Eb/N0 in turn."""
    if not all(-30 <= ebn0 <= 60 for ebn0 in args.ebn0):
        raise BadInputError(f"--ebn0 {' '.join(f'{ebn0:g}' for ebn0 in args.ebn0)}: must be -30 to 60 dB")
    link = Link(args.code, args.modulation, args.decoder, args.schedule, args.iterations, args.demapper)
    for number, ebn0 in enumerate(args.ebn0):
        rates = _simulate(link, ebn0, args)
        low, high = rates.ci95
        if args.json:
            print(json.dumps(_record(rates)), flush=True)
        else:
            if not number:
                print(f"{'Eb/N0 dB':>9} {'frames':>9} {'errors':>7} {'FER':>10} {'95 % interval':>23} {'BER':>10}")
            counts = f"{ebn0:9.2f} {rates.frames:9} {rates.frame_errors:7} {rates.fer:10.3e}"
            print(counts, f"{f'{low:.2e} .. {high:.2e}':>23} {rates.ber:10.3e}", flush=True)
    return 0


def _simulate(link: Link, ebn0: float, args: argparse.Namespace) -> ErrorRates:
    # tqdm leaves a pipe quiet when disable is None.
    with tqdm(
        total=args.min_frame_errors, unit="error", desc=f"{ebn0:g} dB", leave=False, disable=None, file=sys.stderr
    ) as bar:

        def show(rates: ErrorRates) -> None:
            bar.set_postfix_str(f"{rates.frames} frames")
            bar.update(min(rates.frame_errors, args.min_frame_errors) - bar.n)

        return link.simulate(ebn0, args.min_frame_errors, args.max_frames, args.seed, show)


def _record(rates: ErrorRates) -> dict[str, object]:
    return {
        "ebn0_db": rates.ebn0_db,
        "frames": rates.frames,
        "frame_errors": rates.frame_errors,
        "fer": rates.fer,
        "bit_errors": rates.bit_errors,
        "ber": rates.ber,
        "ci95": list(rates.ci95),
    }
