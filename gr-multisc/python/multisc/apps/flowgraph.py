"""`run_flowgraph.py`: one image through a GNU Radio flowgraph, with everything that is worth knowing about it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import FrameType

from gnuradio import gr

from multisc.channel import ChannelConfig
from multisc.cli import arguments, radio
from multisc.cli.output import EXIT_UNREAD, nobody_reads
from multisc.errors import BadInputError, MultiscError
from multisc.evaluation.console import Console, summary
from multisc.evaluation.result import ChannelInfo
from multisc.files import make_folder
from multisc.inference.backend import Backend
from multisc.systems.registry import SYSTEMS, get_entry

from ..blocks.message_block import collector
from ..runtime import air_graph
from ..runtime.loopback import loopback
from . import air, outcome
from .program import await_ends, picture, undisturbed

EXAMPLE = """example:
  .venv/bin/python run_flowgraph.py --image photo.jpg --snr 6 --out out/photo
  .venv/bin/python run_flowgraph.py --image photo.jpg --snr slice=10,text=3 --orthogonal cdm
  .venv/bin/python run_flowgraph.py --sdr soapy --args driver=hackrf --tx --freq 433.92e6 --tx-gain AMP=0,VGA=20
"""
AIR_TIMEOUT_S = 120.0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = arguments.Parser(
        prog="run_flowgraph.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawTextHelpFormatter
    )
    add = made.add_argument
    add("--image", metavar="PATH", help="picture to send; default: a photograph that ships with scikit-image")
    add("--system", default="multi-sc", metavar="NAME", help=f"{', '.join(SYSTEMS)}; default: %(default)s")
    add(
        "--snr",
        type=arguments.snr,
        default={"": 10.0},
        metavar="DB",
        help="Es/N0 per channel use, one number or by stream, such as slice=10,text=3; default: 10",
    )
    add("--seed", type=arguments.seed, default=0, metavar="N", help="of noise, fading and diffusion; default: 0")
    add("--timeout", type=arguments.finite_float, default=300.0, metavar="S", help="of one request; default: 300")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="where the results go; default: out")
    radio.add_orthogonal(made)
    radio.add_waveform(made)
    radio.add_channel(made)
    radio.add_inference(made)
    air.add_arguments(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 on success and on an outage, 2 on bad usage or bad input, 1 on any other failure,
        130 on Ctrl-C, 143 on SIGTERM, 141 when nobody reads the output any more.
    """
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    gr.logging().set_default_level(gr.log_levels.warn)  # a program's output is its own
    try:
        _check_kind(args)
        (air.run if args.sdr else run)(args)
        sys.stdout.flush()
    except MultiscError as error:
        print(f"run_flowgraph.py: {error}", file=sys.stderr)
        if air_graph.driver_hangs():
            os._exit(error.exit_code)  # a thread inside the driver would hold up an orderly end for ever
        return error.exit_code
    except KeyboardInterrupt:
        print("run_flowgraph.py: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not nobody_reads():
            raise
        return EXIT_UNREAD  # all files are written
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _check_kind(args: argparse.Namespace) -> None:
    """Refuse options of a simulated channel with a radio and those of a radio without one."""
    usual = parser()
    for kind, why in (("channel", "is of the simulated channel, not of a radio"), ("radio", "needs --sdr")):
        if bool(args.sdr) == (kind == "radio"):
            continue
        group = next(g for g in usual._action_groups if (g.title or "").startswith(f"{kind} ("))
        for action in group._group_actions:
            if getattr(args, action.dest) != action.default:
                raise BadInputError(f"{action.option_strings[0]} {why}")


def run(args: argparse.Namespace) -> None:
    """Send the image and write the results.

    Raises:
        BadInputError: for a picture, an option or a number that cannot be used.
        MultiscError: when the flowgraph or the inference process fails.
    """
    console = Console()
    image, shown_path = picture(args.image)
    entry = get_entry(args.system)
    config = radio.waveform(args, orthogonal=args.orthogonal)
    strongest_db = radio.strongest_db(args.snr)
    channel = radio.channel(args, strongest_db, config.amplitude)
    facts = {"seed": args.seed, "snr_db": strongest_db}
    options = {name: facts[name] for name in entry.context} | arguments.options(args.options)
    make_folder(args.out)
    with Backend(args.inference, args.models, args.inference_keys, args.timeout) as backend:
        with console.stage("prepare"):
            backend.prepare(args.system)
            models = backend.models_of(args.system)
        power_db = partial(radio.power_db, args.snr)
        graph = loopback(backend, args.system, options, config, channel.build(), power_db)
        graph.send(image, image_id=args.seed)
        try:
            graph.start()
            _wait(graph, console, "encode", (graph.sent_bits, graph.sent_symbols), args.timeout)
            arguments.check_snr_names(args.snr, graph.sent_names())
            _wait(graph, console, "transmit", (graph.received_symbols, graph.received_bits), AIR_TIMEOUT_S)
            _wait(graph, console, "decode", (graph.image,), args.timeout)
        finally:
            with undisturbed():
                graph.stop()
                backend.close()  # ends a request under way, so that the blocks' threads can stop
                graph.wait()
    timings_s = dict(console.timings_s)
    with console.stage("report"):
        asked_db = {name: arguments.snr_of(args.snr, name) for name in graph.sent_names()}
        about = {"system": args.system, "models": models, "options": options, "timings_s": timings_s}
        about["files"] = outcome.files_of(graph)
        result = outcome.collect(graph, image, shown_path, _channel_info(args, channel), config, asked_db, about)
        outcome.write(args.out, result, graph, image)
    print(summary(result))
    print(args.out / result.files["report"])


def _channel_info(args: argparse.Namespace, channel: ChannelConfig) -> ChannelInfo:
    """What was asked for; of the further parameters those that differ from their defaults."""
    known = ("kind", "noise_variance", "seed", "sample_rate", "cfo_hz")
    others = {f.name: getattr(channel, f.name) for f in fields(channel) if f.name not in known}
    usual = ChannelConfig()
    return ChannelInfo(
        channel.kind,
        seed=args.seed,
        snr_db=args.snr.get("") if len(args.snr) == 1 else None,
        sample_rate_hz=channel.sample_rate,
        cfo_hz=channel.cfo_hz,
        parameters={name: value for name, value in others.items() if value != getattr(usual, name)},
    )


def _wait(graph: loopback, console: Console, name: str, ends: Sequence[collector], timeout_s: float) -> None:
    with console.stage(name):
        await_ends(name, graph.faults, ends, timeout_s)
