"""A worker of the inference process: one process with its own models.

It is given one request, or several of one kind, which it runs at once if the handler can; if that fails, one
after the other, so that none suffers from another.

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
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import zmq

from multisc.errors import BadInputError, InferenceError, ModelError, MultiscError
from multisc.inference import wire
from multisc.inference.handler import BatchHandler, make_handler
from multisc.inference.jobs import split

T = TypeVar("T")
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
        self._running: frozenset[int] = frozenset()
        """The requests that the handler works on: set by the main thread only."""
        self._called_off: frozenset[int] = frozenset()
        """Requests given to this worker whose results nobody waits for: set by the other thread only."""
        self._unanswered: set[int] = set()
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
            layout, *frames = self._jobs.recv_multipart()
            self._perform(split(layout, frames))

    def _perform(self, batch: Sequence[tuple[int, Sequence[bytes]]]) -> None:
        """Run requests, each the number of its job and its frames, and answer each of them."""
        self._unanswered = {number for number, _ in batch}
        self._become("busy", "working")
        requests: dict[int, tuple[int, wire.Request]] = {}
        for number, frames in batch:
            try:
                message_id, request = wire.unpack(frames, self._settings.message_limit)
                if not isinstance(request, wire.Request):
                    raise InferenceError(f"a {type(request).__name__} is no work for a worker")
                requests[number] = (message_id, request)
            except Exception as error:
                self._answer(number, wire.message_id(frames), _failure_with_log(error))
        replies = self._run_at_once({number: request for number, (_, request) in requests.items()})
        for number, (message_id, request) in requests.items():
            self._answer(number, message_id, replies[number] if replies else self._run_one(number, request))

    def _run_one(self, number: int, request: wire.Request) -> wire.Message | None:
        handler = self._handler

        def work() -> wire.Message:
            if isinstance(request, wire.EncodeRequest):
                return wire.EncodedReply(handler.encode(request.system, request.image, request.options))
            return wire.DecodedReply(handler.decode(request.system, request.received, request.options))

        return self._attempt([number], work)

    def _run_at_once(self, requests: dict[int, wire.Request]) -> dict[int, wire.Message | None]:
        """Run several requests of one kind; returns no replies when they must be run one by one."""
        handler = self._handler
        if len(requests) < 2 or not isinstance(handler, BatchHandler):
            return {}
        replies = self._attempt(requests, lambda: _call_many(handler, list(requests.values())))
        if replies is None:
            return dict.fromkeys(requests)
        if isinstance(replies, wire.Failure):
            if replies.code in ("internal", "model"):
                line = f"{len(requests)} requests at once failed, now they are run one by one: {replies.message}"
                print(line, file=sys.stderr)
            return {}
        return dict(zip(requests, replies, strict=True)) if replies else {}

    def _attempt(self, numbers: Collection[int], work: Callable[[], T]) -> T | wire.Failure | None:
        """Call the handler for some requests; returns None when all of them were called off.

        No exception is kept: its traceback would keep what the handler had in memory, which the next attempt needs.
        """
        result: T | wire.Failure | None
        try:
            self._running = frozenset(numbers)
            self._interrupt()  # they may have been called off before they began
            try:
                result = work()
            except (Exception, SystemExit) as error:
                result = _failure_with_log(error)
            self._running = frozenset()
        except CalledOffError:
            result = None
        return result

    def _answer(self, number: int, message_id: int, reply: wire.Message | None) -> None:
        """Send what came of a request: the outcome, and the frames of the reply to the client."""
        frames: list[bytes | memoryview] = []
        if reply is not None:
            try:
                frames = wire.pack(message_id, reply)
                if sum(len(frame) for frame in frames) > self._settings.message_limit:
                    raise InferenceError(f"the result is larger than {self._settings.message_limit} bytes")
            except Exception as error:
                reply = _failure_with_log(error)
                frames = wire.pack(message_id, reply)
        outcome = "called-off" if reply is None else reply.code if isinstance(reply, wire.Failure) else "ok"
        self._unanswered.remove(number)
        if not self._unanswered:
            self._become("idle", "")
        self._jobs.send_multipart([b"reply", number.to_bytes(8, "big"), outcome.encode(), *frames])

    def _report(self, line: str) -> None:
        self._become(self._state, wire.one_line(line, 200))

    def _become(self, state: str, detail: str) -> None:
        with self._lock:
            self._state, self._detail = state, detail

    def _interrupt(self, *_: Any) -> None:
        """In the main thread: leave the handler, if nobody waits for anything it works on; once for each attempt."""
        if self._running and self._running <= self._called_off:
            self._running = frozenset()
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
        given: set[int] = set()
        while True:
            with self._lock:
                state = [self._state.encode(), self._detail.encode()]
            server.send_multipart([b"state", *state])
            ready = dict(poller.poll(STATE_INTERVAL_MS))
            if main in ready:
                message = main.recv_multipart(copy=False)
                if message[0].bytes == b"reply":
                    number = int.from_bytes(message[1].bytes, "big")
                    given.discard(number)
                    self._called_off -= {number}
                server.send_multipart(message, copy=False)
            if server in ready:
                tag, *message = server.recv_multipart(copy=False)
                if tag.bytes == b"work":
                    given = {number for number, _ in split(message[0].bytes, message[1:])}
                    main.send_multipart(message, copy=False)
                elif (number := int.from_bytes(message[0].bytes, "big")) in given:
                    self._called_off |= {number}
                    signal.pthread_kill(self._main_thread, signal.SIGUSR1)
            if os.getppid() != self._settings.parent:
                os._exit(1)


def _failure_with_log(error: BaseException) -> wire.Failure:
    failure = failure_of(error)
    if failure.code == "internal":
        traceback.print_exception(error)
    return failure


def _call_many(handler: BatchHandler, requests: Sequence[Any]) -> list[wire.Message]:
    """Run requests of one kind at once; returns no replies when their system takes one at a time."""
    system, options = requests[0].system, requests[0].options
    results: list[Any] | None
    if isinstance(requests[0], wire.EncodeRequest):
        reply: type[Any] = wire.EncodedReply
        results = handler.encode_many(system, [request.image for request in requests], options)
    else:
        reply = wire.DecodedReply
        results = handler.decode_many(system, [request.received for request in requests], options)
    if results is None:
        return []
    if len(results) != len(requests):
        raise ValueError(f"the handler gave {len(results)} results for {len(requests)} requests")
    return [reply(result) for result in results]


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends; elsewhere than on Linux the talking thread looks."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def command(settings: WorkerSettings) -> list[str]:
    """Return the command line that starts a worker."""
    return [sys.executable, "-P", "-m", "multisc.inference.worker", json.dumps(asdict(settings))]


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
