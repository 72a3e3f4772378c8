"""run_flowgraph.py as its users run it: a program with a command line, files and an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.inference import Gate, children_of, eventually, is_running
from tests.support.paths import ROOT

PROGRAM = [sys.executable, str(ROOT / "run_flowgraph.py")]


def run(*arguments, timeout: float = 120, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    from skimage import data

    path = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(np.asarray(data.chelsea())).save(path)
    return path


# One process for all tests that need the models; run_flowgraph.py's own is tested by the first. It cannot import
# GNU Radio.
@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    from multisc.inference.process import OwnInferenceProcess

    process = OwnInferenceProcess("embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(forbid("gnuradio", tmp_path_factory.mktemp("hidden"))))
        process.start()
    yield process.address
    process.stop()


def forbid(module: str, folder: Path) -> Path:
    """Put a module of this name into the folder that cannot be imported."""
    (folder / f"{module}.py").write_text(f"raise ImportError('{module} does not belong into this process')")
    return folder


def test_multi_sc_end_to_end_with_its_own_inference_process(photo: Path, tmp_path: Path) -> None:
    done = run("--image", photo, "--snr", 20, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["system"] == "multi-sc"
    assert not result["outage"]
    assert [s["name"] for s in result["streams"]] == ["slice", "text-tl", "text-tr", "text-bl", "text-br"]
    assert [s["bit_errors"] for s in result["streams"]] == [None, 0, 0, 0, 0]  # the slice is analog
    assert len(result["text"]["sent"]) == 4
    assert result["text"]["received"] == result["text"]["sent"]
    assert result["metrics"]["slice_psnr_db"] > 27
    assert result["channel"]["snr_measured_db"] == pytest.approx(20, abs=0.1)
    assert result["channel_uses"] == sum(s["symbols"] for s in result["streams"])
    assert result["cbr"] == pytest.approx(result["channel_uses"] / (3 * 451 * 300))
    with Image.open(tmp_path / "received.png") as received:
        assert received.size == (451, 300)
    report = (tmp_path / "report.html").read_text()
    assert "<script" not in report
    assert 'src="http' not in report


def test_the_same_seed_gives_the_same_result(photo: Path, inference: str, tmp_path: Path) -> None:
    results, pictures = [], []
    for name in ("first", "second"):
        arguments = ("--image", photo, "--snr", 2, "--cfo", 700, "--seed", 5, "--inference", inference)
        done = run(*arguments, "--out", tmp_path / name, PYTHONPATH=str(forbid("torch", tmp_path)))
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / name / "result.json").read_text())
        del result["timings_s"]
        results.append(result)
        pictures.append((tmp_path / name / "received.png").read_bytes())
    assert results[0] == results[1]
    assert pictures[0] == pictures[1]


def test_errors_at_low_snr_are_delivered_and_shown(photo: Path, inference: str, tmp_path: Path) -> None:
    done = run("--image", photo, "--snr", "slice=8,text=-1", "--inference", inference, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["text"]["received"] != result["text"]["sent"]
    assert result["metrics"]["bleu_received"] < 1
    by_name = {s["name"]: s for s in result["streams"]}
    assert by_name["slice"]["snr_measured_db"] == pytest.approx(8, abs=0.2)
    assert by_name["text-tl"]["snr_measured_db"] == pytest.approx(-1, abs=0.2)
    assert by_name["text-tl"]["bit_errors"] > 0


def test_an_outage_is_a_result(photo: Path, inference: str, tmp_path: Path) -> None:
    (tmp_path / "received.png").write_bytes(b"of an earlier run")
    done = run("--image", photo, "--snr", -25, "--inference", inference, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["outage"] is True
    assert result["outage_reason"]
    assert result["metrics"]["psnr_db"] is None
    assert not (tmp_path / "received.png").exists()


def test_pictures_of_other_kinds_work(photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as opened:
        picture = opened.resize((160, 112))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "grey.png": (picture.convert("L"), {}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "rotated.jpg": (picture, {"exif": exif}),
        "deep.png": (Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), {}),
    }
    for name, (image, how) in kinds.items():
        image.save(tmp_path / name, **how)
        out = tmp_path / f"{name}.out"
        done = run("--image", tmp_path / name, "--system", "bpg-ldpc", "--snr", 15, "--out", out)
        assert done.returncode == 0, done.stderr
        result = json.loads((out / "result.json").read_text())
        expected = (112, 160) if name == "rotated.jpg" else (160, 112)
        assert (result["image"]["width"], result["image"]["height"]) == expected
        assert result["streams"][0]["crc_ok"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--snr", "nan"], ["nan"]),
        (["--snr", "abc"], ["abc"]),
        (["--seed", "-1"], ["-1"]),
        (["--system", "multi-cs"], ["multi-cs", "multi-sc"]),
        (["--set", "steps=0", "--system", "bpg-ldpc"], ["steps"]),
        (["--channel", "vacuum"], ["vacuum"]),
        (["--system", "bpg-ldpc", "--snr", "bgp=10,3"], ["bgp", "bpg"]),
        (["--system", "bpg-ldpc", "--mcs", "7/3:qpsk"], ["7/3:qpsk"]),
        (["--system", "bpg-ldpc", "--cbr", "0"], ["cbr"]),
        (["--system", "multi-sc", "--cbr", "1/99999"], ["cbr", "captions"]),
        (["--image", "/nowhere/to/be/found.png"], ["found.png"]),
        (["--models", "/nowhere/models"], ["/nowhere/models"]),
        (["--inference", "udp://x"], ["udp://x"]),
        (["--timeout", "0"], ["time-out"]),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    assert_refused(run(*arguments, "--out", tmp_path), *words)


def test_files_that_are_no_pictures_are_one_line(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.open(photo).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name in ("text.png", "cut.jpg", "dot.png", "huge.png"):
        assert_refused(run("--image", tmp_path / name, "--out", tmp_path), name)


def test_an_inference_process_that_dies_in_the_middle(photo: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    server = subprocess.Popen(
        [sys.executable, "-m", "multisc", "serve", "--bind", "tcp://127.0.0.1:0",
         "--handler", "tests.support.handlers:Echo", "--preload", ""],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        address = next(word for line in server.stdout for word in line.split() if word.startswith("tcp://"))
        client = subprocess.Popen(
            [*PROGRAM, "--image", str(photo), "--inference", address.rstrip(",."), "--out", str(tmp_path / "out"),
             "--set", f"gate={gate.path}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        gate.await_entry()
        server.kill()
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 1, errors
        assert len(errors.splitlines()) == 1
        assert address.rstrip(",.") in errors
    finally:
        server.kill()
        server.wait()


def test_nobody_at_the_address(photo: Path, tmp_path: Path) -> None:
    done = run("--image", photo, "--inference", "tcp://127.0.0.1:9", "--timeout", 5, "--out", tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:9" in done.stderr


def inference_processes(pid: int) -> list[int]:
    def serves(child: int) -> bool:
        try:
            return b"serve" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            return False

    return [child for child in children_of(pid) if serves(child)]


def test_ctrl_c_while_importing_is_an_orderly_end(tmp_path: Path) -> None:
    (tmp_path / "gnuradio.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    done = run("--help", PYTHONPATH=str(tmp_path))
    assert done.returncode == 130
    assert done.stderr == "run_flowgraph.py: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_behind_after_a_signal(photo: Path, tmp_path: Path, number: signal.Signals) -> None:
    started = subprocess.Popen(
        [*PROGRAM, "--image", str(photo), "--out", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    # Imports start short-lived children too.
    children = eventually(lambda: inference_processes(started.pid), "the inference process starts", 60)
    started.send_signal(number)
    assert started.wait(30) in (130, 143)
    eventually(lambda: not any(is_running(pid) for pid in children), "the inference process ends")


@pytest.mark.parametrize(
    ("imported", "forbidden"),
    [
        ("gnuradio.multisc.apps.flowgraph", "torch"),
        ("multisc.inference.server, multisc.inference.worker, multisc.systems.multi_sc", "gnuradio"),
    ],
)
def test_the_two_processes_do_not_share_their_weight(imported: str, forbidden: str) -> None:
    code = f"import sys, {imported}; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_python_without_gnu_radio_is_told_so(tmp_path: Path) -> None:
    done = run("--help", PYTHONPATH=str(forbid("gnuradio", tmp_path)))
    assert done.returncode == 1
    assert "make setup" in done.stderr
    assert len(done.stderr.splitlines()) == 1
