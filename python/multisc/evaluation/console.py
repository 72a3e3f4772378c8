"""Progress on a terminal and silence in a pipe; the times of the stages either way."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO, TypeVar

from tqdm import tqdm

from multisc.evaluation.result import Result

T = TypeVar("T")

_REFRESH_S = 0.1
_CLEAR = "\r\x1b[K"
_ROUND = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ROUND_ASCII = "|/-\\"


@dataclass
class Stage:
    """A stage under way; what is set as ``note`` stands behind its time."""

    name: str
    note: str = ""


class Console:
    """Tells a person at a terminal what is being done; writes nothing, not even a control character, elsewhere.

    Args:
        stream: where to write; standard error if None, so that standard output carries results only.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        unicode = (getattr(self._stream, "encoding", None) or "ascii").lower().startswith("utf")
        self._round, self._right, self._wrong = (_ROUND, "✓", "✕") if unicode else (_ROUND_ASCII, "+", "x")
        self.timings_s: dict[str, float] = {}
        """Seconds by stage, in the order of the first start; stages of one name add up. Also kept in a pipe."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a stage with a turning sign and its time while the block runs, and one line when it is done.

        Stages follow each other; they do not nest. An exception passes through and marks the stage as failed.

        Args:
            name: what is being done, one word or two.
        """
        stage = Stage(name)
        started = time.monotonic()
        done = threading.Event()
        painter = threading.Thread(target=self._paint, args=(stage, started, done), daemon=True)
        self.timings_s.setdefault(name, 0.0)
        if self._live:
            painter.start()
        sign = self._wrong
        try:
            yield stage
            sign = self._right
        finally:
            self.timings_s[name] += time.monotonic() - started
            if self._live:
                done.set()
                painter.join()
                self._write(f"{_CLEAR}{self._line(sign, stage, started)}\n")

    def progress(self, items: Iterable[T], name: str, total: int | None = None) -> Iterable[T]:
        """Go through long work with a bar on a terminal.

        Args:
            items: what to go through.
            name: what is being done.
            total: number of items, where ``items`` has no length.
        """
        return tqdm(items, desc=name, total=total, file=self._stream, disable=not self._live, leave=False)

    def _paint(self, stage: Stage, started: float, done: threading.Event) -> None:
        turn = 0
        while True:
            self._write(_CLEAR + self._line(self._round[turn % len(self._round)], stage, started))
            turn += 1
            if done.wait(_REFRESH_S):
                return

    def _line(self, sign: str, stage: Stage, started: float) -> str:
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            width = 80
        line = f"{sign} {stage.name:<12} {time.monotonic() - started:6.1f} s  {stage.note}".rstrip()
        # A line that wraps could not be overwritten; a terminal of unknown width reports 0.
        return line[: width - 1] if width > 1 else line

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def summary(result: Result) -> str:
    """What came of an image, in one line for people and for ``grep``.

    Returns:
        For example ``multi-sc: delivered, SNR 6 dB, CBR 0.0168, PSNR 14.8 dB, MS-SSIM 0.413, BLEU 0.741``, or
        ``multi-sc: outage (no stream of the picture was delivered), SNR 0 dB, CBR 0.0168``.
    """
    parts = [f"outage ({result.outage_reason})" if result.outage else "delivered"]
    if result.channel.snr_db is not None:
        parts.append(f"SNR {result.channel.snr_db:g} dB")
    elif result.channel.snr_estimated_db is not None:
        parts.append(f"estimated SNR {result.channel.snr_estimated_db:.1f} dB")
    parts.append(f"CBR {result.cbr:#.3g}")
    shown = (("psnr_db", "PSNR {:.1f} dB"), ("ms_ssim", "MS-SSIM {:.3f}"), ("bleu", "BLEU {:.3f}"))
    for name, form in shown:
        value = result.metrics.get(name)
        if value is not None:
            parts.append(form.format(value))
    line = f"{result.system}: {', '.join(parts)}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)  # names may come from the air
