"""The Qt widgets of the image sink."""

from __future__ import annotations

import difflib
import html
import math
import time

import numpy as np
from PyQt5 import QtCore, QtGui, QtWidgets

from multisc.errors import BadInputError

from .image_view import View

BACKGROUND = QtGui.QColor(32, 32, 36)
CANVAS = QtGui.QColor(72, 72, 78)
TEXT = QtGui.QColor(225, 225, 225)
OUTAGE = QtGui.QColor(255, 110, 100)
HOLD_S = 5.0  # seconds for which a picture is looked at before a draft takes its place
WRONG, MENDED = "#c03030", "#1a5fb4"


def check_application() -> None:
    """Refuse to make a widget without a QApplication, which would end the process.

    Raises:
        BadInputError: when there is none.
    """
    if QtWidgets.QApplication.instance() is None:
        raise BadInputError("a Qt window without a QApplication: set the flowgraph's Generate Options to QT GUI")


class ImageWindow(QtWidgets.QWidget):
    """Title, canvas, captions.

    Args:
        title: shown above the picture.
    """

    def __init__(self, title: str) -> None:
        check_application()
        super().__init__()
        self.canvas = Canvas()
        self.heading = QtWidgets.QLabel(title or "Received picture")
        self.status = QtWidgets.QLabel("nothing received yet")
        self.captions = QtWidgets.QLabel()
        self.heading.setStyleSheet("font-weight: bold")
        for label in (self.status, self.captions):
            label.setWordWrap(True)
            label.setTextInteractionFlags(QtCore.Qt.TextSelectableByMouse)
        self.status.setTextFormat(QtCore.Qt.PlainText)
        self.captions.setTextFormat(QtCore.Qt.RichText)  # everything in it is escaped
        self.captions.setAlignment(QtCore.Qt.AlignTop)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.heading)
        layout.addWidget(self.canvas, 1)
        layout.addWidget(self.status)
        layout.addWidget(self.captions)
        self.setMinimumSize(320, 360)
        self._since = 0.0  # when the picture or outage was painted
        self._held: View | None = None

    def paint(self, view: View) -> None:
        """Show an image, its draft or its outage; a draft waits until a picture has been there for ``HOLD_S``."""
        now = time.monotonic()
        wait = self._since + HOLD_S - now
        self._held = view if view.is_draft and wait > 0 else None
        if self._held is not None:
            QtCore.QTimer.singleShot(math.ceil(1000 * wait), self._paint_held)
            return
        if not view.is_draft:
            self._since = now
        self._show(view)

    def _paint_held(self) -> None:
        if self._held is not None:
            self.paint(self._held)

    def _show(self, view: View) -> None:
        self.canvas.show_view(view)
        lost = f", not delivered: {', '.join(view.lost)}" if view.lost else ""
        self.status.setText(
            f"{time.strftime('%H:%M:%S')}  image {view.image_id}, {view.system}: {_stage(view)}{lost}"
        )
        self.captions.setText(_captions(view))


class Canvas(QtWidgets.QWidget):
    """The picture, as large as there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self._view: View | None = None
        self._image: QtGui.QImage | None = None
        self.setMinimumSize(300, 220)
        self.setSizePolicy(QtWidgets.QSizePolicy.Expanding, QtWidgets.QSizePolicy.Expanding)

    def show_view(self, view: View) -> None:
        """Replace what is shown."""
        self._view = view
        pixels = view.picture if view.picture is not None else view.piece
        self._image = None if pixels is None else _image(pixels)
        self.update()

    def has_picture(self) -> bool:
        """Whether a rebuilt picture is shown: no draft, no outage."""
        return self._view is not None and self._view.picture is not None

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draw; called by Qt."""
        painter = QtGui.QPainter(self)
        painter.fillRect(self.rect(), BACKGROUND)
        painter.setRenderHint(QtGui.QPainter.SmoothPixmapTransform)
        view = self._view
        if view is None:
            self._write(painter, "waiting", TEXT)
        elif view.outage_reason:
            self._write(painter, f"OUTAGE\n{view.outage_reason}", OUTAGE)
        elif view.picture is not None and self._image is not None:
            painter.drawImage(self._place(view.size), self._image)
        else:
            self._draw_draft(painter, view)
        painter.end()

    def _draw_draft(self, painter: QtGui.QPainter, view: View) -> None:
        place = self._place(view.size)
        painter.fillRect(place, CANVAS)
        if self._image is None:
            self._write(painter, "the subject has not arrived", TEXT)
            return
        scale = place.width() / view.size[0]
        x, y, width, height = view.box
        corner = place.topLeft() + QtCore.QPointF(x * scale, y * scale)
        painter.drawImage(QtCore.QRectF(corner, QtCore.QSizeF(width * scale, height * scale)), self._image)

    def _place(self, size: tuple[int, int]) -> QtCore.QRectF:
        """Where a picture of some size goes: in the middle, its proportions kept."""
        fitted = QtCore.QSizeF(*map(float, size)).scaled(QtCore.QSizeF(self.size()), QtCore.Qt.KeepAspectRatio)
        corner = QtCore.QPointF((self.width() - fitted.width()) / 2, (self.height() - fitted.height()) / 2)
        return QtCore.QRectF(corner, fitted)

    def _write(self, painter: QtGui.QPainter, text: str, colour: QtGui.QColor) -> None:
        painter.setPen(colour)
        painter.drawText(self.rect(), int(QtCore.Qt.AlignCenter | QtCore.Qt.TextWordWrap), text)


def _image(pixels: np.ndarray) -> QtGui.QImage:
    height, width = pixels.shape[:2]
    return QtGui.QImage(pixels.tobytes(), width, height, 3 * width, QtGui.QImage.Format_RGB888).copy()


def _stage(view: View) -> str:
    if view.outage_reason:
        return "outage"
    return "picture" if view.picture is not None else "streams have arrived, the picture is being rebuilt"


def _captions(view: View) -> str:
    """The captions as rich text; where correction changed one, what it replaced in red and the new words in blue."""
    rows = []
    for number, received in enumerate(view.received):
        corrected = view.corrected[number] if number < len(view.corrected) else received
        rows.append(f"{number + 1}. {_differences(received.split(), corrected.split())}")
    return "<br>".join(rows)


def _differences(before: list[str], after: list[str]) -> str:
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(html.escape(" ".join(before[a:b])))
            continue
        if a < b:
            parts.append(f'<s style="color:{WRONG}">{html.escape(" ".join(before[a:b]))}</s>')
        if c < d:
            parts.append(f'<b style="color:{MENDED}">{html.escape(" ".join(after[c:d]))}</b>')
    return " ".join(parts)
