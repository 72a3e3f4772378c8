"""A window that shows what is received while it is received."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pmt

from .. import pdu
from ..qt.image_view import view_of
from .message_block import Faults, MessageBlock

if TYPE_CHECKING:
    from PyQt5.QtWidgets import QWidget


class image_sink(MessageBlock):
    """Shows pictures in a Qt window as they arrive.

    Inputs ``draft`` and ``image`` of the semantic decoder: first the subject in its place on an empty canvas and the
    captions as received, then the rebuilt picture and the captions as corrected. An outage empties the canvas and
    says why: no earlier picture stays there. Of pictures that come faster than they are painted only the newest is.

    Made in Qt's thread, where there must be a QApplication, as in every flowgraph with the option "QT GUI".

    Args:
        title: shown above the picture.
        system: shows only pictures of this system; empty for all.
        faults: shared record of failures.

    Raises:
        BadInputError: without a QApplication.

    Attributes:
        views: how many pictures, drafts and outages came.
    """

    def __init__(self, title: str = "", system: str = "", faults: Faults | None = None) -> None:
        super().__init__("multisc_image_sink", ["draft", "image"], [], faults)
        # Late: Qt is for flowgraphs with a window only.
        from ..qt.image_window import ImageWindow
        from ..qt.painter import Painter

        self._system = system
        self.window = ImageWindow(title)
        self._painter = Painter(self.window.paint)
        self.views = 0

    def widget(self) -> QWidget:
        """The widget, for the flowgraph's layout."""
        return self.window

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Show a picture or its draft."""
        if pdu.is_end(message):
            return
        view = view_of(*pdu.unpack(message))
        if self._system in ("", view.system):
            self.views += 1
            self._painter.show(view)
