"""Blocks whose failures are never silent.

GNU Radio ends the thread of a block whose message handler raises, while the graph runs on and exits with 0.
Here the exception is kept, counted, logged and handed to whoever waits for the graph.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ClassVar

import pmt
from gnuradio import gr

from multisc.errors import MultiscError

from .. import pdu


class Faults:
    """The first exception of any block of a flowgraph, and how many there were.

    One object is shared by the blocks of a graph; without one each block has its own and only logs. Blocks that
    show failures, whoever they belong to, are told of all of them: ``watch``.

    Args:
        quiet: whether errors meant for the user are not logged, because the program reports the first itself.
    """

    any_failed: ClassVar[bool] = False  # in this process
    _watchers: ClassVar[set[Callable[[str, Exception], None]]] = set()

    @classmethod
    def watch(cls, watcher: Callable[[str, Exception], None]) -> None:
        """Have ``watcher`` called with the block's name and the exception, in the thread in which it failed."""
        cls._watchers.add(watcher)

    @classmethod
    def unwatch(cls, watcher: Callable[[str, Exception], None]) -> None:
        """Stop telling ``watcher``."""
        cls._watchers.discard(watcher)

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self.first: Exception | None = None
        self.count = 0
        self._lock = threading.Lock()

    def add(self, error: Exception, where: str) -> None:
        """Record an exception that ended the work of the block ``where``, and log it there."""
        with self._lock:
            self.count += 1
            Faults.any_failed = True
            if self.first is None:
                self.first = error
        if not isinstance(error, MultiscError):
            gr.logger(where).error("".join(traceback.format_exception(error)))
        elif not self._quiet:
            gr.logger(where).error(str(error))
        for watcher in tuple(self._watchers):
            watcher(where, error)


class MessageBlock(gr.basic_block):
    """A block that only passes messages; ``handle`` is called for each, one at a time.

    Args:
        name: name of the block in GNU Radio.
        inputs: names of the input ports.
        outputs: names of the output ports.
        faults: shared record of failures.
    """

    def __init__(self, name: str, inputs: list[str], outputs: list[str], faults: Faults | None = None) -> None:
        super().__init__(name, in_sig=None, out_sig=None)
        self.faults = faults or Faults()
        for port in inputs:
            self.message_port_register_in(pmt.intern(port))
            # GNU Radio looks the handler up on the block by its name.
            handler = self._guarded(port)
            setattr(self, handler.__name__, handler)
            self.set_msg_handler(pmt.intern(port), handler)
        for port in outputs:
            self.message_port_register_out(pmt.intern(port))

    def outlive(self) -> None:
        """Run until the flowgraph is stopped.

        When a block has finished, GNU Radio ends those behind it, whatever other blocks and threads still have for
        them. So a block behind several others, or with work of its own under way, would lose what is yet to come.
        """
        self.set_msg_handler(pmt.intern("system"), self._ignore)

    def _ignore(self, message: pmt.pmt_base) -> None:
        """Take no notice."""

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Process one message that came in at ``port``; may raise."""
        raise NotImplementedError

    def send(self, port: str, message: pmt.pmt_base) -> None:
        """Publish a message at an output port."""
        self.message_port_pub(pmt.intern(port), message)

    def log(self, line: str) -> None:
        """Write a line to GNU Radio's log."""
        gr.logger(self.alias()).info(line)

    def _guarded(self, port: str) -> Callable[[pmt.pmt_base], None]:
        def guarded(message: pmt.pmt_base) -> None:
            try:
                self.handle(port, message)
            except Exception as error:
                self.faults.add(error, self.alias())

        guarded.__name__ = f"_handle_{port}"
        return guarded


def is_watched(block: gr.basic_block, port: str) -> bool:
    """Whether anything is connected to an output for messages."""
    return not pmt.is_null(block.message_subscribers(pmt.intern(port)))


def guarded_work(work: Callable) -> Callable:
    """Decorate the work function of a block that has ``faults``: an exception is recorded and ends the block."""

    @wraps(work)
    def guarded(self: gr.basic_block, input_items: list, output_items: list) -> int:
        try:
            return work(self, input_items, output_items)
        except Exception as error:
            self.faults.add(error, self.alias())
            return -1

    return guarded


class collector(MessageBlock):
    """A sink that keeps the messages of its port ``in`` and says when ``pdu.END`` has come.

    Args:
        faults: shared record of failures.

    Attributes:
        messages: what came, in order, without ``END``.
        done: set when ``END`` came.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__("multisc_collector", ["in"], [], faults)
        self.messages: list[pmt.pmt_base] = []
        self.done = threading.Event()

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Keep one message."""
        if pdu.is_end(message):
            self.done.set()
        else:
            self.messages.append(message)
