"""What radio drivers print while they run: the only place where most of them say that samples were lost."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

MAX_LINE = 4096
# What the drivers print, without a line's end: gr-soapy, and UHD. U, S and L are losses of the transmitter.
_SIGNS = {
    "soapy": (re.compile(rb"(?:s[OU])+"), (b"sU",), (b"sO",)),
    "uhd": (re.compile(rb"[UOSLD]+(?![A-Za-z])"), (b"U", b"S", b"L"), (b"O", b"D")),
}
_FAILURE = re.compile(r"Soapy (?:source|sink) error: (?!TIMEOUT).*")  # gr-soapy repeats it while the device is gone


class DriverLog:
    """While it is entered, standard output and standard error of native code are read here and go no further.

    Python's own ``sys.stdout`` and ``sys.stderr`` still reach the terminal. Not to be nested.

    Args:
        driver: "soapy" or "uhd".
        on_line: called with each line, but the signs of losses and the lines that say that the device failed.

    Attributes:
        underflows: how many times the device had nothing to send.
        overflows: how many times it lost received samples.
        failure: the first line that says that the device failed; empty as long as there is none.
        lines: the latest lines of all kinds.
    """

    def __init__(self, driver: str, on_line: Callable[[str], object] = lambda line: None) -> None:
        self._on_line = on_line
        self._signs, self._under, self._over = _SIGNS[driver]
        self.underflows = 0
        self.overflows = 0
        self.failure = ""
        self.lines: deque[str] = deque(maxlen=20)
        self._rest = b""

    def __enter__(self) -> DriverLog:
        sys.stdout.flush()
        sys.stderr.flush()
        self._usual = (sys.stdout, sys.stderr)
        self._saved = (os.dup(1), os.dup(2))
        reader, writer = os.pipe()
        for number in (1, 2):
            os.dup2(writer, number)
        os.close(writer)
        sys.stdout, sys.stderr = (_open(saved, usual) for saved, usual in zip(self._saved, self._usual, strict=True))
        self._thread = threading.Thread(target=self._read, args=(reader,), name="driver log", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number)  # which closes the pipe's last ends, so that the thread comes to its end
        self._thread.join(1.0)  # unless a process that was started meanwhile holds one
        (sys.stdout, own_out), (sys.stderr, own_err) = zip(self._usual, (sys.stdout, sys.stderr), strict=True)
        own_out.close()
        own_err.close()

    def feed(self, chunk: bytes) -> None:
        """Take in what was printed, in pieces of any size."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(self._count(line))
        rest = self._count(rest) if rest else rest
        if len(rest) > MAX_LINE:
            self._line(rest)
            rest = b""
        self._rest = rest

    def last_words(self) -> str:
        """What the driver said last, as one line; empty when it said nothing."""
        return self.failure or (self.lines[-1] if self.lines else "")

    def _read(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            while chunk := pipe.read(4096):
                self.feed(chunk)

    def _count(self, line: bytes) -> bytes:
        """Count the signs at the beginning of a line and return what is behind them."""
        found = self._signs.match(line)
        if found is None:
            return line
        signs = found.group()
        self.underflows += sum(signs.count(sign) for sign in self._under)
        self.overflows += sum(signs.count(sign) for sign in self._over)
        return line[found.end() :]

    def _line(self, line: bytes) -> None:
        text = "".join(c if c.isprintable() else " " for c in line.decode("utf-8", "replace")).strip()
        if not text:
            return
        self.lines.append(text[:MAX_LINE])
        failure = _FAILURE.search(text)
        if not failure:
            self._on_line(text)
        elif not self.failure:
            self.failure = failure.group()


def _open(descriptor: int, like: TextIO) -> TextIO:
    return os.fdopen(descriptor, "w", buffering=1, encoding=like.encoding, errors="backslashreplace")
