"""The examples run and say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_own_streams() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_streams.py"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "0 wrong of 20000 bits, CRC right: True" in done.stdout
