"""Decoding in a child process: a crash, a hang or a memory hog there is a damaged file here, and no more.

One child serves all calls of a process, is started on the first one, and ends with its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from select import select
from typing import IO

import msgpack
import numpy as np
from numpy.typing import NDArray

import multisc
from multisc.errors import BadInputError, MultiscError

START_SECONDS = 60.0
DECODE_SECONDS = 20.0
_CHUNK = 1 << 20


def read_message(stream: IO[bytes]) -> dict | None:
    """Read one message; None when the stream ends."""
    prefix = stream.read(4)
    if len(prefix) < 4:
        return None
    size = struct.unpack("<I", prefix)[0]
    body = stream.read(size)
    return msgpack.unpackb(body) if len(body) == size else None


def write_message(stream: IO[bytes], message: dict) -> None:
    """Write one message."""
    body = msgpack.packb(message)
    stream.write(struct.pack("<I", len(body)) + body)
    stream.flush()


class DecoderProcess:
    """A child that decodes HEVC pictures, restarted when it died or had to be ended.

    Args:
        seconds: time limit of one picture.
    """

    def __init__(self, seconds: float = DECODE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode_intra(self, nals: list[bytes], bit_depth: int, chroma_format: int, strict: bool) -> list[NDArray]:
        """``ffmpeg.decode_intra`` in the child; the same arguments and result.

        Raises:
            BadInputError: also when the decoder crashes, or takes longer than the time limit.
            MultiscError: when the child cannot be started.
        """
        request = {"nals": nals, "bit_depth": bit_depth, "chroma_format": chroma_format, "strict": strict}
        with self._lock:
            child = self._running()
            try:
                assert child.stdin is not None
                write_message(child.stdin, request)
                answer = self._receive(child, time.monotonic() + self._seconds)
            except TimeoutError as error:  # an OSError too, so it comes first
                self._end()
                raise BadInputError(f"BPG file: decoding takes longer than {self._seconds:g} s") from error
            except (OSError, EOFError) as error:
                self._end()
                raise BadInputError("damaged BPG file: the HEVC decoder crashed on it") from error
            except BaseException:
                self._end()  # an answer that nobody read would be taken for the next one
                raise
        if "error" in answer:
            raise BadInputError(answer["error"])
        return [np.frombuffer(data, dtype).reshape(shape) for shape, dtype, data in answer["planes"]]

    def start(self) -> None:
        """Start the child now, so that the first picture need not wait for it."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the child; the next call starts another."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # a fork: the pipes belong to the parent
            self._child, self._owner = None, os.getpid()
        if self._child is None or self._child.poll() is not None:
            self._end()
            root = str(Path(multisc.__file__).parents[1])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "multisc.codecs.bpg.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C is for the parent, whose end is the child's
                )
                write_message(self._child.stdin, {})  # type: ignore[arg-type]
                self._receive(self._child, time.monotonic() + START_SECONDS)
            except (OSError, EOFError) as error:
                self._end()
                raise MultiscError(f"cannot start the BPG decoder process with {sys.executable}: {error}") from error
        return self._child

    def _receive(self, child: subprocess.Popen[bytes], deadline: float) -> dict:
        size = struct.unpack("<I", self._read(child, 4, deadline))[0]
        return msgpack.unpackb(self._read(child, size, deadline))

    @staticmethod
    def _read(child: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
        assert child.stdout is not None
        descriptor, parts = child.stdout.fileno(), []
        while count:
            if not select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(descriptor, min(count, _CHUNK))
            if not part:
                raise EOFError("it ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


decoder_process = DecoderProcess()
atexit.register(decoder_process.close)
