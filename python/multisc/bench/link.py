"""How fast the link between flowgraph and inference process is, beside plain ZeroMQ with the same bytes.

Both are measured in turns in one run, between two processes over loopback TCP. Plain ZeroMQ is the floor: one
hop, nothing checked. The link has two hops (client, server, worker), parses and copies the message three times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from multisc.errors import InferenceError
from multisc.inference import wire
from multisc.inference.client import InferenceClient
from multisc.inference.handler import Report
from multisc.inference.pool import child_environment
from multisc.inference.process import OwnInferenceProcess
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream

SIZES = ((16, 16), (512, 768), (2048, 3072))
_TIMEOUT_MS = 30_000


class EchoHandler:
    """Does no work: sends the picture back. Runs in the worker during the benchmark."""

    def __init__(self, models: str, report: Report) -> None:
        self._stream = Stream("bits", np.zeros(8, np.uint8))

    def load(self, system: str) -> None:
        """Nothing to load."""

    def encode(self, system: str, image: NDArray[np.uint8], options: dict[str, Any]) -> Encoded:
        """Return the picture as the preview."""
        return Encoded([self._stream], preview={"image": image})

    def decode(self, system: str, received: ReceivedImage, options: dict[str, Any]) -> Reconstruction:
        """Return no picture."""
        return Reconstruction(None, outage_reason="nothing was decoded")


def measure(seconds: float = 1.0) -> dict[str, Any]:
    """Measure round trips of pictures of several sizes.

    Args:
        seconds: time per row, 0.01 or more.

    Returns:
        ``{"rows": [{"name", "bytes", "round_trips", "median_ms", "p95_ms", "mbyte_s"}], "cpus"}``; ``bytes`` is the
        picture's size, which travels there and back; ``mbyte_s`` is in 10**6 bytes both ways over the median.

    Raises:
        InferenceError: when one of the processes does not answer.
    """
    rows = []
    echo = ("--handler", f"{__name__}:EchoHandler")
    with (
        OwnInferenceProcess(preload=(), arguments=echo) as process,
        InferenceClient(process.address) as client,
        _PlainEcho() as plain,
    ):
        for height, width in SIZES:
            image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
            link, floor = _alternate(partial(client.encode, "echo", image), partial(plain, image), seconds)
            rows.append(_row(f"multisc link, {width}x{height}", image.nbytes, link))
            rows.append(_row(f"plain ZeroMQ, {width}x{height}", image.nbytes, floor))
        rows.append(_row("multisc link, status", 0, _alternate(client.status, lambda: None, seconds)[0]))
    return {"rows": rows, "cpus": os.cpu_count(), "zeromq": zmq.zmq_version(), "protocol": wire.VERSION}


def _alternate(
    first: Callable[[], Any], second: Callable[[], Any], seconds: float
) -> tuple[list[float], list[float]]:
    """Time two calls in turns, so that whatever else the machine does hits both; returns seconds."""
    durations: tuple[list[float], list[float]] = ([], [])
    for call in (first, second):
        call()
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end or len(durations[0]) < 5:
        for call, taken in zip((first, second), durations, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return durations


def _row(name: str, size: int, durations: list[float]) -> dict[str, Any]:
    median, high = np.quantile(durations, [0.5, 0.95])
    return {
        "name": name,
        "bytes": size,
        "round_trips": len(durations),
        "median_ms": round(median * 1e3, 3),
        "p95_ms": round(high * 1e3, 3),
        "mbyte_s": round(2 * size / median / 1e6, 1),
    }


class _PlainEcho:
    """A process that sends back what it gets over a DEALER and a ROUTER, and nothing more."""

    _SCRIPT = (
        "import sys, zmq\n"
        "socket = zmq.Context().socket(zmq.ROUTER)\n"
        "socket.bind('tcp://127.0.0.1:0')\n"
        "print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)\n"
        "while True:\n"
        "    poller = zmq.Poller()\n"
        "    poller.register(socket, zmq.POLLIN)\n"
        "    poller.register(0, zmq.POLLIN)\n"
        "    ready = dict(poller.poll())\n"
        "    if 0 in ready:\n"
        "        sys.exit()\n"  # the parent closed our standard input, or died
        "    socket.send_multipart(socket.recv_multipart(copy=False), copy=False)\n"
    )

    def __enter__(self) -> _PlainEcho:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", self._SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().decode().strip().rstrip("\0")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if not address:
            self.__exit__()
            raise InferenceError("the process for the comparison with plain ZeroMQ did not start")
        self._socket.connect(address)
        return self

    def __call__(self, image: NDArray[np.uint8]) -> None:
        self._socket.send(image.data, copy=False)
        if not self._socket.poll(_TIMEOUT_MS):
            raise InferenceError("the process for the comparison with plain ZeroMQ does not answer")
        self._socket.recv(copy=False)

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)
        self._process.communicate()
