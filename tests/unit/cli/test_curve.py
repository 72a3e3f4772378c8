"""multisc curve: points against what they are made of, resuming, bad usage."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from multisc.cli import main
from multisc.codecs import bpg
from multisc.evaluation.metrics import psnr_db
from multisc.images import load_image, save_png
from multisc.systems.mcs import payload_bits


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:176, :192]
    for index in range(2):
        wave = 128 + 60 * np.sin(x / (7 + index))[..., None] * np.cos(y / 11)[..., None] * [1, 0.7, 0.4]
        picture = np.clip(wave + rng.normal(0, 3, (176, 192, 3)), 0, 255).astype(np.uint8)
        save_png(home / f"{index}.png", picture)
    return home


@pytest.fixture(scope="module")
def curve(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("curve")
    arguments = ["--images", str(images), "--cbr", "1/6", "--snr", "0:12:3", "--mcs", "1/2:qpsk,1/2:16qam"]
    assert main(["curve", "bpg-ldpc", *arguments, "--frames", "20", "--jobs", "2", "--out", str(out)]) == 0
    return out


def point(out: Path, curve: str, snr_db: float) -> dict:
    points = json.loads((out / "curve.json").read_text())["points"]
    return next(p for p in points if p["curve"] == curve and p["snr_db"] == snr_db)


def test_points_are_what_bpg_and_the_link_give(images: Path, curve: Path) -> None:
    uses = 176 * 192 * 3 // 6
    expected = []
    for path in sorted(images.iterdir()):
        image = load_image(path)
        found = bpg.encode_to_size(image, payload_bits("nr:1/2", "16qam", uses) // 8)
        expected.append(psnr_db(image, bpg.decode(found.data).rgb))
    good, bad = point(curve, "1/2:16qam", 12.0), point(curve, "1/2:16qam", 3.0)
    assert good["psnr_db"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert (good["outage"], good["images"]) == (0.0, 2)
    assert good["outage_ci95"][1] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert bad["outage"] == 1.0
    assert bad["psnr_db"] is None


def test_envelope_takes_the_best_scheme_that_gets_through(curve: Path) -> None:
    assert point(curve, "envelope", 0.0)["mcs"] == ""
    assert point(curve, "envelope", 0.0)["outage"] == 1.0
    assert point(curve, "envelope", 3.0)["mcs"] == "1/2:qpsk"
    assert point(curve, "envelope", 9.0)["mcs"] == "1/2:16qam"


def test_capacity_bounds_the_envelope(images: Path, curve: Path) -> None:
    for snr_db in (3.0, 6.0, 9.0, 12.0):
        assert point(curve, "bpg-at-capacity", snr_db)["psnr_db"] >= point(curve, "envelope", snr_db)["psnr_db"]
    budget = math.floor(176 * 192 * 3 // 6 * math.log2(1 + 10**0.9) / 8)
    sizes = [len(bpg.encode_to_size(load_image(path), budget).data) for path in images.iterdir()]
    assert point(curve, "bpg-at-capacity", 9.0)["bytes"] == pytest.approx(np.mean(sizes))


def test_files_hold_the_same_points(curve: Path) -> None:
    points = json.loads((curve / "curve.json").read_text())["points"]
    rows = list(csv.DictReader((curve / "curve.csv").open()))
    assert [(r["curve"], float(r["snr_db"]), float(r["outage"])) for r in rows] == [
        (p["curve"], p["snr_db"], p["outage"]) for p in points
    ]
    assert len(points) == 4 * 5
    assert (curve / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_an_interrupted_run_goes_on(images: Path, curve: Path, tmp_path: Path) -> None:
    """Kept results are taken as they are; a missing one is computed again, to the same number."""
    before = (curve / "curve.json").read_bytes()
    kept = sorted((curve / "kept").iterdir())
    times = {path: path.stat().st_mtime_ns for path in kept}
    kept[0].unlink()
    arguments = ["--images", str(images), "--cbr", "1/6", "--snr", "0:12:3", "--mcs", "1/2:qpsk,1/2:16qam"]
    assert main(["curve", "bpg-ldpc", *arguments, "--frames", "20", "--jobs", "1", "--out", str(curve)]) == 0
    assert (curve / "curve.json").read_bytes() == before
    assert all(path.stat().st_mtime_ns == times[path] for path in kept[1:])
    assert kept[0].exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--images": "nowhere"}, "nowhere: no such file"),
        ({"--cbr": "0"}, "cbr is '0'"),
        ({"--mcs": "1/2:8psk"}, "mcs 1/2:8psk"),
        ({"--images": "."}, "no image in it"),
    ],
)
def test_bad_input_is_one_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change, message
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--images": str(images), "--cbr": "1/6", "--snr": "5", "--out": "out", **change}
    assert main(["curve", "bpg-ldpc", *(word for pair in options.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("snr", ["", "5:1:1", "0:20:0", "0:20", "nan", "0:20:1e-9", "-99"])
def test_refuses_snr_ranges(images: Path, snr: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["curve", "bpg-ldpc", "--images", str(images), "--cbr", "1/6", f"--snr={snr}", "--out", "out"])
    assert caught.value.code == 2
