"""GNU Radio Companion's compiler, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

BLOCKS = ROOT / "gr-multisc" / "grc"


def compile_flowgraph(flowgraph: Path, folder: Path) -> None:
    """Have Companion's compiler make the program of a flowgraph in a folder."""
    grcc = f"import sys; sys.argv = ['grcc', '-o', {str(folder)!r}, {str(flowgraph)!r}]; " + (
        "from gnuradio.grc.compiler import main; main()"
    )
    compiled = subprocess.run(
        [sys.executable, "-c", grcc], check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "GRC_BLOCKS_PATH": str(BLOCKS)},
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    assert list(folder.glob("*.py"))
