"""Small handlers for the tests of the link: what runs in the workers in place of the real systems."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError, ModelError, MultiscError
from multisc.streams import Encoded, Reconstruction, Stream

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")


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
            "environment": {name: os.environ.get(name) for name in SETTINGS},
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


class Batches(Echo):
    """Takes several requests at once, and says which ones those were; a picture's first value is its name."""

    BAD, LARGE = 200, 201
    """Names of pictures that are refused, and whose result is too large to be sent."""
    turn = 0

    def encode(self, system, image, options):
        return self._run([int(image.flat[0])], options)[0]

    def encode_many(self, system, images, options):
        if system == "one-at-a-time":
            return None
        return self._run([int(image.flat[0]) for image in images], options)[: options.get("results")]

    def decode(self, system, received, options):
        return self._rebuild([received], options)[0]

    def decode_many(self, system, received, options):
        return self._rebuild(received, options)

    def _run(self, names, options):
        self.turn += 1
        self.act(options)
        if self.BAD in names:
            raise {"bad": BadInputError, "value": ValueError}[options["bad"]](f"picture {self.BAD} is bad")
        if len(names) > options.get("fit", 64):
            raise MemoryError
        preview = {"together": names, "turn": self.turn, "pid": os.getpid()}
        sizes = [(1 << 20) if name == self.LARGE else 1 for name in names]
        return [Encoded([Stream("x", np.zeros(n, np.float32), "analog")], preview=preview) for n in sizes]

    def _rebuild(self, received, options):
        self.turn += 1
        self.act(options)
        names = [one.side_info.decode() for one in received]
        return [Reconstruction(None, {"together": names}, "no picture", {"turn": self.turn}) for _ in received]


def wait_at(path):
    """Say in ``path``.in that we are there, and wait until someone writes to the named pipe ``path``."""
    with open(path + ".in", "ab") as file:
        file.write(b".")
    with open(path, "rb") as pipe:
        pipe.read()
