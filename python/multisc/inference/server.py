"""The inference process: one address, a bounded queue, and the workers behind it.

One thread, which never computes: it answers at once however long the requests take. It parses every
message completely before a worker sees it. docs/reference/inference.md describes the protocol.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from multisc import __version__
from multisc.errors import BadInputError
from multisc.inference import wire
from multisc.inference.address import DEFAULT_ADDRESS, Address
from multisc.inference.handler import SYSTEMS_HANDLER
from multisc.inference.jobs import Job, Queue, kind_of
from multisc.inference.keys import ServerKeys
from multisc.inference.metrics import Metrics
from multisc.inference.pool import Pool

MAX_CLIENTS = 256
TICK_MS = 100
LINGER_MS = 500
HIGH_WATER_MARK = 64
TRANSPORT_HEARTBEAT_MS = 2000
TRANSPORT_TIMEOUT_MS = 20000
MESSAGES_PER_TURN = 32
_AUTHENTICATOR = "inproc://zeromq.zap.01"  # where libzmq asks, RFC 27
_MONITORED = {
    zmq.EVENT_ACCEPTED: "accepted",
    zmq.EVENT_DISCONNECTED: "closed",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake-failed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "handshake-failed",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "authentication-failed",
}


@dataclass(frozen=True)
class ServerConfig:
    """Settings of the inference process, validated here.

    Args:
        bind: tcp://HOST:PORT; port 0 lets the system pick one.
        models: "embedded", "foundation" or a directory.
        preload: systems loaded before the first request.
        workers: processes, each with its own models; 1 to 64.
        queue: requests that may wait, 1 to 1024; further ones are refused as busy.
        batch: requests of one kind that a worker may run at once, 1 to 64.
        message_limit: bytes of the largest message.
        heartbeat_s: interval of the heartbeats, 0.05 to 60 s.
        call_off_grace_s: how long a worker may go on with a request nobody waits for, before it is killed.
        devices: CUDA devices, by number or UUID, that the workers share out, one each in turn; empty: no choice.
        keys: CURVE keys; required unless ``bind`` is loopback.
        handler: MODULE:FACTORY of what runs in the workers.

    Raises:
        BadInputError: for anything out of range, or an address open to others without keys.
    """

    bind: str = DEFAULT_ADDRESS
    models: str = "embedded"
    preload: tuple[str, ...] = ("multi-sc",)
    workers: int = 1
    queue: int = 8
    batch: int = 4
    message_limit: int = wire.MESSAGE_LIMIT
    heartbeat_s: float = 1.0
    call_off_grace_s: float = 20.0
    devices: tuple[str, ...] = ()
    keys: ServerKeys | None = None
    handler: str = SYSTEMS_HANDLER

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 64:
            raise BadInputError(f"workers {self.workers}: must be 1 to 64")
        if not 1 <= self.queue <= 1024:
            raise BadInputError(f"queue {self.queue}: must be 1 to 1024 requests")
        if not 1 <= self.batch <= 64:
            raise BadInputError(f"batch {self.batch}: must be 1 to 64 requests")
        if not 1 << 16 <= self.message_limit <= 1 << 32:
            raise BadInputError(f"message limit {self.message_limit}: must be 65536 to {1 << 32} bytes")
        if not 0.05 <= self.heartbeat_s <= 60:
            raise BadInputError(f"heartbeat {self.heartbeat_s}: must be 0.05 to 60 seconds")
        if not all(device and device.isascii() and device.replace("-", "").isalnum() for device in self.devices):
            raise BadInputError(f"devices {','.join(self.devices)!r}: must be numbers or UUIDs, such as 0,1")
        if self.keys is None and not Address.parse(self.bind).is_loopback:
            raise BadInputError(
                f"{self.bind} is open to other machines: make keys with `multisc serve --make-keys DIR` "
                "and give --keys DIR, or bind to tcp://127.0.0.1:PORT"
            )


@dataclass
class _Client:
    """A peer that waits for something: heartbeats go to it."""

    hello: int | None = None
    jobs: set[int] = field(default_factory=set)


class Server:
    """Binds on construction, serves in ``run``.

    Args:
        config: the settings.
        log: takes one line per event; stderr by default.

    Raises:
        BadInputError: when the address cannot be bound.
    """

    def __init__(self, config: ServerConfig, log: Callable[[str], None] | None = None) -> None:
        self.config = config
        self._log = log or log_to_stderr
        self._metrics = Metrics(self._log)
        self._clients: dict[bytes, _Client] = {}
        self._jobs: dict[int, Job] = {}
        self._queue = Queue()
        self._last_job = 0
        self._stopping = False
        self._context = zmq.Context()
        try:
            self._authenticator = self._bind_authenticator()
            self._front = self._bind_front()
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.address = self._front.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def stop(self) -> None:
        """Have ``run`` return soon; may be called from a signal handler or another thread."""
        self._stopping = True

    def run(self, notify: Callable[[str, str], None] = lambda event, detail: None) -> None:
        """Serve until ``stop``.

        Args:
            notify: called with ("loading", what) as the workers start, and once with ("ready", address).

        Raises:
            MultiscError: of the right class, when a worker cannot start or load its models at the start.
        """
        pool = None
        try:
            pool = self._pool = Pool(
                self._context,
                self.config.workers,
                handler=self.config.handler,
                models=self.config.models,
                preload=self.config.preload,
                message_limit=self.config.message_limit,
                call_off_grace_s=self.config.call_off_grace_s,
                devices=self.config.devices,
                log=self._log,
            )
            pool.start()
            self._serve(notify)
        finally:
            for job in list(self._jobs.values()):
                self._fail(job, "stopping", "the inference process is being stopped")
            if pool is not None:
                pool.stop()
            self._front.disable_monitor()
            self._context.destroy(linger=LINGER_MS)

    def _serve(self, notify: Callable[[str, str], None]) -> None:
        monitor = self._front.get_monitor_socket(sum(_MONITORED))
        poller = zmq.Poller()
        for socket in (self._front, self._pool.socket, self._authenticator, monitor):
            poller.register(socket, zmq.POLLIN)
        told: str | None = None
        heartbeat_at = 0.0
        while not self._stopping:
            ready = dict(poller.poll(TICK_MS))
            if self._authenticator in ready:
                self._authenticate()
            if monitor in ready:
                self._metrics.connections[_MONITORED[zmq.Event(recv_monitor_message(monitor)["event"])]] += 1
            if self._front in ready:
                self._receive()
            for done in self._pool.receive():
                self._finish(done.job, done.outcome, done.frames)
            for number, reason in self._pool.tend():
                if number in self._jobs:
                    self._metrics.outcomes["worker-died"] += 1
                    self._fail(self._jobs[number], "worker-died", f"{reason} while it worked on this request")
            self._expire()
            self._dispatch()
            now = time.monotonic()
            if now >= heartbeat_at:
                heartbeat_at = now + self.config.heartbeat_s
                self._beat()
            if told != "ready":
                state = "ready" if self._pool.ready else self._loading()
                if state != told:
                    notify("ready", self.address) if state == "ready" else notify("loading", state)
                    told = state

    # ---- requests ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                identity, *frames = self._front.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            buffers = [frame.buffer for frame in frames]
            self._metrics.bytes_in += sum(len(buffer) for buffer in buffers)
            client = identity.bytes
            try:
                message_id, message = wire.unpack(buffers, self.config.message_limit)
            except wire.WireError as error:
                code = next((c for cls, c in _REFUSALS if isinstance(error, cls)), "malformed")
                self._refuse(client, wire.message_id(buffers), code, str(error))
                continue
            self._metrics.requests[type(message).__name__] += 1
            if isinstance(message, wire.Hello):
                self._welcome(client, message_id)
            elif isinstance(message, wire.StatusRequest):
                self._send(client, message_id, wire.StatusReply(self.status()))
                self._unhello(client)
            elif isinstance(message, wire.EncodeRequest | wire.DecodeRequest):
                self._enqueue(client, message_id, message, frames)
            else:
                self._refuse(client, message_id, "malformed", "this kind of message goes from server to client only")

    def _welcome(self, client: bytes, message_id: int) -> None:
        if self._register(client, message_id):
            self._clients[client].hello = message_id
            limits = wire.Welcome(f"gr-multisc {__version__}", self.config.heartbeat_s, self.config.message_limit)
            self._send(client, message_id, limits)

    def _enqueue(self, client: bytes, message_id: int, request: wire.Request, frames: Sequence[zmq.Frame]) -> None:
        if not self._register(client, message_id):
            return
        if any(self._jobs[number].message_id == message_id for number in self._clients[client].jobs):
            self._refuse(client, message_id, "malformed", f"request {message_id} is in progress already")
            return
        if len(self._queue) >= self.config.queue:
            self._dispatch()  # what came just now may have found a worker
        if len(self._queue) >= self.config.queue:
            self._refuse(client, message_id, "busy", f"{len(self._queue)} requests wait already")
            return
        self._last_job += 1
        now = time.monotonic()
        deadline = now + request.timeout_s
        job = Job(self._last_job, client, message_id, frames, kind_of(request), now, deadline)
        self._jobs[job.number] = job
        self._clients[client].jobs.add(job.number)
        self._clients[client].hello = None
        self._queue.add(job)

    def _dispatch(self) -> None:
        """Give the idle workers what waits; nothing waits for a batch to fill."""
        while len(self._queue) and (idle := self._pool.idle()):
            batch = self._queue.batch(self.config.batch, len(idle))
            if not self._pool.assign(idle[0], [(job.number, job.frames) for job in batch]):
                continue  # that worker has just gone; the next one, if there is one
            self._metrics.batches[len(batch)] += 1
            for job in batch:
                self._queue.remove(job.number)
                job.started, job.worker, job.frames = time.monotonic(), idle[0].index, ()

    def _finish(self, number: int, outcome: str, frames: Sequence[zmq.Frame]) -> None:
        job = self._jobs.get(number)
        if job is None:
            return  # called off: nobody waits for it
        now = time.monotonic()
        started = job.started or now
        self._metrics.finished(outcome, started - job.received, now - started)
        self._forget(job)
        self._send_frames(job.client, frames)

    def _expire(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs.values() if now > job.deadline]:
            self._metrics.outcomes["timeout"] += 1
            waited = "it was still waiting for a worker" if job.started is None else "the worker was not done"
            self._call_off(job)
            self._fail(
                job, "timeout", f"not finished within the request's {job.deadline - job.received:.1f} s: {waited}"
            )

    def _call_off(self, job: Job) -> None:
        if job.started is None:
            self._queue.remove(job.number)
        else:
            self._pool.call_off(job.number)

    def _fail(self, job: Job, code: str, message: str) -> None:
        self._forget(job)
        self._send(job.client, job.message_id, wire.Failure(code, wire.one_line(message)))

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.number, None)
        client = self._clients.get(job.client)
        if client is not None:
            client.jobs.discard(job.number)
            self._drop_if_done(job.client)

    # ---- clients -------------------------------------------------------------------------------------------------

    def _register(self, client: bytes, message_id: int) -> bool:
        if client not in self._clients and len(self._clients) >= MAX_CLIENTS:
            self._refuse(client, message_id, "busy", f"{MAX_CLIENTS} clients wait already")
            return False
        self._clients.setdefault(client, _Client())
        return True

    def _unhello(self, client: bytes) -> None:
        if client in self._clients:
            self._clients[client].hello = None
            self._drop_if_done(client)

    def _drop_if_done(self, client: bytes) -> None:
        entry = self._clients.get(client)
        if entry is not None and not entry.jobs and entry.hello is None:
            del self._clients[client]

    def _vanished(self, client: bytes) -> None:
        """Drop all the work of a client that cannot be reached."""
        entry = self._clients.pop(client, None)
        if entry is None:
            return
        for number in entry.jobs:
            self._metrics.outcomes["abandoned"] += 1
            job = self._jobs.pop(number)
            self._call_off(job)

    def _refuse(self, client: bytes, message_id: int, code: str, message: str) -> None:
        self._metrics.refuse(code, wire.one_line(message, 200))
        self._send(client, message_id, wire.Failure(code, wire.one_line(message)))
        self._unhello(client)

    def _beat(self) -> None:
        """Tell every client that waits how it goes; whoever cannot be told has vanished."""
        ahead = self._queue.places()
        details = [slot.worker.detail if slot.worker else "" for slot in self._pool.slots]
        for client, entry in list(self._clients.items()):
            if entry.hello is not None:
                self._send(client, entry.hello, wire.Heartbeat("expecting"))
            for number in list(entry.jobs):
                job = self._jobs.get(number)
                if job is None:
                    continue  # the client vanished while it was being told
                if job.worker is not None:
                    beat = wire.Heartbeat("running", details[job.worker])
                else:
                    beat = wire.Heartbeat("queued", self._loading() if not self._pool.ready else "", ahead[number])
                self._send(client, job.message_id, beat)

    def _send(self, client: bytes, message_id: int, message: wire.Message) -> None:
        self._send_frames(client, wire.pack(message_id, message))

    def _send_frames(self, client: bytes, frames: Sequence[bytes | memoryview | zmq.Frame]) -> None:
        try:
            self._front.send_multipart([client, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._vanished(client)
        else:
            self._metrics.bytes_out += sum(len(frame) for frame in frames)

    # ---- status --------------------------------------------------------------------------------------------------

    def _loading(self) -> str:
        return next((s.worker.detail for s in self._pool.slots if s.worker and not s.worker.ready), "starting")

    def status(self) -> dict[str, Any]:
        """Return health and metrics as plain values."""
        slots = self._pool.slots
        health = "ready" if self._pool.ready else "degraded" if any(s.generation > 1 for s in slots) else "starting"
        return {
            "server": f"gr-multisc {__version__}",
            "protocol": wire.VERSION,
            "health": health,
            "pid": os.getpid(),
            "address": self.address,
            "models": self.config.models,
            "encrypted": self.config.keys is not None,
            "queue": {"waiting": len(self._queue), "limit": self.config.queue},
            "running": sum(job.started is not None for job in self._jobs.values()),
            "clients": len(self._clients),
            "message_limit": self.config.message_limit,
            "workers": [
                {
                    "pid": slot.worker.process.pid if slot.worker else None,
                    "state": slot.worker.state if slot.worker else "dead",
                    "detail": slot.worker.detail if slot.worker else "",
                    "jobs_done": slot.jobs_done,
                    "restarts": slot.restarts,
                    "last_error": slot.last_error,
                }
                for slot in slots
            ],
            "metrics": self._metrics.report(),
        }

    # ---- sockets -------------------------------------------------------------------------------------------------

    def _bind_front(self) -> zmq.Socket:
        bind = Address.parse(self.config.bind)
        front = self._context.socket(zmq.ROUTER)
        front.setsockopt(zmq.ROUTER_MANDATORY, 1)
        front.setsockopt(zmq.LINGER, LINGER_MS)
        front.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        front.setsockopt(zmq.RCVHWM, 4)
        # A little above the limit, so that what is just too large gets an answer and is not merely cut off.
        front.setsockopt(zmq.MAXMSGSIZE, self.config.message_limit + wire.HEADER_LIMIT)
        front.setsockopt(zmq.IPV6, int(bind.is_ipv6))
        front.setsockopt(zmq.HEARTBEAT_IVL, TRANSPORT_HEARTBEAT_MS)
        front.setsockopt(zmq.HEARTBEAT_TIMEOUT, TRANSPORT_TIMEOUT_MS)
        front.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        keys = self.config.keys
        if keys is not None:
            front.setsockopt(zmq.CURVE_SERVER, 1)
            front.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            front.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            front.setsockopt(zmq.ZAP_DOMAIN, b"multisc")
        try:
            front.bind(str(bind))
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise BadInputError(f"{bind} is in use by another program: choose another port with --bind") from None
            raise BadInputError(f"cannot bind to {bind}: {error.strerror}") from None
        return front

    def _bind_authenticator(self) -> zmq.Socket:
        authenticator = self._context.socket(zmq.REP)
        authenticator.setsockopt(zmq.LINGER, 0)
        authenticator.bind(_AUTHENTICATOR)
        return authenticator

    def _authenticate(self) -> None:
        """Answer libzmq's question whether a client may connect (ZAP, RFC 27)."""
        version, request_id, _, address, _, mechanism, *credentials = self._authenticator.recv_multipart()
        keys = self.config.keys
        known = (
            keys is not None
            and mechanism == b"CURVE"
            and len(credentials) == 1
            and z85.encode(credentials[0]) in keys.clients
        )
        if not known:
            self._metrics.refuse("unauthorized", f"client key from {address.decode('ascii', 'replace')} is not known")
        verdict = [b"200", b"OK"] if known else [b"400", b"unknown key"]
        self._authenticator.send_multipart([version, request_id, *verdict, b"", b""])


_REFUSALS: tuple[tuple[type[wire.WireError], str], ...] = (
    (wire.OversizedError, "oversized"),
    (wire.VersionError, "version"),
)


def log_to_stderr(line: str) -> None:
    """Write one line to stderr; one that cannot be written has nobody left to read it."""
    try:
        print(f"multisc serve: {line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        return
