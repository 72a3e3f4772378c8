"""`multisc doctor`: what it finds, what it makes of things that are broken, and that nothing holds it up."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from multisc.cli import doctor, main


@pytest.fixture
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a module in front of the real one, for the processes that are started."""

    def put(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


@pytest.mark.slow
@pytest.mark.gnuradio
def test_a_checkout_that_is_set_up_is_well(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gnuradio.multisc")
    monkeypatch.setenv("GRC_BLOCKS_PATH", str(doctor.GRC_FOLDER))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    states = {check["name"]: check["state"] for check in found["checks"]}
    for name in ("interpreter", "NumPy", "GNU Radio", "gr-multisc", "Companion", "torch", "models"):
        assert states[name] == "ok", found
    details = {check["name"]: check["detail"] for check in found["checks"]}
    described = len(list(doctor.GRC_FOLDER.glob("multisc_*.block.yml")))
    assert details["Companion"] == f"finds {described} blocks of gr-multisc"
    assert sys.executable in details["interpreter"]
    assert all(check["fix"] or check["state"] == "ok" for check in found["checks"])


@pytest.mark.slow
@pytest.mark.gnuradio
def test_companion_is_well_by_its_start_script_or_by_the_environment_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gnuradio.multisc")
    monkeypatch.delenv("GRC_BLOCKS_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no configuration of this user
    script = tmp_path / "gnuradio-companion"
    # Same name, another folder: a virtual environment's python that has no start script, then has one.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    without = doctor.check_companion()
    assert without.state == "absent"
    assert f"export GRC_BLOCKS_PATH={doctor.GRC_FOLDER}" in without.fix
    script.write_text(
        f'#!/bin/sh\nexport GRC_BLOCKS_PATH="{doctor.GRC_FOLDER}${{GRC_BLOCKS_PATH:+:$GRC_BLOCKS_PATH}}"\n'
    )
    found = doctor.check_companion()
    assert found.state == "ok"
    assert found.detail.endswith(f"started as {script}")


def test_gnu_radio_that_is_not_there_or_built_against_another_numpy(broken_module) -> None:
    broken_module("gnuradio", "raise ModuleNotFoundError(\"No module named 'gnuradio'\")")
    absent = doctor.check_gnu_radio()
    assert absent.state == "broken"
    assert "apt-get install gnuradio" in absent.fix
    broken_module("gnuradio", "raise ImportError('initialization failed')")
    mismatch = doctor.check_gnu_radio()
    assert mismatch.state == "broken"
    assert "numpy<2" in mismatch.fix
    assert doctor.check_blocks().state == "broken"
    assert doctor.check_companion().state == "absent"


def test_a_newer_numpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0")
    check = doctor.check_numpy()
    assert (check.state, check.detail) == ("broken", "NumPy 2.1.0; GNU Radio needs 1.x")
    assert "numpy<2" in check.fix


def test_a_probe_that_hangs_crashes_or_lies_is_an_answer(broken_module) -> None:
    with pytest.raises(doctor.ProbeError, match=r"no answer within 0\.5 s"):
        doctor.probe("import time; time.sleep(60)", timeout_s=0.5)
    with pytest.raises(doctor.ProbeError, match="ended by signal 6"):
        doctor.probe("import os; os.abort()")
    with pytest.raises(doctor.ProbeError, match="unexpected answer"):
        doctor.probe("print('no JSON')")
    with pytest.raises(doctor.ProbeError, match="exit code 3"):
        doctor.probe("raise SystemExit(3)")
    broken_module("torch", "raise OSError('libcuda.so: broken')")
    assert doctor.check_torch() == doctor.Check("torch", "broken", "OSError: libcuda.so: broken", doctor.SETUP)


def test_devices_are_listed_and_broken_drivers_are_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    device = {"driver": "hackrf", "serial": "0000", "label": "x"}
    monkeypatch.setattr(doctor, "probe", lambda code: {"devices": [device, {"driver": "lime"}]})
    assert doctor.check_soapy() == doctor.Check("SoapySDR", "ok", "driver=hackrf, serial=0000; driver=lime")
    monkeypatch.setattr(doctor, "probe", lambda code: {"devices": []})
    assert "soapysdr-module-hackrf" in doctor.check_soapy().fix
    assert doctor.check_uhd().state == "absent"

    def crash(code: str) -> dict:
        raise doctor.ProbeError("ended by signal 11")

    monkeypatch.setattr(doctor, "probe", crash)
    for check in (doctor.check_soapy(), doctor.check_uhd(), doctor.check_windows()):
        assert check.state == "absent"
        assert "signal 11" in check.detail


def test_models_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"profile": "embedded", "part": part, "present": part != "bart"} for part in doctor.NEEDED_MODELS]
    monkeypatch.setattr(doctor, "_last_object", lambda command, timeout_s: {"rows": rows})
    check = doctor.check_models()
    assert check.state == "broken"
    assert "bart" in check.detail
    assert "llava" not in check.detail


def test_something_broken_is_exit_code_1_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checks = (
        lambda: doctor.Check("radio", "absent", "none", "plug it in"),
        lambda: doctor.Check("torch", "broken", "bad\x1b[2J", "reinstall"),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks[:1])
    assert main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "to fix it: reinstall" in out
    assert "\x1b" not in out
