"""The examples run and say what they should."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from multisc.cli import main
from multisc.images import save_png
from multisc.systems.registry import SYSTEMS, Entry
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"


def test_own_streams() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_streams.py"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "0 wrong of 20000 bits, CRC right: True" in done.stdout


def test_thumbnail_system() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "thumbnail_system.py"], capture_output=True, text=True, timeout=120, check=True
    )
    levels = [float(line.split("PSNR ")[1].split()[0]) for line in done.stdout.splitlines()]
    assert len(levels) == 4
    assert levels == sorted(levels)
    assert levels[-1] > 24


def test_documented_system_works_under_its_name(monkeypatch, tmp_path, capsys) -> None:
    """One file and one line, as docs/how-to/adding-a-system.md says; nothing else knows the system."""
    line = next(
        line
        for line in (EXAMPLES.parent / "docs/how-to/adding-a-system.md").read_text().splitlines()
        if line.startswith('    "thumbnail": Entry(')
    )
    text = line.split(": ", 1)[1].rstrip(",").replace("multisc.systems.thumbnail", "thumbnail_system")
    entry = eval(text, {"Entry": Entry})
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setitem(SYSTEMS, "thumbnail", entry)
    save_png(tmp_path / "noise.png", np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8))
    command = ["sweep", "--images", str(tmp_path / "noise.png"), "--snr", "8", "--system", "thumbnail,side=40"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("thumbnail,side=40"))
    assert row.split()[2] == "0.00"
