"""`run_flowgraph.py --sdr`: send, receive, or both, over a radio."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.cli import arguments, radio
from multisc.errors import BadInputError, MultiscError
from multisc.evaluation.console import Console, summary
from multisc.evaluation.result import ChannelInfo, Scalar
from multisc.files import make_folder, write_atomically
from multisc.inference.backend import Backend
from multisc.phy.assembly import AssembledImage
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.transport import modulate
from multisc.streams import Stream
from multisc.systems.registry import get_entry
from multisc.transmission.reception import Finisher, Reception, Source, found

from .. import pdu
from ..blocks.burst import burst_receiver
from ..blocks.message_block import Faults, collector
from ..runtime.air_graph import Graph, decoding, encoding, image_receiver, on_air, post
from ..runtime.driver_log import DriverLog
from ..runtime.front_end import DRIVERS, STALL_S, FrontEnd, FrontEndSettings, StallWatchdog
from . import outcome
from .program import await_ends, picture, raise_first, undisturbed

MODES = ("tx", "rx", "txrx")
DEFAULT_AMPLITUDE = 0.25  # its peaks are about 1
TAIL_S = 1.5  # of zeros behind the last burst; HackRF's driver holds a second back at 2 Msample/s
SETTLE_S = 3.0  # of samples after the last burst has left, until it is given up for lost
POLL_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a run on the air needs."""
    group = parser.add_argument_group("radio (docs/how-to/over-the-air.md)")
    group.add_argument("--sdr", choices=DRIVERS, help="over the air through SoapySDR or UHD instead of a simulation")
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--tx", dest="mode", action="store_const", const="tx", help="send")
    mode.add_argument("--rx", dest="mode", action="store_const", const="rx", help="receive until Ctrl-C")
    mode.add_argument("--txrx", dest="mode", action="store_const", const="txrx", help="both, and compare")
    add = group.add_argument
    add("--args", default="", metavar="DEVICE", help="such as driver=hackrf or type=b200; default: the first found")
    add("--rx-args", metavar="DEVICE", help="with --txrx: another device that receives")
    add("--freq", type=arguments.finite_float, metavar="HZ", help="carrier; there is no default: see to your licence")
    add(
        "--sample-rate", type=arguments.finite_float, default=radio.DEFAULT_RATE, metavar="HZ",
        help="of the waveform; default: %(default)g",
    )  # fmt: skip
    for name, what in (("tx", "sending"), ("rx", "receiving")):
        add(f"--{name}-gain", type=_gains, default={}, metavar="DB", help=f"{what}: a number, or AMP=0,VGA=30")
        add(f"--{name}-antenna", default="", metavar="NAME", help=f"{what}; default: the device's own choice")
    add(
        "--amplitude", type=arguments.finite_float, default=DEFAULT_AMPLITUDE, metavar="X",
        help="of the waveform, of the converter's range; default: %(default)s",
    )  # fmt: skip
    add(
        "--lo-offset", type=arguments.finite_float, default=0.0, metavar="HZ",
        help="move the oscillator and its spike beside the waveform",
    )  # fmt: skip
    add(
        "--oversample", type=int, default=1, metavar="N", help="device samples per sample of the waveform; default: 1"
    )
    add("--repeat", type=int, default=1, metavar="N", help="with --tx: send the image so many times")
    add(
        "--interval", type=arguments.finite_float, default=1.0, metavar="S", help="with --repeat: seconds; default: 1"
    )
    add("--count", type=int, metavar="N", help="with --rx: end after so many images")
    add(
        "--duration", type=arguments.finite_float, metavar="S", help="with --rx: end after so many seconds of samples"
    )
    add("--streams-only", action="store_true", help="with --rx: write received streams, decode no pictures")


def _gains(text: str) -> dict[str, float]:
    """Parse gains: one number, or ``name=number`` pairs."""
    gains: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        if name in gains or (not name and "," in text):
            raise argparse.ArgumentTypeError(f"{text!r}: must be a number, or pairs such as AMP=0,VGA=30")
        gains[name] = arguments.finite_float(value)
    return gains


def run(args: argparse.Namespace) -> None:
    """Go on the air.

    Raises:
        BadInputError: for options that contradict each other, or that the device says it cannot do.
        MultiscError: when the device, the flowgraph or the inference process fails.
    """
    _check(args)
    make_folder(args.out)
    with DriverLog(args.sdr) as log:
        console = Console()
        {"tx": _send, "rx": _receive, "txrx": _both}[args.mode](args, console, log)


def _check(args: argparse.Namespace) -> None:
    if args.mode is None:
        raise BadInputError("--sdr needs one of --tx, --rx, --txrx")
    if args.freq is None:
        raise BadInputError("--sdr needs --freq HZ, a frequency that you may use")
    only = {
        "--image": (args.image is not None, ("tx", "txrx")),
        "--rx-args": (args.rx_args is not None, ("txrx",)),
        "--repeat": (args.repeat != 1, ("tx",)),
        "--count": (args.count is not None, ("rx",)),
        "--duration": (args.duration is not None, ("rx",)),
        "--streams-only": (args.streams_only, ("rx",)),
    }
    for name, (given, modes) in only.items():
        if given and args.mode not in modes:
            raise BadInputError(f"{name} goes with {' or '.join('--' + mode for mode in modes)}")
    for name, value, lowest in (("repeat", args.repeat, 1), ("count", args.count, 1), ("interval", args.interval, 0)):
        if value is not None and value < lowest:
            raise BadInputError(f"--{name} {value:g}: must be at least {lowest}")
    if args.duration is not None and args.duration <= 0:
        raise BadInputError(f"--duration {args.duration:g}: must be above 0")
    if args.mode == "txrx" and args.rx_args in (None, args.args) and "driver=hackrf" in args.args:
        raise BadInputError("a HackRF sends or receives, not both at once: name a second one with --rx-args")


class _Radio:
    """The front ends of a run and what result.json says of them."""

    def __init__(self, args: argparse.Namespace, config: PhyConfig, log: DriverLog) -> None:
        self._args = args
        self._log = log
        self.config = config
        self.graph: on_air | None = None
        self.started = 0.0
        self.first_burst_s: float | None = None
        self.tx = self._front_end("tx", args.args) if "tx" in args.mode else None
        self.rx = self._front_end("rx", args.rx_args or args.args) if "rx" in args.mode else None
        _warm_up(config)

    def _front_end(self, direction: str, device: str) -> FrontEnd:
        a = self._args
        settings = FrontEndSettings(
            a.sdr, device, a.sample_rate, a.freq, getattr(a, f"{direction}_gain"), getattr(a, f"{direction}_antenna"),
            a.lo_offset, a.oversample,
        )  # fmt: skip
        return FrontEnd(direction, settings, self.config)

    def facts(self) -> dict[str, Scalar]:
        """The object ``radio`` of result.json, as of now."""
        a = self._args
        facts: dict[str, Scalar] = {
            "driver": a.sdr,
            "device": a.args if a.rx_args is None else f"{a.args} / {a.rx_args}",
            "rate_hz": a.sample_rate * a.oversample,
            "frequency_hz": a.freq,
            "lo_offset_hz": a.lo_offset,
            "oversample": a.oversample,
        }
        for name, end in (("tx", self.tx), ("rx", self.rx)):
            if end is not None:
                facts |= {f"{name}_gain_db": end.gain, f"{name}_antenna": end.antenna}
        facts |= {"underflows": self._log.underflows, "overflows": self._log.overflows}
        if self.graph is not None and self.graph.transmitter is not None:
            facts["clipped_samples"] = self.graph.transmitter.clipped
        if self.first_burst_s is not None:
            facts["first_burst_s"] = round(self.first_burst_s, 3)
        return facts

    @contextmanager
    def streaming(self, graph: on_air) -> Iterator[None]:
        """Start the flowgraph; stop it in the end, whatever happens."""
        self.graph = graph
        self._watchdogs: dict[str, StallWatchdog] = {}
        self.started = time.monotonic()
        graph.start()
        try:
            yield
        finally:
            with undisturbed():
                graph.end()

    def watch(self, counters: dict[str, int], bursts: int = 0) -> None:
        """Look whether all is well; to be called again and again.

        Args:
            counters: samples so far, by what is done with them; each has to grow.
            bursts: received so far.

        Raises:
            MultiscError: when a block failed, or the device stands still.
        """
        assert self.graph is not None
        raise_first(self.graph.faults)
        if bursts and self.first_burst_s is None:
            self.first_burst_s = time.monotonic() - self.started
        for name, count in counters.items():
            if self._watchdogs.setdefault(name, StallWatchdog(self._log)).stalled(count):
                said = self._log.last_words()
                device = self._args.args or self._args.sdr
                raise MultiscError(f"radio {device!r} stopped {name}{f': {said}' if said else ''}; was it unplugged?")


def _warm_up(config: PhyConfig) -> None:
    """Receive a burst of our own, so that no compiled code has to be loaded while samples are waiting."""
    stream = modulate(Stream("warm-up", np.zeros(1000, np.uint8), "qpsk", "nr:1/2"))
    (burst,) = BurstTransmitter(config).transmit(0, [stream])
    reception = Reception(config)
    for image, _ in reception.push(np.concatenate([burst, np.zeros(1 << 16, np.complex64)])):
        image.receive()


def _waveform(args: argparse.Namespace) -> PhyConfig:
    return radio.waveform(args, amplitude=args.amplitude, orthogonal=args.orthogonal)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    facts = {"seed": args.seed, "snr_db": radio.strongest_db(args.snr)}
    return {name: facts[name] for name in get_entry(args.system).context} | arguments.options(args.options)


@contextmanager
def _backend(args: argparse.Namespace) -> Iterator[Backend]:
    with Backend(args.inference, args.models, args.inference_keys, args.timeout) as backend:
        yield backend


def _in_background(job: Callable[[], None]) -> Future[None]:
    """Do a job in a thread that does not keep the program from ending."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            job()
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=work, name="preparation", daemon=True).start()
    return future


@contextmanager
def _running(graph: Graph, backend: Backend) -> Iterator[None]:
    """A flowgraph of messages alone."""
    graph.start()
    try:
        yield
    except BaseException:
        with undisturbed():
            backend.close()  # ends a request under way, so that the blocks' threads can stop
        raise
    finally:
        with undisturbed():
            graph.end()


def _encode(
    args: argparse.Namespace, console: Console, backend: Backend, image: NDArray[np.uint8], faults: Faults
) -> encoding:
    graph = encoding(backend, args.system, _options(args), partial(radio.power_db, args.snr), faults)
    meta = {"image_id": args.seed, "width": image.shape[1], "height": image.shape[0]}
    with console.stage("encode"), _running(graph, backend):
        post(graph.encoder, "image", pdu.pack(meta, image.ravel()))
        post(graph.encoder, "image", pdu.END)
        await_ends("encode", faults, (graph.sent_bits, graph.sent_symbols), args.timeout)
    arguments.check_snr_names(args.snr, [str(pdu.unpack(m)[0]["stream"]) for m in graph.sent_symbols.messages])
    return graph


def _send(args: argparse.Namespace, console: Console, log: DriverLog) -> None:
    """`--tx`: transmission.json tells what was sent."""
    image, shown_path = picture(args.image)
    faults = Faults(quiet=True)
    with _backend(args) as backend:
        with console.stage("radio"):
            front = _Radio(args, _waveform(args), log)
        with console.stage("prepare"):
            backend.prepare(args.system)
        symbols = [
            pdu.unpack(message) for message in _encode(args, console, backend, image, faults).sent_symbols.messages
        ]
    graph = on_air(front.config, faults, tx=front.tx, tail=round(TAIL_S * args.sample_rate))
    transmitter = graph.transmitter
    assert transmitter is not None
    interval = round(args.interval * args.sample_rate)
    with console.stage("on air") as stage, front.streaming(graph):
        for turn in range(args.repeat):
            begin = transmitter.nitems_written(0)
            for meta, data in symbols:
                image_id = (args.seed + turn) % 2**32
                post(transmitter, "symbols", pdu.pack(meta | {"image_id": image_id}, data))
            stage.note = f"{turn + 1} of {args.repeat}"
            wanted = transmitter.bursts + 1
            last = turn == args.repeat - 1
            while (
                transmitter.bursts < wanted
                or transmitter.waiting
                or (not last and transmitter.nitems_written(0) < begin + interval)
            ):
                front.watch({"sending": transmitter.nitems_written(0)})
                time.sleep(POLL_S)
        post(transmitter, "symbols", pdu.END)
        graph.await_end(POLL_S)
        while not graph.ended():
            front.watch({"sending": transmitter.nitems_written(0)} if transmitter.waiting else {})
            graph.await_end(POLL_S)
    report = {
        "image": shown_path,
        "system": args.system,
        "images_sent": args.repeat,
        "bursts_sent": transmitter.bursts,
        "channel_uses": transmitter.channel_uses,
        "channel_uses_total": transmitter.channel_uses_total,
        "radio": front.facts(),
    }
    _write(args.out / "transmission.json", report)
    print(
        f"{args.system}: sent {args.repeat} time{'s' * (args.repeat != 1)}, {transmitter.bursts} bursts, "
        f"{log.underflows} underflows"
    )


def _receive(args: argparse.Namespace, console: Console, log: DriverLog) -> None:
    """`--rx`: a folder with a result.json for each image, reception.json for all; Ctrl-C is an ordinary end."""
    faults = Faults(quiet=True)
    with _backend(args) as backend:
        with console.stage("radio"):
            front = _Radio(args, _waveform(args), log)
        receiver = image_receiver(front.config, faults)
        counters = receiver.reception.counters
        source = Source("radio", args.sample_rate, {}, front.facts)
        limit = float("inf") if args.duration is None else args.duration * args.sample_rate
        graph = on_air(front.config, faults, rx=front.rx, receiver=receiver)
        say = partial(print, "run_flowgraph.py:", file=sys.stderr)
        finisher = Finisher(
            args.out, front.config, source, None if args.streams_only else backend,
            arguments.options(args.options), args.seed, say,
        )  # fmt: skip
        # What comes meanwhile waits in the receiver.
        prepared = _in_background(lambda: None if args.streams_only else backend.prepare(args.system))
        with _ends_by_signal() as told, front.streaming(graph):
            say(f"receiving at {args.freq / 1e6:.10g} MHz, {args.sample_rate / 1e6:.10g} Msample/s")
            while not told.is_set() and counters()["samples"] < limit and len(finisher.summary) != args.count:
                front.watch({"receiving": counters()["samples"]}, counters()["bursts"])
                if not prepared.done():
                    told.wait(POLL_S)
                    continue
                prepared.result()
                if (image := receiver.take(POLL_S)) is not None:
                    finisher.finish(*image, receiver.reception)
            post(receiver, "end", pdu.END)
            deadline = time.monotonic() + STALL_S
            while not receiver.ended.wait(POLL_S):
                raise_first(faults)
                if time.monotonic() > deadline:
                    raise MultiscError("the receiver does not come to its end")
        while (image := receiver.take(0.0)) is not None and len(finisher.summary) != args.count:
            prepared.result()
            finisher.finish(*image, receiver.reception)
    seen = counters()
    report = {"radio": front.facts(), **seen, "dropped": receiver.dropped, "images": finisher.summary}
    _write(args.out / "reception.json", report)
    what = found(len(finisher.summary), seen, f"{log.overflows} overflows")
    print(f"{seen['samples']} samples: {what}")


def _both(args: argparse.Namespace, console: Console, log: DriverLog) -> None:
    """`--txrx`: result.json, report and pictures as of a simulated run."""
    image, shown_path = picture(args.image)
    faults = Faults(quiet=True)
    with _backend(args) as backend:
        with console.stage("radio"):
            front = _Radio(args, _waveform(args), log)
        with console.stage("prepare"):
            backend.prepare(args.system)
            models = backend.models_of(args.system)
        sent = _encode(args, console, backend, image, faults)
        receiver = burst_receiver(front.config, faults=faults)
        received = collector(faults)
        graph = on_air(front.config, faults, front.tx, front.rx, receiver, tail=round(TAIL_S * args.sample_rate))
        graph.msg_connect(receiver, "symbols", received, "in")
        with console.stage("on air"), front.streaming(graph):
            arrived = _await_image(args, front, graph, receiver, received, sent)
        received.messages = [m for m in received.messages if pdu.unpack(m)[0]["image_id"] == args.seed]
        receiver.last_image = arrived
        shown = decoding(backend, _options(args), faults)
        with console.stage("decode"), _running(shown, backend):
            for message in (*received.messages, pdu.END):
                post(shown.demodulator, "symbols", message)
            await_ends("decode", faults, (shown.received_bits, shown.image), args.timeout)
    ends = SimpleNamespace(
        encoder=sent.encoder, sent_bits=sent.sent_bits, sent_symbols=sent.sent_symbols, transmitter=graph.transmitter,
        channel=None, receiver=receiver, received_symbols=received, demodulator=shown.demodulator,
        received_bits=shown.received_bits, decoder=shown.decoder,
    )  # fmt: skip
    timings_s = dict(console.timings_s)
    with console.stage("report"):
        about = {"system": args.system, "models": models, "options": _options(args), "timings_s": timings_s}
        about |= {"files": outcome.files_of(ends), "radio": front.facts()}
        channel = ChannelInfo("radio", sample_rate_hz=args.sample_rate)
        result = outcome.collect(ends, image, shown_path, channel, front.config, {}, about)
        outcome.write(args.out, result, ends, image)
    print(summary(result))
    print(args.out / result.files["report"])


def _await_image(
    args: argparse.Namespace,
    front: _Radio,
    graph: on_air,
    receiver: burst_receiver,
    received: collector,
    sent: encoding,
) -> AssembledImage | None:
    """Send the image and wait until it has come back, or cannot come any more; return it as it was assembled."""
    transmitter = graph.transmitter
    assert transmitter is not None
    for message in (*sent.sent_symbols.messages, pdu.END):
        post(transmitter, "symbols", message)
    counters = receiver.receiver.counters
    settled: float | None = None
    arrived = None
    told = False
    while not received.done.is_set():
        sending = {} if settled is not None else {"sending": transmitter.nitems_written(0)}
        front.watch({**sending, "receiving": counters.samples}, counters.bursts)
        latest = receiver.last_image
        if latest is not None and latest.image_id == args.seed:
            arrived = latest
        if settled is None and transmitter.bursts and not transmitter.waiting:
            settled = counters.samples + SETTLE_S * args.sample_rate
        if not told and (arrived is not None or (settled is not None and counters.samples > settled)):
            post(receiver, "end", pdu.END)
            told = True
        received.done.wait(POLL_S)
    latest = receiver.last_image
    return latest if latest is not None and latest.image_id == args.seed else arrived


@contextmanager
def _ends_by_signal() -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM sets the event; the second one has its usual effect."""
    told = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def tell(number: int, frame: object) -> None:
        told.set()
        for each, handler in usual.items():
            signal.signal(each, handler)

    for number in usual:
        signal.signal(number, tell)
    try:
        yield told
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _write(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")
