"""What the tests of the link share: a server in a thread, gates that hold a handler, and waiting with a deadline."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import zmq

from multisc.link import wire
from multisc.link.server import Server, ServerConfig

DEADLINE_S = 20.0
IMAGE = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)


def eventually(condition, what, deadline_s=DEADLINE_S):
    """Wait until ``condition()`` is true and return its value; fail after the deadline."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        pause.wait(0.01)
    return value


class Gate:
    """Holds handlers that were given its path (see ``handlers.wait_at``) until it is opened."""

    def __init__(self, directory: Path, name: str = "gate") -> None:
        self.path = str(directory / name)
        os.mkfifo(self.path)

    def await_entry(self, count: int = 1) -> None:
        log = Path(self.path + ".in")
        eventually(lambda: log.exists() and log.stat().st_size >= count, f"{count} handlers at the gate")

    def open(self) -> None:
        def opened():
            try:
                os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # no reader yet
                return False
            return True

        eventually(opened, "a handler waits at the gate")


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children_of(pid: int) -> list[int]:
    """The process ids of the children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextmanager
def running_server(**settings):
    """Run a server with the test handler in a thread; yields it, with its log in ``server.lines``."""
    lines: list[str] = []
    values = {
        "bind": "tcp://127.0.0.1:0",
        "handler": "tests.support.handlers:Echo",
        "preload": (),
        "heartbeat_s": 0.1,
    }
    server = Server(ServerConfig(**{**values, **settings}), log=lines.append)
    server.lines = lines
    ready, errors = threading.Event(), []

    def run():
        try:
            server.run(lambda event, _: ready.set() if event == "ready" else None)
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(DEADLINE_S)
        assert not errors, errors
        yield server
    finally:
        server.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert not errors, errors


class Stranger:
    """A client made of nothing but a DEALER socket: sends any frames."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def send(self, number: int, message: wire.Message) -> None:
        self.socket.send_multipart(wire.pack(number, message))

    def receive(self):
        assert self.socket.poll(DEADLINE_S * 1000), "no answer"
        return wire.unpack(self.socket.recv_multipart())

    def answer(self, wanted=object):
        """The next message of a class, heartbeats skipped unless they are wanted."""
        while True:
            number, message = self.receive()
            if isinstance(message, wanted) and (wanted is wire.Heartbeat or not isinstance(message, wire.Heartbeat)):
                return number, message

    def status(self):
        self.send(99, wire.StatusRequest())
        return self.answer(wire.StatusReply)[1].status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.context.term()
