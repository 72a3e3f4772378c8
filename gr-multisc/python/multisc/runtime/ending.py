"""How a program of a flowgraph without a window ends: when all has arrived, with Enter, or with one line of trouble.

What is here is for the Python Snippets of flowgraphs.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol

from gnuradio import gr

from multisc.errors import MultiscError

from ..blocks.message_block import Faults
from .driver_log import DriverLog
from .front_end import STOP_TIMEOUT_S, StallWatchdog, explained

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


def run_until_enter(graph: gr.top_block, radio: gr.block, driver: str) -> None:
    """Wait for Enter, or the end of the input, then stop a flowgraph that was started and say what was lost.

    For a Python Snippet "Main - After Start", with the run option "Run to Completion". What the driver prints is
    passed on, less what it repeats while its device is gone.

    Args:
        graph: the flowgraph.
        radio: the device's source or sink.
        driver: "soapy" or "uhd".

    Raises:
        SystemExit: with the exit code 1 when the radio stands still; one line has said so.
    """
    moved = radio.nitems_read if radio.input_signature().max_streams() else radio.nitems_written
    with DriverLog(driver, print) as log:
        print("Press Enter to quit: ", end="", flush=True)
        watchdog = StallWatchdog(log)
        while not select.select([sys.stdin], [], [], LOOK_S)[0]:
            if watchdog.stalled(moved(0)):
                said = log.last_words() or "no sample came or went"
                _give_up(graph, f"the radio stands still: {said}; was it unplugged?")
    if log.overflows or log.underflows:
        print(f"{log.overflows} overflows, {log.underflows} underflows: samples were lost")
    graph.stop()


def _give_up(graph: gr.top_block, why: str) -> None:
    """End the program, also when the driver holds up the flowgraph's end."""
    graph.stop()
    waiter = threading.Thread(target=graph.wait, daemon=True)
    waiter.start()
    waiter.join(STOP_TIMEOUT_S)
    if waiter.is_alive():
        why += f" Its driver does not come back within {STOP_TIMEOUT_S:g} s: plug it in anew."
    _say(why)
    if waiter.is_alive():
        sys.stderr.flush()
        os._exit(1)  # the interpreter's own end would wait for the driver's threads
    sys.exit(1)


def plain_errors() -> None:
    """Let the program end with one line when a block cannot be made because of a device, a file or a value.

    For a Python Snippet "Init - Before Blocks". A mistake in the program keeps its traceback.
    """
    sys.excepthook = _say_plainly


def _say_plainly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, MultiscError):
        _say(str(error))
    elif isinstance(error, Exception) and kind in (RuntimeError, LookupError, ValueError):
        _say(explained(error))  # what drivers raise arrives as one of these, never as KeyError or the like
    else:
        sys.__excepthook__(kind, error, trace)


def _say(why: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr)
