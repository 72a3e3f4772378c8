"""Transmit an image into a recording, which a radio can play or `multisc rx` receive.

Without --snr the recording is clean. With --snr it passes a simulated channel: one number for all streams, or one
per stream, in a common noise that fits the strongest.

examples:
  multisc tx photo.jpg --out photo.sigmf-meta
  multisc tx photo.jpg --out photo.sigmf-meta --system bpg-ldpc --snr 10
  multisc tx photo.jpg --out faded.cf32 --snr slice=10,text=3 --channel tdl --doppler 20 --cfo 3000
  multisc tx photo.jpg --out photo.ci8 --amplitude 0.3 --inference tcp://127.0.0.1:5555
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multisc.channel import Chain
from multisc.cli import radio
from multisc.cli.arguments import check_snr_names, finite_float, options, seed, snr
from multisc.files import printable
from multisc.images import load_image
from multisc.inference.backend import Backend
from multisc.phy.burst import BurstTransmitter, burst_uses
from multisc.phy.transport import modulate
from multisc.recording import FORMATS, RecordingWriter
from multisc.systems.registry import SYSTEMS, get_entry

LEAD = 4096  # samples of silence before the first burst and after the last


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("image", type=Path, help="PNG, JPEG, WebP, BMP, GIF, TIFF or PNM")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".sigmf-meta, or a raw .cf32, .ci16, .ci8, .cu8"
    )
    parser.add_argument("--system", default="multi-sc", choices=list(SYSTEMS), help="default: %(default)s")
    parser.add_argument("--snr", type=snr, metavar="DB", help="Es/N0: a number or pairs such as slice=10,text=3")
    parser.add_argument("--seed", type=seed, default=0, help="of channel and models; default: %(default)s")
    parser.add_argument(
        "--amplitude",
        type=finite_float,
        default=0.25,
        help="factor on the samples; at 0.25 the peaks stay about within 1; default: %(default)s",
    )
    parser.add_argument("--gap", type=int, default=0, metavar="N", help="silent samples after each burst")
    parser.add_argument(
        "--sample-rate", type=finite_float, default=radio.DEFAULT_RATE, metavar="HZ", help="default: %(default)g"
    )
    parser.add_argument("--frequency", type=finite_float, metavar="HZ", help="centre frequency for the metadata")
    parser.add_argument(
        "--format", choices=list(FORMATS), help="of the samples; default: by the file's ending, or cf32"
    )
    parser.add_argument("--image-id", type=seed, metavar="N", help="default: a checksum of the picture")
    radio.add_orthogonal(parser)
    radio.add_waveform(parser)
    radio.add_channel(parser)
    radio.add_inference(parser)


def run(args: argparse.Namespace) -> int:
    """Encode, modulate, write."""
    config = radio.waveform(args, args.amplitude, args.gap, args.orthogonal)
    strongest = None if args.snr is None else radio.strongest_db(args.snr)
    channel = radio.channel(args, strongest, args.amplitude, args.sample_rate)
    image = load_image(args.image)
    facts = {"seed": args.seed, "snr_db": strongest}
    context = {name: facts[name] for name in get_entry(args.system).context if facts[name] is not None}
    note = f"{args.system}: {args.image.name}"
    with (
        RecordingWriter(args.out, args.sample_rate, args.format, args.frequency, note) as writer,
        Backend(args.inference, args.models, args.inference_keys, on_progress=_say) as backend,
    ):
        encoded = backend.encode(args.system, image, {**context, **options(args.options)})
        if args.snr is not None:
            check_snr_names(args.snr, [stream.name for stream in encoded.streams])
        streams = [modulate(stream, radio.power_db(args.snr, stream.name)) for stream in encoded.streams]
        image_id = zlib.crc32(image.tobytes()) if args.image_id is None else args.image_id
        bursts = BurstTransmitter(config).transmit(image_id, streams, encoded.side_info, args.system)
        _write(writer, bursts, channel.build(), args.gap)
    if writer.clipped:
        _say(f"{writer.clipped} values were beyond full scale and clipped: lower --amplitude")
    uses = sum(stream.symbols.size for stream in streams)
    total = sum(burst_uses(config, burst) for burst in bursts)
    print(
        f"{printable(writer.paths[0])}: image {image_id}, {len(bursts)} burst{'s' * (len(bursts) != 1)}, "
        f"{writer.count} samples ({1e3 * writer.count / args.sample_rate:.1f} ms), "
        f"{uses} channel uses ({total} with overhead), CBR {uses / image.size:#.3g}"
    )
    return 0


def _write(writer: RecordingWriter, bursts: Sequence[NDArray[np.complex64]], channel: Chain, gap: int) -> None:
    """Write bursts with silence around them as the channel delivers them; annotations say where they were sent."""
    silence = np.zeros(LEAD, np.complex64)
    writer.write(channel.process(silence))
    place = LEAD
    for number, burst in enumerate(bursts, 1):
        writer.annotate(place, burst.size - gap, f"burst {number} of {len(bursts)}")
        writer.write(channel.process(burst))
        place += burst.size
    writer.write(channel.process(silence))
    writer.write(channel.finish())


def _say(line: str) -> None:
    print(f"multisc tx: {line}", file=sys.stderr)
