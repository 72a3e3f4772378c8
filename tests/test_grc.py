"""GNU Radio Companion finds every block, and every flowgraph compiles and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

gr = pytest.importorskip("gnuradio.gr", reason="GNU Radio is not installed")
pytest.importorskip("gnuradio.grc.core.platform", reason="GNU Radio Companion is not installed")

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = ROOT / "gr-multisc" / "grc"
FLOWGRAPHS = sorted((ROOT / "flowgraphs").glob("*.grc"))
pytestmark = pytest.mark.gnuradio


def test_every_description_loads_and_names_a_block_that_exists() -> None:
    import gnuradio.multisc
    from gnuradio.grc.core.platform import Platform

    platform = Platform(name="test", prefs=gr.prefs(), version=gr.version(), version_parts=("3", "10", "0"))
    platform.build_library([str(BLOCKS), *gr.prefs().get_string("grc", "global_blocks_path", "").split(":")])
    described = sorted(path.name.removesuffix(".block.yml") for path in BLOCKS.glob("*.block.yml"))
    assert sorted(name for name in platform.blocks if name.startswith("multisc_")) == described
    for name in described:
        assert hasattr(gnuradio.multisc, name.removeprefix("multisc_"))
        assert platform.blocks[name].category == ["multisc"]
        assert platform.blocks[name].documentation[""]


@pytest.mark.parametrize("flowgraph", FLOWGRAPHS, ids=lambda path: path.stem)
def test_every_flowgraph_compiles(flowgraph: Path, tmp_path: Path) -> None:
    compile_flowgraph(flowgraph, tmp_path)


def test_the_headless_loopback_delivers_a_picture(photograph, tmp_path: Path) -> None:
    from multisc.images import load_image, save_png

    compile_flowgraph(ROOT / "flowgraphs" / "loopback_headless.grc", tmp_path)
    save_png(tmp_path / "photo.png", photograph)
    done = tmp_path / "received" / "0.png"
    process = subprocess.Popen(
        [sys.executable, "loopback_headless.py", "--system", "bpg-ldpc", "--image", "photo.png", "--snr-db", "12"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        from link_support import eventually

        eventually(lambda: done.exists() or process.poll() is not None, "the picture arrives", 60)
        output, _ = process.communicate("\n", timeout=30)
    finally:
        process.kill()
    assert done.exists(), output
    assert load_image(done).shape == photograph.shape


def compile_flowgraph(flowgraph: Path, folder: Path) -> None:
    grcc = f"import sys; sys.argv = ['grcc', '-o', {str(folder)!r}, {str(flowgraph)!r}]; " + (
        "from gnuradio.grc.compiler import main; main()"
    )
    compiled = subprocess.run(
        [sys.executable, "-c", grcc], check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "GRC_BLOCKS_PATH": str(BLOCKS)},
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    assert list(folder.glob("*.py"))
