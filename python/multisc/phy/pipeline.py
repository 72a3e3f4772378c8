"""Reception over several processors: the search on the caller's thread, all that follows it up on another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from multisc.phy.receiver import PIECE, BurstReceiver, ReceivedBurst, Searched

DEPTH = 4  # searches that may wait to be followed up, each of at most PIECE samples


class ReceiverPipeline:
    """Runs the two halves of a receiver in two threads that share its samples. The bursts are the same, bit for bit.

    Args:
        receiver: not to be used by others meanwhile.
        deliver: called with the bursts that are complete, in order, in the second thread, after each search that was
            followed up; often with none.
    """

    def __init__(self, receiver: BurstReceiver, deliver: Callable[[list[ReceivedBurst]], None]) -> None:
        self.receiver = receiver
        self._deliver = deliver
        self._second = ThreadPoolExecutor(1, thread_name_prefix="demodulation")
        self._waiting: deque[Future[None]] = deque()

    def push(self, samples: NDArray[np.complex64]) -> None:
        """Take in samples; waits while too many of them are not demodulated yet.

        Args:
            samples: complex64 of shape (n,), any n; not kept.

        Raises:
            Exception: whatever the second thread raised.
        """
        for first in range(0, samples.size, PIECE):
            self._follow_up(self.receiver.search(samples[first : first + PIECE]))

    def flush(self) -> None:
        """End the stream, as ``BurstReceiver.flush``; returns when everything has been delivered.

        Raises:
            Exception: whatever the second thread raised.
        """
        self._follow_up(self.receiver.search_end())
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """End the second thread; samples that were not flushed are dropped."""
        self._second.shutdown(cancel_futures=True)

    def __enter__(self) -> ReceiverPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow_up(self, searched: Searched) -> None:
        while self._waiting and (len(self._waiting) >= DEPTH or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._second.submit(self._run, searched))

    def _run(self, searched: Searched) -> None:
        self._deliver(self.receiver.follow_up(searched))
