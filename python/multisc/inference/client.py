"""The client of the inference process: synchronous, thread-safe, without torch and without GNU Radio.

Each request is a connection of its own. Therefore several threads may share a client, no late reply of
an earlier request can be mistaken for this one's, and giving up is closing: the server notices and
drops the work.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from multisc import __version__
from multisc.errors import BadInputError, InferenceError, ModelError, MultiscError
from multisc.inference import wire
from multisc.inference.address import Address
from multisc.inference.keys import load_client_keys
from multisc.streams import Encoded, ReceivedImage, Reconstruction

DEAD_AFTER_S = 6.0
RETRY_BUSY_S = 0.5
STATUS_TIMEOUT_S = 10.0
_TURN_MS = 100
_LOST = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_ERRORS: dict[str, type[MultiscError]] = {
    "bad-input": BadInputError,
    "model": ModelError,
    "failed": MultiscError,
    "internal": MultiscError,
}
Reply = TypeVar("Reply", wire.EncodedReply, wire.DecodedReply, wire.StatusReply)


class _BusyError(InferenceError):
    """The server's queue is full."""


class InferenceClient:
    """Asks an inference process to run the systems.

    Args:
        address: tcp://HOST:PORT of `multisc serve`.
        timeout_s: how long a request may take in all, waiting in the server's queue included; at most 3600.
        keys: the ``client.key`` that the server's keeper made; needed unless the address is loopback.
        dead_after_s: a server that has not been heard for this long is taken for dead. It sends a heartbeat
            every second, however long the work takes.
        message_limit: bytes of the largest answer that is taken; what may be sent is the server's choice.
        on_progress: called with a line when the server says something new about the request.

    Raises:
        BadInputError: for a bad address or time-out, or a remote address without keys.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float = 120.0,
        *,
        keys: Path | str | None = None,
        dead_after_s: float = DEAD_AFTER_S,
        message_limit: int = wire.MESSAGE_LIMIT,
        on_progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._end = Address.parse(address)
        if not 0 < timeout_s <= wire.MAX_TIMEOUT_S:
            raise BadInputError(f"time-out {timeout_s}: must be above 0 and at most {wire.MAX_TIMEOUT_S:.0f} s")
        if keys is None and not self._end.is_loopback:
            raise BadInputError(
                f"{address} is another machine: give the client.key file that `multisc serve --make-keys` made there"
            )
        self._keys = load_client_keys(Path(keys)) if keys is not None else None
        self._timeout_s = timeout_s
        self._dead_after_s = dead_after_s
        self._message_limit = message_limit
        self._on_progress = on_progress
        self._numbers = itertools.count(secrets.randbits(32))
        self._closed = threading.Event()
        self._context = zmq.Context()
        self._users = 0
        self._idle = threading.Condition()

    @property
    def address(self) -> str:
        """The server's address."""
        return str(self._end)

    def encode(self, system: str, image: NDArray[np.uint8], options: dict[str, Any] | None = None) -> Encoded:
        """Run a system's transmitter.

        Args:
            system: its name, such as "multi-sc".
            image: uint8 of shape (H, W, 3), every side at most 16384.
            options: the system's own; plain values and arrays.

        Raises:
            BadInputError: when the system refuses the input, or it cannot be sent.
            ModelError: when its models cannot be loaded.
            InferenceError: when the server is dead, busy for the whole time-out, too slow, or breaks the protocol.
            MultiscError: when the server failed in another way.
        """
        make = lambda left: wire.EncodeRequest(system, np.asarray(image), options or {}, left)  # noqa: E731
        return self._request(make, wire.EncodedReply, self._timeout_s).encoded

    def decode(self, system: str, received: ReceivedImage, options: dict[str, Any] | None = None) -> Reconstruction:
        """Run a system's receiver; arguments and errors as for ``encode``."""
        make = lambda left: wire.DecodeRequest(system, received, options or {}, left)  # noqa: E731
        return self._request(make, wire.DecodedReply, self._timeout_s).reconstruction

    def status(self, timeout_s: float = STATUS_TIMEOUT_S) -> dict[str, Any]:
        """Return the server's health and metrics (docs/reference/inference.md).

        Raises:
            InferenceError: when it does not answer in time.
        """
        return self._request(lambda left: wire.StatusRequest(), wire.StatusReply, timeout_s).status

    def close(self) -> None:
        """Give up requests that other threads have in progress, and release the sockets."""
        self._closed.set()
        with self._idle:
            self._idle.wait_for(lambda: self._users == 0)
        self._context.term()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, make: Callable[[float], wire.Message], reply: type[Reply], timeout_s: float) -> Reply:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with self._connection() as (socket, events):
                    return self._exchange(socket, events, make, reply, deadline, timeout_s)
            except _BusyError as error:
                if time.monotonic() + RETRY_BUSY_S >= deadline:
                    raise InferenceError(f"{error}, for {timeout_s:g} s") from None
                self._on_progress("waiting: the inference process is busy")
                if self._closed.wait(RETRY_BUSY_S):
                    raise InferenceError(f"the client of {self.address} was closed") from None

    def _exchange(
        self,
        socket: zmq.Socket,
        events: zmq.Socket,
        make: Callable[[float], wire.Message],
        wanted: type[Reply],
        deadline: float,
        timeout_s: float,
    ) -> Reply:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(events, zmq.POLLIN)
        number = next(self._numbers)
        socket.send_multipart(wire.pack(number, wire.Hello(f"gr-multisc {__version__}")))
        heard = time.monotonic()
        welcomed = False
        told = ""
        while True:
            now = time.monotonic()
            if self._closed.is_set():
                raise InferenceError(f"the client of {self.address} was closed")
            if now >= deadline:
                raise InferenceError(f"no answer from {self.address} within {timeout_s:g} s")
            if now >= heard + self._dead_after_s:
                what = "has not been heard" if welcomed else "does not answer"
                hint = "" if welcomed else "; is `multisc serve` running there, with the keys of this client?"
                raise InferenceError(f"the inference process at {self.address} {what} for {now - heard:.1f} s{hint}")
            left = min(deadline, heard + self._dead_after_s) - now
            ready = dict(poller.poll(min(_TURN_MS, max(1, int(left * 1000)))))
            if socket not in ready:
                if events in ready:
                    self._lost(recv_monitor_message(events)["event"])
                continue
            answered, message = self._receive(socket)
            heard = time.monotonic()
            if answered != number and not (isinstance(message, wire.Failure) and answered == 0):
                raise InferenceError(f"{self.address} answers a request that was not made")
            if isinstance(message, wire.Welcome) and not welcomed:
                welcomed = True
                self._send(socket, number, make(max(0.0, deadline - heard)), message.message_limit)
            elif isinstance(message, wire.Heartbeat):
                line = _progress(message)
                if line != told:
                    self._on_progress(line)
                    told = line
            elif isinstance(message, wire.Failure):
                raise self._error(message)
            elif isinstance(message, wanted):
                return message
            else:
                raise InferenceError(f"{self.address} answers with an unexpected {type(message).__name__}")

    def _lost(self, event: int) -> None:
        """The answer comes over the connection that asked, or never."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise InferenceError(f"the inference process at {self.address} does not know the keys of this client")
        raise InferenceError(
            f"the connection to the inference process at {self.address} was lost: it ended or refused"
        )

    def _send(self, socket: zmq.Socket, number: int, request: wire.Message, limit: int) -> None:
        try:
            frames = wire.pack(number, request)
        except wire.WireError as error:
            raise BadInputError(f"the request cannot be sent: {error}") from None
        size = sum(len(frame) for frame in frames)
        if size > limit:
            raise BadInputError(f"the request is {size} bytes; {self.address} takes at most {limit}")
        socket.send_multipart(frames, copy=False)

    def _receive(self, socket: zmq.Socket) -> tuple[int, wire.Message]:
        frames = socket.recv_multipart(copy=False)
        try:
            return wire.unpack([frame.buffer for frame in frames], self._message_limit)
        except wire.WireError as error:
            raise InferenceError(f"{self.address} breaks the protocol: {error}") from None

    def _error(self, failure: wire.Failure) -> MultiscError:
        message = wire.one_line(failure.message)
        if failure.code in _ERRORS:
            prefix = f"internal error in the inference process at {self.address}: "
            return _ERRORS[failure.code]((prefix if failure.code == "internal" else "") + message)
        kind = _BusyError if failure.code == "busy" else InferenceError
        return kind(f"the inference process at {self.address} answers {failure.code}: {message}")

    @contextmanager
    def _connection(self) -> Iterator[tuple[zmq.Socket, zmq.Socket]]:
        with self._idle:
            if self._closed.is_set():
                raise InferenceError(f"the client of {self.address} was closed")
            self._users += 1
        try:
            socket = self._context.socket(zmq.DEALER)
            events = socket.get_monitor_socket(_LOST)
            try:
                socket.setsockopt(zmq.LINGER, 0)  # closing is giving up: nothing unsent is worth waiting for
                socket.setsockopt(zmq.SNDHWM, 16)
                socket.setsockopt(zmq.RCVHWM, 64)
                socket.setsockopt(zmq.MAXMSGSIZE, self._message_limit + wire.HEADER_LIMIT)
                socket.setsockopt(zmq.IPV6, int(self._end.is_ipv6))
                if self._keys is not None:
                    socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.server)
                    socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
                    socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
                socket.connect(str(self._end))
                yield socket, events
            finally:
                socket.disable_monitor()
                for opened in (socket, events):
                    opened.close(linger=0)
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()


def _progress(beat: wire.Heartbeat) -> str:
    if beat.state == "queued":
        place = f"{beat.ahead} requests ahead" if beat.ahead else "next in the queue"
        return wire.one_line(": ".join(filter(None, (place, beat.detail))))
    return wire.one_line(beat.detail or beat.state)
