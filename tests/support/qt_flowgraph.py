"""Runs a compiled Qt flowgraph through a scenario: ``qt_flowgraph.py FOLDER FLOWGRAPH SCENARIO [name=value ...]``.

A program of its own, because a QApplication can be made once in a process and its end is part of what is tested.
The scenario prints what it saw; the caller reads it.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import time

from PyQt5 import QtCore, QtWidgets

DEADLINE_S = 90.0


class Run:
    """A flowgraph under test.

    Args:
        graph: the top block, which is the window too.
        application: Qt's.
    """

    def __init__(self, graph, application: QtWidgets.QApplication) -> None:
        self.graph = graph
        self._application = application

    def until(self, condition, what: str) -> None:
        """Let Qt work until a condition holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {DEADLINE_S} s; {self.graph.statistics.state}"
            self._application.processEvents(QtCore.QEventLoop.AllEvents, 20)
            time.sleep(0.005)

    def until_shown(self, sink, count: int = 1) -> None:
        """Let Qt work until a sink has painted some more pictures."""
        wanted = sink.views + count
        self.until(lambda: sink.views >= wanted, "the picture arrives")
        self._application.processEvents()


def sliders(run: Run) -> dict:
    """Turns every knob during the run, then makes the channel so bad that nothing arrives."""
    graph = run.graph
    run.until_shown(graph.sink)
    graph.set_cfo_hz(700.0)
    graph.set_snr_db(18.0)
    graph.set_modulation("16qam")
    near = lambda value, wanted, within: abs(value - wanted) < within  # noqa: E731
    run.until(lambda: near(graph.statistics.state.cfo_hz, 700.0, 30.0), "the carrier offset is measured")
    run.until(lambda: near(graph.statistics.state.snr_db, 18.0, 1.0), "the SNR is measured")
    run.until_shown(graph.sink, 2)
    seen = {"modulation": graph.encoder.encoded.streams[0].modulation, "shown": graph.sink.window.status.text()}
    graph.set_snr_db(-5.0)
    run.until(lambda: graph.statistics.state.outages > 0, "an outage")
    run.until(lambda: "outage" in graph.sink.window.status.text(), "the outage is shown")
    run.until(lambda: not graph.panel.window.values[-1].text().endswith(", 0"), "the panel counts the outage")
    return seen | {"picture": graph.sink.window.canvas.has_picture(), "panel": graph.panel.window.values[-1].text()}


def picture(run: Run) -> dict:
    """Waits for a picture in each window."""
    sinks = [getattr(run.graph, name) for name in ("sink", "sink_bpg") if hasattr(run.graph, name)]
    for sink in sinks:
        run.until(lambda sink=sink: sink.views > 0 and sink.window.canvas.has_picture(), "the picture arrives")
    run.until(lambda: run.graph.statistics.state.images >= len(sinks), "the pictures are counted")
    return {"status": [sink.window.status.text() for sink in sinks], "faults": run.graph.statistics.state.faults}


def fault(run: Run) -> dict:
    """Waits until the failure of a block is shown."""
    run.until(lambda: "failed, the latest" in run.graph.panel.window.fault.text(), "the fault is shown")
    return {"fault": run.graph.panel.window.fault.text()}


def busy(run: Run) -> dict:
    """Leaves a request to the inference process under way."""
    run.graph.encoder.set_options({"gate": sys.argv[4]})
    run.until(lambda: run.graph.encoder._worker is not None, "the request is made")
    return {}


def main() -> None:
    """Run the scenario, close the window, say how long that took."""
    faulthandler.dump_traceback_later(2 * DEADLINE_S, exit=True)
    folder, name, scenario, *options = sys.argv[1:]
    sys.path.insert(0, folder)
    application = QtWidgets.QApplication(sys.argv[:1])
    options = options[1:] if scenario == "busy" else options
    graph = getattr(importlib.import_module(name), name)(**dict(option.split("=", 1) for option in options))
    graph.start()
    graph.show()
    seen = globals()[scenario](Run(graph, application))
    begin = time.monotonic()
    graph.close()
    print(json.dumps(seen | {"closed_in_s": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
