"""How a program of a flowgraph without a window ends: when everything has arrived, or when a block has failed."""

from __future__ import annotations

import sys
import threading
from typing import Protocol

from gnuradio import gr

from .message_block import Faults

LOOK_S = 0.05


class Sink(Protocol):
    """A block that knows when it has everything."""

    done: threading.Event


def run_to_end(graph: gr.top_block, *sinks: Sink) -> None:
    """Wait until every sink is done, then stop a flowgraph that was started.

    For a Python Snippet "Main - After Start". Ctrl-C and SIGTERM do what the program has set up for them.

    Raises:
        SystemExit: with the exit code 1 when any block of the process has failed; it has logged why.
    """
    for sink in sinks:
        while not sink.done.wait(LOOK_S) and not Faults.any_failed:
            pass
    graph.stop()
    if Faults.any_failed:
        graph.wait()
        sys.exit(1)
