"""`run_flowgraph.py`: one image through a GNU Radio flowgraph, with everything that is worth knowing about it."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
from gnuradio import gr
from numpy.typing import NDArray

from multisc import images
from multisc.channel import ChannelConfig
from multisc.cli import arguments, radio
from multisc.errors import MultiscError
from multisc.evaluation.console import Console, summary
from multisc.evaluation.result import ChannelInfo
from multisc.files import make_folder
from multisc.link.backend import Backend
from multisc.systems.registry import SYSTEMS, get_entry

from . import outcome
from .loopback import loopback
from .message_block import collector

EXAMPLE = """example:
  .venv/bin/python run_flowgraph.py --image photo.jpg --snr 6 --out out/photo
  .venv/bin/python run_flowgraph.py --image photo.jpg --snr slice=10,text=3 --orthogonal cdm
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
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 on success and on an outage, 2 on bad usage or bad input, 1 on any other failure,
        130 on Ctrl-C, 143 on SIGTERM.
    """
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    gr.logging().set_default_level(gr.log_levels.warn)  # a program's output is its own
    try:
        run(args)
    except MultiscError as error:
        print(f"run_flowgraph.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("run_flowgraph.py: interrupted", file=sys.stderr)
        return 130
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: an end that is itself cut short leaves threads that Python cannot exit with."""
    caught: list[int] = []
    usual = {
        number: signal.signal(number, lambda got, frame: caught.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def run(args: argparse.Namespace) -> None:
    """Send the image and write the results.

    Raises:
        BadInputError: for a picture, an option or a number that cannot be used.
        MultiscError: when the flowgraph or the inference process fails.
    """
    console = Console()
    image, shown_path = _picture(args.image)
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
            with _undisturbed():
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


def _picture(path: str | None) -> tuple[NDArray[np.uint8], str]:
    if path is not None:
        return images.load_image(path), path
    from skimage import data

    return np.asarray(data.chelsea()), "scikit-image: chelsea"


def _wait(graph: loopback, console: Console, name: str, ends: Sequence[collector], timeout_s: float) -> None:
    """Wait until a stage has ended, which is when ``END`` has come to all of ``ends``, or something failed.

    Raises:
        MultiscError: what failed first in any block, or that the time is over.
    """
    deadline = time.monotonic() + timeout_s
    with console.stage(name):
        for end in ends:
            while not end.done.wait(0.02) and graph.faults.first is None:
                if time.monotonic() >= deadline:
                    raise MultiscError(f"{name}: not finished after {timeout_s:g} s")
        error = graph.faults.first
        if isinstance(error, MultiscError):
            raise error
        if error is not None:
            raise MultiscError(f"a block of the flowgraph failed: {type(error).__name__}: {error}") from error
