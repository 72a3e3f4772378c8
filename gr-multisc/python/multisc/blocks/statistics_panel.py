"""A panel that shows the link statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pmt

from .. import pdu
from .link_statistics import state_of
from .message_block import Faults, MessageBlock

if TYPE_CHECKING:
    from PyQt5.QtWidgets import QWidget


class statistics_panel(MessageBlock):
    """Shows the messages of the link statistics in Qt: the newest one, faults in red.

    Input ``statistics``. Made in Qt's thread, where there must be a QApplication.

    Args:
        title: shown above the numbers.
        faults: shared record of failures.

    Raises:
        BadInputError: without a QApplication.
    """

    def __init__(self, title: str = "", faults: Faults | None = None) -> None:
        super().__init__("multisc_statistics_panel", ["statistics"], [], faults)
        # Late: Qt is for flowgraphs with a window only.
        from ..qt.painter import Painter
        from ..qt.statistics_window import StatisticsWindow

        self.window = StatisticsWindow(title)
        self._painter = Painter(self.window.paint)

    def widget(self) -> QWidget:
        """The widget, for the flowgraph's layout."""
        return self.window

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Show one message."""
        if not pdu.is_end(message):
            self._painter.show(state_of(message))
