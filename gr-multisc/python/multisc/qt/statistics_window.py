"""The Qt widget of the statistics panel."""

from __future__ import annotations

import math

from PyQt5 import QtCore, QtWidgets

from ..blocks.link_statistics import LinkState
from .image_window import check_application

ROWS = (
    ("Es/N0", lambda s: _number(s.snr_db, "{:.1f} dB")),
    ("EVM of the pilots", lambda s: _number(100 * s.evm, "{:.1f} %")),
    ("Carrier offset", lambda s: _number(s.cfo_hz, "{:+z.0f} Hz")),
    ("Clock offset", lambda s: _number(s.clock_ppm, "{:+.1f} ppm")),
    ("Bursts received, header wrong", lambda s: f"{s.bursts}, {s.header_failures}"),
    ("Burst error rate", lambda s: _number(100 * s.burst_error_rate, "{:.1f} %")),
    ("Coded blocks, CRC wrong", lambda s: f"{s.blocks}, {s.block_errors}"),
    ("Block error rate", lambda s: _number(100 * s.block_error_rate, "{:.1f} %")),
    ("Pictures, outages", lambda s: f"{s.images}, {s.outages}"),
)


class StatisticsWindow(QtWidgets.QGroupBox):
    """Names and numbers in two columns, and a line for faults.

    Args:
        title: shown above them.
    """

    def __init__(self, title: str) -> None:
        check_application()
        super().__init__(title or "Link statistics")
        form = QtWidgets.QFormLayout(self)
        self.values = []
        for name, _ in ROWS:
            value = QtWidgets.QLabel("-")
            value.setAlignment(QtCore.Qt.AlignRight)
            form.addRow(name, value)
            self.values.append(value)
        self.fault = QtWidgets.QLabel("no block has failed")
        self.fault.setTextFormat(QtCore.Qt.PlainText)
        self.fault.setWordWrap(True)
        form.addRow(self.fault)
        self.setMinimumWidth(260)

    def paint(self, state: LinkState) -> None:
        """Show a state."""
        for value, (_, text) in zip(self.values, ROWS, strict=True):
            value.setText(text(state))
        if state.faults:
            self.fault.setStyleSheet("color: #c03030; font-weight: bold")
            self.fault.setText(f"{state.faults} failed, the latest: {state.fault}")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
