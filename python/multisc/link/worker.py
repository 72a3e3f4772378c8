"""A worker of the inference process: one process with its own models that runs one request at a time.

Two threads. The main thread runs the handler. The other owns the socket to the server, so that the server
hears what this worker is doing however long a request takes, and can call a request off.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import zmq

from multisc.errors import BadInputError, LinkError, ModelError, MultiscError
from multisc.link import wire
from multisc.link.handler import make_handler

STATE_INTERVAL_MS = 200
_PR_SET_PDEATHSIG = 1
_TO_MAIN = "inproc://to-main"


@dataclass(frozen=True)
class WorkerSettings:
    """What the server tells a worker when it starts it; JSON in the first argument."""

    address: str
    identity: str
    parent: int
    handler: str
    models: str
    preload: tuple[str, ...]
    message_limit: int


class CalledOffError(BaseException):
    """Raised inside the handler when nobody waits for the result any more.

    Not an ``Exception``, so that no ``except Exception`` on the way stops it.
    """


def failure_of(error: BaseException) -> wire.Failure:
    """Return the reply that carries an exception of the handler to the client."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return wire.Failure(
            "model", "the memory of the models' device is short: end other programs on it, or serve with --workers 1"
        )
    if isinstance(error, BadInputError):
        code = "bad-input"
    elif isinstance(error, ModelError):
        code = "model"
    elif isinstance(error, MultiscError):
        code = "failed"
    else:
        where = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
        place = f" ({os.path.basename(where.filename)}:{where.lineno})" if where else ""
        return wire.Failure("internal", wire.one_line(f"{type(error).__name__}: {error}", 900) + place)
    return wire.Failure(code, wire.one_line(error))


class Worker:
    """Connects to the server, loads the handler, and works until it is told to stop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._context = zmq.Context()
        self._jobs = self._context.socket(zmq.PAIR)
        self._jobs.setsockopt(zmq.RCVHWM, 4)
        self._jobs.setsockopt(zmq.SNDHWM, 4)
        self._jobs.bind(_TO_MAIN)
        self._state = "starting"
        self._detail = "starting"
        self._current: int | None = None
        self._called_off: int | None = None
        self._lock = threading.Lock()
        self._main_thread = threading.main_thread().ident or 0
        # Python's signal handlers run in the main thread between two bytecodes: inside the handler.
        signal.signal(signal.SIGUSR1, self._interrupt)

    def run(self) -> int:
        """Work; returns the exit code when loading failed, and never otherwise."""
        threading.Thread(target=self._talk, name="talk", daemon=True).start()
        try:
            self._handler = make_handler(self._settings.handler, self._settings.models, self._report)
            for system in self._settings.preload:
                self._report(f"loading {system}")
                self._handler.load(system)
        except Exception as error:
            if not isinstance(error, MultiscError):
                traceback.print_exc()
            failure = failure_of(error)
            self._jobs.send_multipart([b"failed", failure.code.encode(), failure.message.encode()])
            self._jobs.recv()  # until the server has taken note and ends this process
            return 1
        self._become("idle", "")
        while True:
            number, *frames = self._jobs.recv_multipart()
            self._jobs.send_multipart([b"reply", number, *self._perform(int.from_bytes(number, "big"), frames)])

    def _perform(self, number: int, frames: list[bytes]) -> list[bytes | memoryview]:
        """Run one request; returns the outcome and the frames of the reply to the client."""
        try:
            self._current = number
            self._become("busy", "working")
            outcome, reply = self._answer(frames)
            self._current = None
        except CalledOffError:
            self._current = None
            outcome, reply = b"called-off", []
        self._become("idle", "")
        return [outcome, *reply]

    def _answer(self, frames: list[bytes]) -> tuple[bytes, list[bytes | memoryview]]:
        reply: wire.Message
        try:
            message_id, request = wire.unpack(frames, self._settings.message_limit)
            if isinstance(request, wire.EncodeRequest):
                reply = wire.EncodedReply(self._handler.encode(request.system, request.image, request.options))
            elif isinstance(request, wire.DecodeRequest):
                reply = wire.DecodedReply(self._handler.decode(request.system, request.received, request.options))
            else:
                raise LinkError(f"a {type(request).__name__} is no work for a worker")
            packed = wire.pack(message_id, reply)
            if sum(len(frame) for frame in packed) > self._settings.message_limit:
                raise LinkError(f"the result is larger than {self._settings.message_limit} bytes")
            return b"ok", packed
        except (Exception, SystemExit) as error:
            failure = failure_of(error)
            if failure.code == "internal":
                traceback.print_exc()
            return failure.code.encode(), wire.pack(wire.message_id(frames), failure)

    def _report(self, line: str) -> None:
        self._become(self._state, wire.one_line(line, 200))

    def _become(self, state: str, detail: str) -> None:
        with self._lock:
            self._state, self._detail = state, detail

    def _interrupt(self, *_: Any) -> None:
        """In the main thread: leave the handler, if it still runs the request that was called off."""
        if self._current is not None and self._current == self._called_off:
            raise CalledOffError

    def _talk(self) -> None:
        """The second thread: everything between this worker and the server."""
        try:
            self._exchange()
        except zmq.ContextTerminated:
            return
        except BaseException:
            # Without this thread the worker is deaf: end, and let the server start another.
            traceback.print_exc()
            os._exit(1)

    def _exchange(self) -> None:
        server = self._context.socket(zmq.DEALER)
        server.setsockopt(zmq.IDENTITY, self._settings.identity.encode())
        server.setsockopt(zmq.LINGER, 0)
        server.setsockopt(zmq.SNDHWM, 16)
        server.setsockopt(zmq.RCVHWM, 16)
        server.connect(self._settings.address)
        main = self._context.socket(zmq.PAIR)
        main.setsockopt(zmq.SNDHWM, 4)
        main.setsockopt(zmq.RCVHWM, 4)
        main.connect(_TO_MAIN)
        poller = zmq.Poller()
        poller.register(server, zmq.POLLIN)
        poller.register(main, zmq.POLLIN)
        while True:
            with self._lock:
                state = [self._state.encode(), self._detail.encode()]
            server.send_multipart([b"state", *state])
            ready = dict(poller.poll(STATE_INTERVAL_MS))
            if main in ready:
                server.send_multipart(main.recv_multipart(copy=False), copy=False)
            if server in ready:
                tag, number, *frames = server.recv_multipart(copy=False)
                if tag.bytes == b"job":
                    main.send_multipart([number, *frames], copy=False)
                else:
                    self._call_off(int.from_bytes(number.bytes, "big"))
            if os.getppid() != self._settings.parent:
                os._exit(1)

    def _call_off(self, number: int) -> None:
        if self._called_off != number:
            self._called_off = number
            signal.pthread_kill(self._main_thread, signal.SIGUSR1)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends; elsewhere than on Linux the talking thread looks."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def command(settings: WorkerSettings) -> list[str]:
    """Return the command line that starts a worker."""
    return [sys.executable, "-P", "-m", "multisc.link.worker", json.dumps(asdict(settings))]


def main() -> int:
    """Run a worker with the settings in the first argument."""
    values = json.loads(sys.argv[1])
    values["preload"] = tuple(values["preload"])
    settings = WorkerSettings(**values)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends its workers
    _die_with(settings.parent)
    return Worker(settings).run()


if __name__ == "__main__":
    sys.exit(main())
