"""The workers of an inference process: started, watched, given work, replaced when they die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq

import multisc
from multisc.errors import BadInputError, ModelError, MultiscError
from multisc.inference.jobs import layout_of
from multisc.inference.worker import WorkerSettings, command
from multisc.libraries import settle

MAX_SOCKET_PATH = 80  # of the 107 bytes a Unix socket's path may have, the rest being its name
LONGEST_BACKOFF_S = 30.0
STOP_GRACE_S = 2.0


@dataclass
class WorkerProcess:
    """One worker process, from start to end."""

    index: int
    identity: bytes
    process: subprocess.Popen[bytes]
    directory: str
    """Where the socket is by which it connects; removed once it has."""
    ready: bool = False
    connected: bool = False
    state: str = "starting"
    detail: str = "starting"
    jobs: dict[int, bool] = field(default_factory=dict)
    """The requests it works on, and whether anybody waits for the result."""
    kill_at: float | None = None
    """When a worker that works for nobody, and does not stop, is killed."""


@dataclass
class Slot:
    """The place of a worker, which outlives it."""

    worker: WorkerProcess | None = None
    generation: int = 0
    restarts: int = 0
    failures_in_a_row: int = 0
    start_at: float = 0.0
    last_error: str = ""
    jobs_done: int = 0


@dataclass(frozen=True)
class Finished:
    """A request that came back from a worker; ``outcome`` is "ok", "called-off" or a failure's code."""

    job: int
    outcome: str
    frames: list[zmq.Frame] = field(default_factory=list)


class Pool:
    """Starts ``count`` workers and keeps that many.

    Args:
        context: the ZeroMQ context of the server.
        count: number of workers, 1 or more.
        handler, models, preload, message_limit: see ``WorkerSettings``.
        call_off_grace_s: a worker that goes on for longer with a request that was called off is killed.
        devices: CUDA devices that the workers share out, one each in turn; empty for what each of them finds.
        log: takes one line per event.
    """

    def __init__(
        self,
        context: zmq.Context,
        count: int,
        *,
        handler: str,
        models: str,
        preload: Sequence[str],
        message_limit: int,
        call_off_grace_s: float,
        devices: Sequence[str],
        log: Callable[[str], None],
    ) -> None:
        self._handler, self._models, self._preload = handler, models, tuple(preload)
        self._message_limit = message_limit
        self._grace_s = call_off_grace_s
        self._devices = tuple(devices)
        self._log = log
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 16)
        self.socket.setsockopt(zmq.RCVHWM, 16)
        self.slots = [Slot() for _ in range(count)]
        self._threads = max(1, len(os.sched_getaffinity(0)) // count) if sys.platform == "linux" else None

    def start(self) -> None:
        """Start the workers."""
        for index in range(len(self.slots)):
            self._start(index)

    @property
    def ready(self) -> bool:
        """Whether every worker has loaded its models."""
        return all(slot.worker is not None and slot.worker.ready for slot in self.slots)

    def idle(self) -> list[WorkerProcess]:
        """Return the workers that wait for work, those first that have done least."""
        free = [
            (slot.jobs_done, slot.worker.index, slot.worker)
            for slot in self.slots
            if slot.worker and slot.worker.ready and slot.worker.connected and not slot.worker.jobs
        ]
        return [worker for _, _, worker in sorted(free)]

    def assign(self, worker: WorkerProcess, batch: Sequence[tuple[int, Sequence[zmq.Frame]]]) -> bool:
        """Give a worker requests to run at once, each its number and its frames; False when it has just gone."""
        frames = [frame for _, frames in batch for frame in frames]
        if not self._send(worker, [b"work", layout_of(batch), *frames]):
            return False
        worker.jobs = {number: True for number, _ in batch}
        return True

    def call_off(self, job: int) -> None:
        """Tell the worker of a request that nobody waits for the result."""
        for slot in self.slots:
            if slot.worker and job in slot.worker.jobs:
                slot.worker.jobs[job] = False
                self._send(slot.worker, [b"call-off", job.to_bytes(8, "big")])
                self._watch(slot.worker)

    def receive(self) -> list[Finished]:
        """Take what the workers have sent.

        Raises:
            MultiscError: of the right class, when a worker cannot load its models at the server's start.
        """
        finished: list[Finished] = []
        while True:
            try:
                identity, tag, *rest = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return finished
            worker = self._find(identity.bytes)
            if worker is None:
                continue
            if not worker.connected:
                # A connection outlives the socket's name: so no file stays behind, even if this process is killed.
                shutil.rmtree(worker.directory, ignore_errors=True)
            worker.connected = True
            if tag.bytes == b"state":
                worker.state, worker.detail = rest[0].bytes.decode(), rest[1].bytes.decode()
                if worker.state == "idle" and not worker.ready:
                    worker.ready = True
                    self.slots[worker.index].failures_in_a_row = 0
            elif tag.bytes == b"reply":
                job = int.from_bytes(rest[0].bytes, "big")
                worker.jobs.pop(job, None)
                self._watch(worker)
                self.slots[worker.index].jobs_done += 1
                finished.append(Finished(job, rest[1].bytes.decode(), rest[2:]))
            else:  # failed to load
                self._failed(worker, rest[0].bytes.decode(), rest[1].bytes.decode())

    def tend(self) -> list[tuple[int, str]]:
        """Bury dead workers, kill stuck ones, start new ones.

        Returns:
            The requests that were lost, each with one line why.

        Raises:
            MultiscError: when a worker dies before it was ever ready.
        """
        lost: list[tuple[int, str]] = []
        now = time.monotonic()
        for index, slot in enumerate(self.slots):
            worker = slot.worker
            if worker is not None and worker.kill_at is not None and now > worker.kill_at:
                self._log(f"worker {index} does not let go of work that was called off: killed")
                worker.process.kill()
                worker.process.wait()
            if worker is not None and (code := worker.process.poll()) is not None:
                reason = f"worker {index} ended ({describe_exit(code)})"
                lost += [(job, reason) for job in worker.jobs]
                self._bury(slot, reason)
                if slot.generation == 1 and not worker.ready:
                    raise MultiscError(f"{reason} while it was {worker.detail}")
            if slot.worker is None and now >= slot.start_at:
                slot.restarts += 1
                self._start(index)
        return lost

    def stop(self) -> None:
        """End every worker, and wait until it has gone."""
        workers = [slot.worker for slot in self.slots if slot.worker]
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for slot in self.slots:
            self._remove(slot)
        self.socket.close()

    def _start(self, index: int) -> None:
        slot = self.slots[index]
        slot.generation += 1
        identity = f"worker-{index}-{slot.generation}"
        directory = _private_directory()
        self.socket.bind(_door(directory))
        settings = WorkerSettings(
            address=_door(directory),
            identity=identity,
            parent=os.getpid(),
            handler=self._handler,
            models=self._models,
            preload=self._preload,
            message_limit=self._message_limit,
        )
        environment = child_environment()
        settle(environment)
        if self._threads is not None:
            # All workers together use each core once; a user's own setting wins.
            environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[index % len(self._devices)]
        process = subprocess.Popen(
            command(settings),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env=environment,
            process_group=0,  # Ctrl-C in a terminal reaches the server only
        )
        slot.worker = WorkerProcess(index, identity.encode(), process, directory)

    def _watch(self, worker: WorkerProcess) -> None:
        """Set a worker's clock when it works for nobody."""
        if not worker.jobs or any(worker.jobs.values()):
            worker.kill_at = None
        elif worker.kill_at is None:
            worker.kill_at = time.monotonic() + self._grace_s

    def _failed(self, worker: WorkerProcess, code: str, message: str) -> None:
        """A worker could not load: fatal at the server's start, otherwise tried again later."""
        slot = self.slots[worker.index]
        worker.process.kill()
        worker.process.wait()
        if slot.generation == 1:
            raise {"bad-input": BadInputError, "model": ModelError}.get(code, MultiscError)(message)
        self._bury(slot, f"worker {worker.index} cannot load: {message}")

    def _remove(self, slot: Slot) -> None:
        if slot.worker:
            self.socket.unbind(_door(slot.worker.directory))
            shutil.rmtree(slot.worker.directory, ignore_errors=True)
            slot.worker = None

    def _bury(self, slot: Slot, reason: str) -> None:
        self._remove(slot)
        slot.last_error = reason
        wait = min(LONGEST_BACKOFF_S, 2.0 ** (slot.failures_in_a_row - 1)) if slot.failures_in_a_row else 0.0
        slot.failures_in_a_row += 1
        slot.start_at = time.monotonic() + wait
        self._log(f"{reason}; starting another" + (f" in {wait:.0f} s" if wait else ""))

    def _find(self, identity: bytes) -> WorkerProcess | None:
        return next((s.worker for s in self.slots if s.worker and s.worker.identity == identity), None)

    def _send(self, worker: WorkerProcess, frames: Sequence[bytes | zmq.Frame]) -> bool:
        try:
            self.socket.send_multipart([worker.identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                worker.connected = False  # until it is heard again
                return False
            raise
        return True


def describe_exit(code: int) -> str:
    """Say how a process ended, from ``Popen.returncode``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def child_environment() -> dict[str, str]:
    """Return the environment in which a child finds the same ``multisc`` as this process."""
    home = str(Path(multisc.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}


def _door(directory: str) -> str:
    return f"ipc://{directory}/worker"


def _private_directory() -> str:
    """Make a directory only this user can enter, with a path short enough for a socket in it."""
    base = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="multisc-", dir=base if len(base) <= MAX_SOCKET_PATH else "/tmp")
