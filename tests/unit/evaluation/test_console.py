"""The console: overwritten lines on a terminal, nothing at all in a pipe, times in both."""

import io
import os
import pty
import subprocess
import sys
import threading

import pytest

from multisc.evaluation.console import Console, summary
from multisc.evaluation.result import ChannelInfo, ImageInfo, Result, TextInfo


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and tells when the stage's line was first painted."""

    encoding = "utf-8"

    def __init__(self):
        super().__init__()
        self.painted = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        self.painted.set()
        return super().write(text)


@pytest.fixture(autouse=True)
def _terminal_type(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def shown(text):
    """What a terminal shows after carriage returns and erasures."""
    return [line.split("\r")[-1].replace("\x1b[K", "") for line in text.split("\n")]


def test_terminal_shows_one_line_per_stage():
    terminal = Terminal()
    console = Console(terminal)
    with console.stage("encode") as stage:
        assert terminal.painted.wait(10)
        stage.note = "5 streams"
    with console.stage("transmit"):
        pass
    first, second, rest = shown(terminal.getvalue())
    assert first.startswith("✓ encode")
    assert first.endswith("s  5 streams")
    assert second.startswith("✓ transmit")
    assert rest == ""
    assert list(console.timings_s) == ["encode", "transmit"]


def test_failed_stage_is_marked_and_the_error_passes():
    terminal = Terminal()
    console = Console(terminal)
    with pytest.raises(KeyError), console.stage("decode"):
        raise KeyError("x")
    assert shown(terminal.getvalue())[0].startswith("✕ decode")
    assert console.timings_s["decode"] >= 0
    assert threading.active_count() == 1 or not any(t.name.endswith("(_paint)") for t in threading.enumerate())


def test_pipe_gets_nothing():
    stream = io.StringIO()
    console = Console(stream)
    with console.stage("encode") as stage:
        stage.note = "x"
    assert list(console.progress([1, 2, 3], "images")) == [1, 2, 3]
    assert stream.getvalue() == ""
    assert console.timings_s["encode"] >= 0


def test_dumb_terminal_gets_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Console(terminal).stage("encode"):
        pass
    assert terminal.getvalue() == ""


def test_stages_of_one_name_add_up():
    console = Console(io.StringIO())
    with console.stage("decode"):
        pass
    first = console.timings_s["decode"]
    with console.stage("decode"):
        pass
    assert list(console.timings_s) == ["decode"]
    assert console.timings_s["decode"] >= first


def test_terminal_without_unicode():
    terminal = Terminal()
    terminal.encoding = "ascii"
    with Console(terminal).stage("encode"):
        pass
    assert terminal.getvalue().isascii()


def test_long_note_does_not_wrap():
    terminal = Terminal()
    with Console(terminal).stage("encode") as stage:
        stage.note = "x" * 500
    assert max(map(len, shown(terminal.getvalue()))) < 80


CODE = """
from multisc.evaluation.console import Console
console = Console()
with console.stage("encode"): pass
assert list(console.progress(range(3), "images")) == [0, 1, 2]
print("summary")
"""


def test_real_pipe_stays_clean():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b"summary\n"


def test_real_terminal():
    parent, child = pty.openpty()
    done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=child, check=True)
    os.close(child)
    text = os.read(parent, 10_000).decode()
    os.close(parent)
    assert "encode" in text
    assert "\r" in text
    assert done.stdout == b"summary\n"


def result(outage_reason=None, snr_db=6.0, uses=300):
    values = {"psnr_db": 14.83, "ms_ssim": 0.4127, "bleu": None}
    return Result(
        *("multi-sc", "embedded", ImageInfo("a.png", 100, 100), ChannelInfo("awgn", snr_db=snr_db)),
        *([], uses, 400, outage_reason, TextInfo(), values, {"bleu": "no text"}),
    )


def test_summary():
    assert summary(result()) == "multi-sc: delivered, SNR 6 dB, CBR 0.0100, PSNR 14.8 dB, MS-SSIM 0.413"
    assert summary(result("no preamble")).startswith("multi-sc: outage (no preamble), SNR 6 dB, CBR 0.0100")
    assert "CBR 0.000100, " in summary(result(uses=3))  # as few as a caption takes are not "0.0001"
    assert "\x1b" not in summary(result("a\x1b[2Jb\nc"))
    assert "\n" not in summary(result("a\x1b[2Jb\nc"))
    assert "SNR" not in summary(result(snr_db=None)).replace("PSNR", "")
