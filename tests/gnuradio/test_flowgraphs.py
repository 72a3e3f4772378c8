"""The shipped flowgraphs compile and do what they say, with a window and without one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from multisc.evaluation import metrics
from multisc.images import load_image, save_png
from tests.support.grc import compile_flowgraph
from tests.support.inference import Gate, children_of, is_running, running_server
from tests.support.paths import ROOT

FLOWGRAPHS = sorted((ROOT / "flowgraphs").glob("*.grc"))
LIMIT_S = 240
pytestmark = pytest.mark.usefixtures("handlers_can_be_imported")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiles a flowgraph by its name, once; returns the folder of the programs."""
    folder = tmp_path_factory.mktemp("programs")

    @cache
    def compile_it(name: str) -> Path:
        compile_flowgraph(ROOT / "flowgraphs" / f"{name}.grc", folder)
        assert (folder / f"{name}.py").exists(), "the id of the flowgraph is not the name of its file"
        return folder

    return compile_it


@pytest.fixture
def photo(photograph, tmp_path: Path) -> Path:
    """A small photograph as a file."""
    path = tmp_path / "photo.png"
    save_png(path, np.ascontiguousarray(photograph[40:200, 100:300]))
    return path


@pytest.mark.parametrize("flowgraph", FLOWGRAPHS, ids=lambda path: path.stem)
def test_every_flowgraph_compiles_and_introduces_itself(flowgraph: Path, programs) -> None:
    programs(flowgraph.stem)
    content = yaml.safe_load(flowgraph.read_text())
    options = content["options"]["parameters"]
    for name in ("title", "author", "description"):
        assert options[name].strip() not in ("", "Not titled yet"), name
    assert any(block["id"] == "note" for block in content["blocks"])


def start(folder: Path, name: str, *arguments: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", str(folder / f"{name}.py"), *arguments],
        cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(folder: Path, name: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Run a flowgraph without a window to its end; returns exit code and output."""
    process = start(folder, name, *arguments, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output


def test_headless_loopback_delivers_a_picture_and_ends(programs, photo: Path, tmp_path: Path) -> None:
    folder = programs("loopback_headless")
    arguments = ("--system", "bpg-ldpc", "--image", str(photo), "--snr-db", "12")
    code, output = run(folder, "loopback_headless", *arguments, cwd=tmp_path)
    assert code == 0, output
    assert metrics.psnr_db(load_image(photo), load_image(tmp_path / "received" / "0.png")) > 28
    assert "images 1, outages 0" in output


def test_headless_flowgraph_reports_a_failed_block(programs, photo: Path, tmp_path: Path) -> None:
    folder = programs("loopback_headless")
    code, output = run(folder, "loopback_headless", "--system", "no-such", "--image", str(photo), cwd=tmp_path)
    assert code == 1
    assert "system 'no-such': must be one of" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("loopback_headless", ["--image", "none.png"], "none.png: no such file"),
        ("record_sigmf", ["--image", "none.png"], "none.png: no such file"),
        ("virtual_radio_tx", ["--image", "none.png"], "none.png: no such file"),
        ("loopback_qt", ["--image", "none.png"], "none.png: no such file"),
        ("bpg_ldpc_beside_multi_sc", ["--image", "none.png"], "none.png: no such file"),
        ("receive_sigmf", ["--recording", "none.sigmf-meta"], "none.sigmf-meta: no such file"),
    ],
)
def test_block_that_cannot_be_made_is_one_line(programs, name: str, arguments, what: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(programs(name) / f"{name}.py"), *arguments],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"{name}.py: {what}"]


def test_recorded_picture_is_received(programs, photo: Path, tmp_path: Path) -> None:
    folder = programs("record_sigmf")
    arguments = ("--system", "bpg-ldpc", "--image", str(photo), "--recording", "air.sigmf-meta")
    code, output = run(folder, "record_sigmf", *arguments, cwd=tmp_path)
    assert code == 0, output
    folder = programs("receive_sigmf")
    code, output = run(folder, "receive_sigmf", "--recording", "air.sigmf-meta", cwd=tmp_path)
    assert code == 0, output
    assert metrics.psnr_db(load_image(photo), load_image(tmp_path / "received" / "0.png")) > 28


def display(command: list[str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment for a program with a window: a virtual X server, or Qt without a screen."""
    if shutil.which("xvfb-run"):
        return ["xvfb-run", "-a", "-s", "-screen 0 1280x960x24", *command], {"QT_QPA_PLATFORM": "xcb"}
    return command, {"QT_QPA_PLATFORM": "offscreen"}


def scenario(folder: Path, name: str, what: str, *options: str, cwd: Path) -> dict:
    """Run a flowgraph with a window through a scenario of ``qt_flowgraph.py``; returns what was seen."""
    driver = ROOT / "tests" / "support" / "qt_flowgraph.py"
    command, environment = display([sys.executable, str(driver), str(folder), name, what, *options])
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment, "XDG_CONFIG_HOME": str(cwd), "XDG_RUNTIME_DIR": str(cwd)},
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    finally:
        left = [child for child in children_of(process.pid) if is_running(child)] if process.poll() is None else []
        process.kill()
        process.wait()
    assert process.returncode == 0, output + errors
    assert not left
    seen = json.loads(output.strip().splitlines()[-1])
    assert seen["closed_in_s"] < 10
    return seen


def test_every_knob_can_be_turned_while_the_loopback_runs(programs, photo: Path, tmp_path: Path) -> None:
    options = ("system=bpg-ldpc", f"image={photo}")
    seen = scenario(programs("loopback_qt"), "loopback_qt", "sliders", *options, cwd=tmp_path)
    assert seen["modulation"] == "16qam"
    assert "bpg-ldpc: picture" in seen["shown"]
    assert not seen["picture"], "an earlier picture is still shown during an outage"
    assert not seen["panel"].endswith(", 0")


def test_window_shows_which_block_failed(programs, photo: Path, tmp_path: Path) -> None:
    options = ("system=no-such", f"image={photo}")
    seen = scenario(programs("loopback_qt"), "loopback_qt", "fault", *options, cwd=tmp_path)
    assert "multisc_semantic_encoder" in seen["fault"]
    assert "'no-such'" in seen["fault"]


def test_both_systems_arrive_over_one_channel(programs, photo: Path, tmp_path: Path) -> None:
    with running_server() as server:
        options = (f"inference={server.address}", f"image={photo}")
        name = "bpg_ldpc_beside_multi_sc"
        seen = scenario(programs(name), name, "picture", *options, cwd=tmp_path)
    assert ["multi-sc: picture" in seen["status"][0], "bpg-ldpc: picture" in seen["status"][1]] == [True, True]
    assert seen["faults"] == 0


def test_window_closes_while_the_inference_process_is_busy(programs, photo: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with running_server() as server:
        options = (gate.path, f"inference={server.address}", f"image={photo}")
        scenario(programs("loopback_qt"), "loopback_qt", "busy", *options, cwd=tmp_path)
        gate.open()


def test_virtual_radio_in_two_programs(programs, photo: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    folder = programs("virtual_radio_tx")
    programs("virtual_radio_rx")
    arguments = ("--system", "bpg-ldpc", "--image", str(photo), "--address", address)
    transmitter = start(folder, "virtual_radio_tx", *arguments, cwd=tmp_path)
    try:
        seen = scenario(folder, "virtual_radio_rx", "picture", f"address={address}", cwd=tmp_path)
        assert "bpg-ldpc: picture" in seen["status"][0]
        output, _ = transmitter.communicate("\n", timeout=30)  # Enter, with nobody who takes the samples any more
        assert transmitter.returncode == 0, output
    finally:
        transmitter.kill()
        transmitter.wait()


def test_transmitter_without_a_receiver_ends_at_once(programs, photo: Path, tmp_path: Path) -> None:
    arguments = ("--system", "bpg-ldpc", "--image", str(photo), "--address", "tcp://127.0.0.1:*")
    transmitter = start(programs("virtual_radio_tx"), "virtual_radio_tx", *arguments, cwd=tmp_path)
    try:
        output, _ = transmitter.communicate("\n", timeout=LIMIT_S)
    finally:
        transmitter.kill()
        transmitter.wait()
    assert transmitter.returncode == 0, output
