"""A program in front of ``| head -1``: nobody reads what it says last, and it ends without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multisc.cli import output
from tests.support.paths import ROOT


@pytest.fixture
def unread():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def run(unread: int, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=unread, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_multisc_without_a_reader(unread: int) -> None:
    done = run(unread, "-m", "multisc", "models", "list", "--models", "embedded")
    assert (done.returncode, done.stderr) == (output.EXIT_UNREAD, "")


@pytest.mark.gnuradio
def test_run_flowgraph_without_a_reader_has_written_its_files(unread: int, tmp_path: Path) -> None:
    pytest.importorskip("gnuradio.multisc")
    done = run(unread, ROOT / "run_flowgraph.py", "--system", "bpg-ldpc", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (output.EXIT_UNREAD, "")
    assert json.loads((tmp_path / "result.json").read_text())["outage"] is False
    assert (tmp_path / "report.html").exists()


def test_a_pipe_that_somebody_reads_is_left_alone() -> None:
    """The error is another pipe's then, and is not to be passed over."""
    code = "from multisc.cli import output; print(output.nobody_reads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
