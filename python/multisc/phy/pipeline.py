"""Reception over several processors: each of the receiver's three stages in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from multisc.phy.receiver import PIECE, BurstReceiver, OpenBurst, ReceivedBurst, Searched

DEPTH = 4  # what may wait for a stage: searches of at most PIECE samples, or the bursts that one of them completed


class ReceiverPipeline:
    """Runs the stages of a receiver side by side over the same samples. The bursts are the same, bit for bit.

    The caller's thread searches; one follows up what is found, reading headers; one demodulates the payloads. When a
    thread raises, all end, and what comes later is dropped.

    Args:
        receiver: not to be used by others meanwhile.
        deliver: called in the last thread, for each stretch of samples in turn, with the bursts that it completed,
            often with none.
        fail: called with what a thread raised, in that thread; None lets every later call raise it.
    """

    def __init__(
        self,
        receiver: BurstReceiver,
        deliver: Callable[[list[ReceivedBurst]], None],
        fail: Callable[[Exception], None] | None = None,
    ) -> None:
        self.receiver = receiver
        self._deliver = deliver
        self._fail = fail
        self._error: Exception | None = None
        self._headers = _Stage("headers", self._end)
        self._payloads = _Stage("payloads", self._end)

    def push(self, samples: NDArray[np.complex64]) -> None:
        """Take in samples; waits while too many of them are not demodulated yet.

        Args:
            samples: complex64 of shape (n,), any n; not kept.

        Raises:
            Exception: what a thread raised, unless there is ``fail``.
        """
        for first in range(0, samples.size, PIECE):
            self._check()
            self._headers.submit(self._follow_up, self.receiver.search(samples[first : first + PIECE]))

    def drain(self) -> None:
        """Wait until everything that has been found so far is delivered.

        Raises:
            Exception: what a thread raised, unless there is ``fail``.
        """
        self._headers.wait()
        self._payloads.wait()
        self._check()

    def flush(self) -> None:
        """End the stream, as ``BurstReceiver.flush``; returns when everything has been delivered.

        Raises:
            Exception: what a thread raised, unless there is ``fail``.
        """
        self._check()
        self._headers.submit(self._follow_up, self.receiver.search_end())
        self.drain()

    def close(self) -> None:
        """End the threads, which start again with the next samples; what was not flushed is dropped."""
        self._headers.close()
        self._payloads.close()

    def __enter__(self) -> ReceiverPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._error is not None and self._fail is None:
            raise self._error

    def _follow_up(self, searched: Searched) -> None:
        self._payloads.submit(self._finish, self.receiver.follow_up(searched))

    def _finish(self, opened: list[OpenBurst]) -> None:
        self._deliver([self.receiver.finish(burst) for burst in opened])

    def _end(self, error: Exception) -> None:
        self._error = error
        self._headers.abandon()
        self._payloads.abandon()
        if self._fail is not None:
            self._fail(error)


class _Stage:
    """One thread with a short queue.

    Args:
        name: of the thread.
        end: called when work raises.
    """

    def __init__(self, name: str, end: Callable[[Exception], None]) -> None:
        self._name = name
        self._end = end
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()
        self._abandoned = False
        self._lock = threading.Lock()

    def submit(self, work: Callable, *arguments: object) -> None:
        """Queue work; waits while the queue is full."""
        while len(self._waiting) >= DEPTH:
            self._waiting.popleft().exception()
        with self._lock:
            if self._abandoned:
                return
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, self._name)
            self._waiting.append(self._thread.submit(self._run, work, *arguments))

    def wait(self) -> None:
        """Wait for all work."""
        while self._waiting:
            self._waiting.popleft().exception()

    def close(self) -> None:
        """End the thread once its present work is done."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)
        self._waiting.clear()

    def abandon(self) -> None:
        """End the thread, which may be the caller's, for good; work under way goes on."""
        with self._lock:
            self._abandoned = True
            if self._thread is not None:
                self._thread.shutdown(wait=False)

    def _run(self, work: Callable, *arguments: object) -> None:
        if self._abandoned:
            return
        try:
            work(*arguments)
        except Exception as error:
            self._end(error)
