"""Small handlers for the tests of the link: what runs in the workers in place of the real systems."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError, ModelError, MultiscError
from multisc.streams import Encoded, Reconstruction, Stream


class Echo:
    """Sends the picture back; the options say what else should happen on the way."""

    def __init__(self, models, report):
        self.models, self.report = models, report

    def load(self, system):
        if system == "no-model":
            raise ModelError("checkpoint x: tokenizer.json is missing")
        if system == "no-system":
            raise BadInputError("system 'no-system': must be one of echo")
        if system == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if system == "gate":
            wait_at(os.environ["MULTISC_TEST_GATE"])

    def encode(self, system, image, options):
        self.act(options)
        data = (image.ravel()[:100] / 255).astype(np.float32)
        if "return" in options:
            return (
                Encoded([Stream("x", np.zeros(1 << 20, np.float32), "analog")])
                if options["return"] == "too large"
                else "x"
            )
        streams = [
            Stream("slice", data, quantiser=Quantiser(4, 1.0)),
            Stream("bits", np.ones(8, np.uint8), code="nr:1/2"),
        ]
        preview = {
            "image": image,
            "system": system,
            "pid": os.getpid(),
            "environment": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")},
            "modules": sorted({m.split(".")[0] for m in sys.modules} & {"torch", "gnuradio", "numpy"}),
        }
        return Encoded(streams, b"side", preview)

    def decode(self, system, received, options):
        self.act(options)
        return Reconstruction(np.full((4, 5, 3), 7, np.uint8), {"received": [s.name for s in received.streams]})

    def act(self, options):
        if "say" in options:
            self.report(options["say"])
        if "gate" in options:
            wait_at(options["gate"])
        if "stubborn" in options:
            try:
                wait_at(options["stubborn"])
            except BaseException:
                wait_at(options["stubborn"])
        if "raise" in options:
            kinds = {
                "bad": BadInputError,
                "model": ModelError,
                "failed": MultiscError,
                "value": ValueError,
                "exit": SystemExit,
                "memory": MemoryError,
            }
            raise kinds[options["raise"]](options.get("message", "as asked"))
        if "die" in options:
            os.kill(os.getpid(), signal.SIGKILL)


def wait_at(path):
    """Say in ``path``.in that we are there, and wait until someone writes to the named pipe ``path``."""
    with open(path + ".in", "ab") as file:
        file.write(b".")
    with open(path, "rb") as pipe:
        pipe.read()
