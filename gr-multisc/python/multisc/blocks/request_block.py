"""Blocks whose work takes seconds in another process: it is waited for outside of GNU Radio's threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import pmt

from .message_block import Faults, MessageBlock

Job = Callable[[], list[tuple[str, pmt.pmt_base]]]


class RequestBlock(MessageBlock):
    """A message block that does its jobs in a thread of its own, in order.

    A flowgraph can be stopped while a job is under way: GNU Radio waits for a message handler, and a picture may take
    a minute. What a job that was left behind still returns is thrown away.

    Args:
        name, inputs, outputs: as ``MessageBlock``.
        latest: whether a new job takes the place of one that has not begun, so that a block that is slower than what
            comes in shows the newest and not the oldest, in bounded memory.
        faults: shared record of failures.

    Attributes:
        skipped: jobs whose place was taken.
    """

    def __init__(
        self, name: str, inputs: list[str], outputs: list[str], latest: bool, faults: Faults | None = None
    ) -> None:
        super().__init__(name, inputs, outputs, faults)
        self._latest = latest
        self._condition = threading.Condition()
        self._jobs: deque[tuple[Job, bool]] = deque()
        self._worker: threading.Thread | None = None
        self.skipped = 0
        self.outlive()

    def submit(self, job: Job, droppable: bool = True) -> None:
        """Have a job done: it returns the messages to send, as pairs of port and message."""
        with self._condition:
            if self._latest and droppable:
                kept = [(waiting, may_go) for waiting, may_go in self._jobs if not may_go]
                self.skipped += len(self._jobs) - len(kept)
                self._jobs = deque(kept)
            self._jobs.append((job, droppable))
            if self._worker is None:
                # A daemon: it may hang in a request when the program ends.
                self._worker = threading.Thread(target=self._work, name=self.alias(), daemon=True)
                self._worker.start()
            self._condition.notify()

    def forward_behind(self, port: str, message: pmt.pmt_base) -> None:
        """Send a message when all that was submitted before is done."""
        self.submit(lambda: [(port, message)], droppable=False)

    def publish(self, port: str, message: pmt.pmt_base) -> None:
        """Send a message from within a job, unless the job was left behind."""
        with self._condition:
            current = threading.current_thread() is self._worker
        if current:
            self.send(port, message)

    def stop(self) -> bool:
        """Leave the job under way behind."""
        with self._condition:
            self._jobs.clear()
            self._worker = None
            self._condition.notify_all()
        return super().stop()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._worker is not me or self._jobs)
                if self._worker is not me:
                    return
                job, _ = self._jobs.popleft()
            try:
                for port, message in job():
                    self.publish(port, message)
            except Exception as error:
                with self._condition:
                    left_behind = self._worker is not me
                if not left_behind:
                    self.faults.add(error, self.alias())
