"""Between a block's thread and Qt's: the newest state is painted, older ones that nobody saw are skipped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from PyQt5 import QtCore

T = TypeVar("T")


class _Signals(QtCore.QObject):
    shown = QtCore.pyqtSignal()


class Painter(Generic[T]):
    """Calls ``paint`` in Qt's thread with the newest of the states that were given to ``show`` in any thread.

    At most one call waits at a time, so that a slow window holds nothing up and no memory grows.

    Args:
        paint: called in the thread in which the painter is made, which must be Qt's.
    """

    def __init__(self, paint: Callable[[T], None]) -> None:
        self._paint = paint
        self._lock = threading.Lock()
        self._newest: T | None = None
        self._signals = _Signals()
        self._signals.shown.connect(self._take, QtCore.Qt.QueuedConnection)

    def show(self, state: T) -> None:
        """Paint a state soon."""
        with self._lock:
            waiting, self._newest = self._newest is not None, state
        if not waiting:
            self._signals.shown.emit()

    def _take(self) -> None:
        with self._lock:
            state, self._newest = self._newest, None
        if state is not None:
            self._paint(state)
