"""How fast transmitter and receiver are, beside GNU Radio's stock ofdm_tx and ofdm_rx, in one run.

Ours do all the work: transmission from payload bits (LDPC coded) to samples, reception from samples at full duty,
bursts back to back, to decoded and checked bits. GNU Radio's pair has hard bits and no FEC.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError, MultiscError
from multisc.phy.assembly import AssembledImage, Assembler
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.pipeline import ReceiverPipeline
from multisc.phy.receiver import BurstReceiver, ReceivedBurst
from multisc.phy.transport import modulate
from multisc.streams import Stream

PEERS = Path(__file__).parent / "peers"  # programs of their own: this process never imports gnuradio
CODE = "nr:1/2"
SNR_DB = {"qpsk": 8.0, "16qam": 15.0}
_STREAMS = 5
_IMAGE_BITS = 200_000  # payload bits of one image
_PUSH = 32_768
_TIMEOUT_S = 300


def measure(seconds: float = 2.0) -> dict[str, Any]:
    """Measure samples per second of wall-clock time, and the processor time that each takes.

    Args:
        seconds: about the time per row, 0.05 to 600.

    Returns:
        ``{"rows": [{"name", "msps", "info_mbit_s", "cpu_ns"}], "missing": {name: reason}, "cpus"}``; msps in 10**6
        samples per second, info_mbit_s the payload bits in 10**6 per second (null for GNU Radio), cpu_ns the time of
        processors, all threads together, per sample in nanoseconds, which depends less on what else the machine does.

    Raises:
        BadInputError: when the time is out of range.
        MultiscError: when the receiver does not give back what was sent.
    """
    if not 0.05 <= seconds <= 600:
        raise BadInputError(f"{seconds:g} seconds per row: must be 0.05 to 600")
    rows = []
    for modulation in SNR_DB:
        streams = _streams(modulation)
        samples = _transmit(streams)  # compiles and fills the caches
        rows.append(_transmitter_row(streams, modulation, samples.size, seconds))
        rows.append(_receiver_row(streams, modulation, samples, seconds))
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for modulation in SNR_DB:
            name = f"multisc receiver in GNU Radio, {modulation}, {CODE}"
            heard, copies = _heard(_transmit(_streams(modulation)), modulation)
            path = Path(folder) / modulation
            heard.tofile(path)
            found = _peer("gr_multisc.py", str(path), str(copies), str(seconds), str(_STREAMS))
            if isinstance(found, str):
                missing[name] = found
            else:
                rate = _IMAGE_BITS * copies / heard.size
                (row,) = found
                rows.append(
                    {"name": name, "msps": row["msps"], "info_mbit_s": row["msps"] * rate, "cpu_ns": row["cpu_ns"]}
                )
    peer = _peer("gr_ofdm.py", str(seconds))
    if isinstance(peer, str):
        missing |= {"GNU Radio ofdm_tx": peer, "GNU Radio ofdm_rx": peer}
    else:
        rows += [{**row, "name": f"GNU Radio {row['name']}", "info_mbit_s": None} for row in peer]
    return {"rows": rows, "missing": missing, "cpus": len(os.sched_getaffinity(0))}


def _streams(modulation: str) -> list[Stream]:
    rng = np.random.default_rng(1)
    each = _IMAGE_BITS // _STREAMS
    return [Stream(f"s{i}", rng.integers(0, 2, each).astype(np.uint8), modulation, CODE) for i in range(_STREAMS)]


def _transmit(streams: list[Stream]) -> NDArray[np.complex64]:
    return np.concatenate(BurstTransmitter(PhyConfig()).transmit(1, [modulate(s) for s in streams], b"", "bench"))


def _row(name: str, modulation: str, samples: int, work: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Have ``work`` done, which treats so many images of so many samples, for about that time."""
    images, start, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        images += work()
    return {
        "name": f"multisc {name}, {modulation}, {CODE}",
        "msps": samples * images / elapsed / 1e6,
        "info_mbit_s": _IMAGE_BITS * images / elapsed / 1e6,
        "cpu_ns": (time.process_time() - cpu) / (samples * images) * 1e9,
    }


def _transmitter_row(streams: list[Stream], modulation: str, samples: int, seconds: float) -> dict[str, Any]:
    def transmit() -> int:
        _transmit(streams)
        return 1

    return _row("transmitter", modulation, samples, transmit, seconds)


def _receiver_row(
    streams: list[Stream], modulation: str, samples: NDArray[np.complex64], seconds: float
) -> dict[str, Any]:
    heard, copies = _heard(samples, modulation)
    _receive(heard, streams, 1)

    def receive() -> int:
        _receive(heard, streams, copies)
        return copies

    return _row("receiver", modulation, samples.size, receive, seconds)


def _heard(samples: NDArray[np.complex64], modulation: str) -> tuple[NDArray[np.complex64], int]:
    """About two million samples of an image again and again, with noise and a carrier offset; and how many images."""
    rng = np.random.default_rng(2)
    copies = max(2, round(2e6 / samples.size))
    noise = rng.standard_normal(2 * samples.size * copies, dtype=np.float32).view(np.complex64)
    heard = np.tile(samples, copies) + np.float32(np.sqrt(0.5 * 10 ** (-SNR_DB[modulation] / 10))) * noise
    heard *= np.exp(2j * np.pi * 0.3 / 256 * np.arange(heard.size)).astype(np.complex64)
    return heard, copies


def _receive(heard: NDArray[np.complex64], streams: list[Stream], copies: int) -> None:
    """Search, demodulate and decode on a thread each, as a flowgraph does."""
    assembler = Assembler()
    used = heard[: heard.size if copies > 1 else heard.size // 2]
    images: list[Future[bool]] = []

    def take(bursts: list[ReceivedBurst]) -> None:
        images.extend(decoder.submit(_right, i, streams) for b in bursts for i in assembler.add(b))

    with ThreadPoolExecutor(1) as decoder, ReceiverPipeline(BurstReceiver(PhyConfig()), take) as pipeline:
        for first in range(0, used.size, _PUSH):
            pipeline.push(used[first : first + _PUSH])
        pipeline.flush()
        good = sum(image.result() for image in images)
    if good < copies:
        raise MultiscError(f"only {good} of {copies} images were received without error")


def _right(image: AssembledImage, streams: list[Stream]) -> bool:
    received = image.receive().streams
    return all(np.array_equal(r.data, s.data) for r, s in zip(received, streams, strict=True))


def _peer(program: str, *arguments: str) -> list[dict[str, Any]] | str:
    """The rows that a child process measured with GNU Radio, or why it did not."""
    if importlib.util.find_spec("gnuradio") is None:
        return "gnuradio is not installed"
    command = [sys.executable, str(PEERS / program), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no result within {_TIMEOUT_S} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed"])[-1]
    return list(json.loads(done.stdout.strip().splitlines()[-1]))
