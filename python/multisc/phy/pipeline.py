"""Reception over several processors: each of the receiver's three stages in a thread of its own."""

from __future__ import annotations

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

    The caller's thread searches; one follows up what is found, reading headers; one demodulates the payloads.

    Args:
        receiver: not to be used by others meanwhile.
        deliver: called in the last thread, for each stretch of samples in turn, with the bursts that it completed,
            often with none.
    """

    def __init__(self, receiver: BurstReceiver, deliver: Callable[[list[ReceivedBurst]], None]) -> None:
        self.receiver = receiver
        self._deliver = deliver
        self._headers = _Stage("headers")
        self._payloads = _Stage("payloads")

    def push(self, samples: NDArray[np.complex64]) -> None:
        """Take in samples; waits while too many of them are not demodulated yet.

        Args:
            samples: complex64 of shape (n,), any n; not kept.

        Raises:
            Exception: whatever a thread raised.
        """
        for first in range(0, samples.size, PIECE):
            searched = self.receiver.search(samples[first : first + PIECE])
            self._headers.submit(self._follow_up, searched)

    def flush(self) -> None:
        """End the stream, as ``BurstReceiver.flush``; returns when everything has been delivered.

        Raises:
            Exception: whatever a thread raised.
        """
        self._headers.submit(self._follow_up, self.receiver.search_end())
        self._headers.wait()
        self._payloads.wait()

    def close(self) -> None:
        """End the threads; what was not flushed is dropped."""
        self._headers.close()
        self._payloads.close()

    def __enter__(self) -> ReceiverPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow_up(self, searched: Searched) -> None:
        self._payloads.submit(self._finish, self.receiver.follow_up(searched))

    def _finish(self, opened: list[OpenBurst]) -> None:
        self._deliver([self.receiver.finish(burst) for burst in opened])


class _Stage:
    """One thread with a short queue; what it raises is raised by the next call."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[Future[None]] = deque()

    def submit(self, work: Callable, *arguments: object) -> None:
        while self._waiting and (len(self._waiting) >= DEPTH or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(work, *arguments))

    def wait(self) -> None:
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
