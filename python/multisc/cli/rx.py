"""Receive the images in a recording: any length, any level, any number of bursts, silence between them.

Writes DIR/recording.json with what was found, and for each image DIR/<image id>/result.json and, when there is a
picture to show, received.png. With --streams-only no models are needed: then received.npz holds the received bits or
coefficients, the soft bits and the symbols of each stream.

examples:
  multisc rx photo.sigmf-meta --out received
  multisc rx hackrf.ci8 --sample-rate 2e6 --out received
  multisc rx photo.sigmf-meta --out received --streams-only
  multisc rx photo.sigmf-meta --out received --inference tcp://127.0.0.1:5555 --set steps=10
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from multisc.cli import radio
from multisc.cli.arguments import finite_float, options, seed
from multisc.errors import BadInputError
from multisc.files import make_folder, printable, write_atomically
from multisc.inference.backend import Backend
from multisc.phy.preamble import preamble_of
from multisc.recording import FORMATS, open_recording
from multisc.transmission.reception import Finisher, Reception, Source, found


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("recording", type=Path, help=".sigmf-meta, .sigmf-data, or a raw .cf32, .ci16, .ci8, .cu8")
    parser.add_argument("--out", type=Path, default=Path("received"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--format", choices=list(FORMATS), help="of a raw file; default: by its ending")
    parser.add_argument("--sample-rate", type=finite_float, metavar="HZ", help="of a raw file, to give offsets in Hz")
    parser.add_argument("--streams-only", action="store_true", help="write received streams, decode no pictures")
    parser.add_argument("--seed", type=seed, default=0, help="of the models; default: %(default)s")
    radio.add_waveform(parser)
    radio.add_inference(parser)


def run(args: argparse.Namespace) -> int:
    """Receive, decode, write."""
    config = radio.waveform(args)
    recording = open_recording(args.recording, args.format, args.sample_rate)
    shortest = preamble_of(config).length + 2 * config.symbol_samples
    if recording.count < shortest:
        raise BadInputError(
            f"{printable(args.recording)}: {recording.count} samples, the shortest burst has more than {shortest}"
        )
    for note in recording.notes:
        _say(note)
    make_folder(args.out)
    reception = Reception(config)
    with (
        Backend(args.inference, args.models, args.inference_keys, on_progress=_say) as backend,
        tqdm(
            total=recording.count, unit="sample", unit_scale=True, leave=False, disable=None, file=sys.stderr
        ) as bar,
    ):
        source = Source("recording", recording.sample_rate, {"recording": str(args.recording)})
        finisher = Finisher(
            args.out, config, source, None if args.streams_only else backend, options(args.options), args.seed, _say
        )
        for block in recording.blocks():
            for image, uses in reception.push(block):
                finisher.finish(image, uses, reception)
            bar.update(block.size)
        for image, uses in reception.flush():
            finisher.finish(image, uses, reception)
    counters = reception.counters()
    report = {
        "recording": str(args.recording),
        "sample_rate_hz": recording.sample_rate,
        **counters,
        "images": finisher.summary,
    }
    _write_json(args.out / "recording.json", report)
    what = found(len(finisher.summary), counters)
    print(f"{printable(args.recording)}: {recording.count} samples: {what}")
    return 0


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")


def _say(line: str) -> None:
    tqdm.write(f"multisc rx: {line}", file=sys.stderr)  # which keeps clear of the progress bar
