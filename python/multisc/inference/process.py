"""An inference process of one's own: started with the program that needs it, and gone when that has gone.

Nothing is left behind even by ``kill -9``: the child holds one end of a socket pair and ends itself when the
other end closes, which the kernel does for a program that dies in whatever way.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from multisc.errors import BadInputError, InferenceError, ModelError, MultiscError
from multisc.inference.pool import child_environment, describe_exit
from multisc.inference.wire import one_line

SILENCE_S = 180.0
STOP_TIMEOUT_S = 6.0
TAIL_BYTES = 4096
_PREFIX = "multisc serve: "


class OwnInferenceProcess:
    """Starts ``multisc serve`` on a free loopback port and stops it again. A context manager.

    Args:
        models: "embedded", "foundation" or a directory.
        preload: systems whose models are loaded before ``start`` returns.
        workers: processes with models of their own.
        silence_s: how long the child may say nothing while it starts. It tells each step and, when it fetches models
            from the hub, each percent.
        on_progress: called with a line when the child says what it is loading.
        arguments: further arguments of `multisc serve`.
    """

    def __init__(
        self,
        models: str = "embedded",
        *,
        preload: Sequence[str] = ("multi-sc",),
        workers: int = 1,
        silence_s: float = SILENCE_S,
        on_progress: Callable[[str], None] = lambda line: None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._command = [
            "serve", "--bind", "tcp://127.0.0.1:0", "--models", models,
            "--preload", ",".join(preload), "--workers", str(workers), *arguments,
        ]  # fmt: skip
        self._silence_s = silence_s
        self._on_progress = on_progress
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._stderr: IO[bytes] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """The child's address.

        Raises:
            InferenceError: when it is not running.
        """
        if not self.alive:
            raise InferenceError("the own inference process is not running")
        return self._address

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id; None when it was not started."""
        return self._process.pid if self._process else None

    def start(self) -> str:
        """Start the child and wait until its models are loaded.

        Returns:
            Its address.

        Raises:
            MultiscError: when it ends, with its last line and of the class its exit code stands for.
            InferenceError: when it is silent for too long.
        """
        if self._process is not None:
            raise InferenceError("this own inference process was started already")
        if not sys.executable:
            raise MultiscError("cannot start an inference process: the Python interpreter's path is unknown")
        mine, theirs = socket.socketpair()
        # An unlinked file, because a pipe would have to be drained and a named file could be left behind.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._lifeline = mine
        atexit.register(self.stop)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "multisc", *self._command, "--parent-fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=[theirs.fileno()],
                    env=child_environment(),
                    start_new_session=True,  # Ctrl-C is for this program, which then stops the child
                )
            self._address = self._await_ready(mine)
        except BaseException:
            self.stop()
            raise
        return self._address

    def stop(self) -> None:
        """End the child and all its workers, and wait until they have gone. Harmless when it has ended."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if process is not None:
            try:
                process.terminate()
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def stderr_tail(self) -> list[str]:
        """Return the last lines the child wrote to stderr; nothing after ``stop``."""
        if self._stderr is None:
            return []
        descriptor = self._stderr.fileno()
        size = os.fstat(descriptor).st_size
        # pread: the child shares the file's position.
        text = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode("utf-8", "replace")
        return [line for line in (one_line(raw) for raw in text.splitlines()) if line][-10:]

    def __enter__(self) -> OwnInferenceProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_ready(self, lifeline: socket.socket) -> str:
        deadline = time.monotonic() + self._silence_s
        received = b""
        failure = ""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise InferenceError(
                    f"the inference process was silent for {self._silence_s:g} s while starting: {self._last_words()}"
                )
            if not select.select([lifeline], [], [], left)[0]:
                continue
            chunk = lifeline.recv(4096)
            if not chunk:
                raise self._death(failure)
            *lines, received = (received + chunk).split(b"\n")
            for line in lines:
                event, detail = json.loads(line)
                if event == "ready":
                    return detail
                if event == "failed":
                    failure = detail
                else:
                    self._on_progress(detail)
                    deadline = time.monotonic() + self._silence_s

    def _death(self, failure: str) -> MultiscError:
        assert self._process is not None
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return InferenceError(f"the inference process does not get ready: {self._last_words()}")
        tail = self.stderr_tail()
        own = [line.removeprefix(_PREFIX) for line in tail if line.startswith(_PREFIX)]
        if code == BadInputError.exit_code and own:
            return BadInputError(own[-1])
        if code == MultiscError.exit_code and own:
            kind = ModelError if failure == ModelError.__name__ else MultiscError
            return kind(f"the inference process cannot start: {own[-1]}")
        return InferenceError(
            f"the inference process ended ({describe_exit(code)}) while starting: {self._last_words()}"
        )

    def _last_words(self) -> str:
        return one_line(" / ".join(self.stderr_tail()[-3:])) or "it wrote nothing"


class Parent:
    """In the child: the program that started it.

    Args:
        descriptor: the child's end of the socket pair.

    Raises:
        BadInputError: when that is not a socket.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            self._lifeline = socket.socket(fileno=descriptor)
        except (OSError, OverflowError, ValueError) as error:
            raise BadInputError(f"--parent-fd {descriptor}: is not an open socket ({error})") from None
        self._pid = os.getppid()

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call ``on_gone`` in another thread once the parent has gone; it must lead to an orderly end soon."""
        threading.Thread(target=self._wait, args=(on_gone,), name="parent", daemon=True).start()

    def tell(self, event: str, detail: str) -> None:
        """Report ("loading", what), ("ready", address) or ("failed", name of the error's class)."""
        try:
            self._lifeline.sendall(json.dumps([event, detail]).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it has gone; the other thread sees it, too

    def _wait(self, on_gone: Callable[[], None]) -> None:
        # The parent's number changes when it dies: its end of the pair may live on in a process that it forked.
        while os.getppid() == self._pid:
            if select.select([self._lifeline], [], [], 1.0)[0] and not self._lifeline.recv(4096):
                break
        on_gone()
        time.sleep(STOP_TIMEOUT_S)  # an orderly end takes the process away in this time
        os.kill(os.getpid(), signal.SIGKILL)
