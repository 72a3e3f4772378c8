"""multisc sweep: means, intervals and outages against what they are made of, resuming, bad usage."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from multisc.channel import ChannelConfig
from multisc.cli import main
from multisc.errors import BadInputError
from multisc.evaluation.sweep import SweepConfig, Variant, measure, pass_through, summarise
from multisc.images import load_image, save_png
from multisc.phy.config import PhyConfig
from multisc.phy.units import time_noise_variance
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream
from multisc.systems.bpg_ldpc import bpg_ldpc

AT_10_DB = "bpg-ldpc,cbr=1/6,snr_db=10"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:96, :128]
    for index in range(3):
        wave = 128 + 60 * np.sin(x / (7 + index))[..., None] * np.cos(y / 11)[..., None] * [1, 0.7, 0.4]
        save_png(home / f"{index}.png", np.clip(wave + rng.normal(0, 3, (96, 128, 3)), 0, 255).astype(np.uint8))
    return home


@pytest.fixture(scope="module")
def sweep(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep")
    command = ["sweep", "--images", str(images), "--snr", "0,10", "--out", str(out)]
    assert main([*command, "--system", "bpg-ldpc,cbr=1/6", "--system", AT_10_DB]) == 0
    return out


def test_scheme_for_10_db_is_in_outage_at_0_db_and_the_adaptive_one_is_not(sweep: Path) -> None:
    rows = json.loads((sweep / "sweep.json").read_text())["rows"]
    outages = {(row["system"], row["snr_db"]): row["outage"] for row in rows}
    assert outages == {("bpg-ldpc,cbr=1/6", 0): 0, ("bpg-ldpc,cbr=1/6", 10): 0, (AT_10_DB, 0): 1, (AT_10_DB, 10): 0}
    fixed = next(row for row in rows if row["system"] == AT_10_DB and row["snr_db"] == 0)
    assert fixed["outage_ci95"] == [pytest.approx(0.025 ** (1 / 3)), 1.0]  # of three out of three
    assert fixed["metrics"] == {}


def test_rows_are_the_means_of_the_pictures(sweep: Path, images: Path) -> None:
    result = json.loads((sweep / "sweep.json").read_text())
    assert result["images"] == ["0.png", "1.png", "2.png"]
    assert len(result["pictures"]) == 2 * 2 * 3
    assert result["command"].startswith(f"multisc sweep --images {images} --snr 0,10")
    row = next(row for row in result["rows"] if row["system"] == AT_10_DB and row["snr_db"] == 10)
    values = [
        picture["metrics"]["psnr_db"]
        for picture in result["pictures"]
        if picture["system"] == AT_10_DB and picture["snr_db"] == 10
    ]
    found = row["metrics"]["psnr_db"]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["count"] == 3
    interval = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found["ci95"] == pytest.approx(list(interval))
    assert row["cbr"] <= 1 / 6
    assert row["channel_uses_total"] > row["channel_uses"]
    with (sweep / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["outage"]) for line in table] == [row["outage"] for row in result["rows"]]
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_run_goes_on_where_it_was(
    sweep: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").unlink()
    monkeypatch.setattr("multisc.evaluation.sweep.pass_through", None)  # calling it would fail
    command = ["sweep", "--images", str(images), "--snr", "0,10", "--out", str(sweep)]
    assert main([*command, "--system", "bpg-ldpc,cbr=1/6", "--system", AT_10_DB]) == 0
    assert json.loads((sweep / "sweep.json").read_text()) == before
    assert AT_10_DB in capsys.readouterr().out


class Echo:
    """A system that sends one bit per picture and counts its transmitter's runs."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, system, image, options) -> Encoded:
        self.encoded += 1
        return Encoded([Stream("bit", np.ones(1, np.uint8))], preview={"captions": ["a dog runs"]})

    def decode(self, system, received: ReceivedImage, options) -> Reconstruction:
        assert received.streams[0].data[0] == 1
        return Reconstruction(np.zeros((96, 128, 3), np.uint8), {"received": ["a cat runs"]})


def config(images: Path, system: str, **changes) -> SweepConfig:
    kind = changes.pop("channel", ChannelConfig())
    variant = Variant(system, system, {})
    return SweepConfig((variant,), tuple(sorted(images.iterdir())), (10.0, 20.0), 0, kind, PhyConfig(), "none")


def test_transmitter_runs_once_per_picture_unless_it_knows_the_snr(images: Path, tmp_path: Path) -> None:
    blind, adaptive = Echo(), Echo()
    result = measure(config(images, "single-text"), blind, tmp_path / "a")
    measure(config(images, "bpg-ldpc"), adaptive, tmp_path / "b")
    assert (blind.encoded, adaptive.encoded) == (3, 6)
    text = result["rows"][0]["metrics"]["word_error_rate"]
    assert text["mean"] == pytest.approx(1 / 3, abs=1e-5)
    assert text["ci95"] == pytest.approx([1 / 3, 1 / 3], abs=1e-5)


def test_every_picture_has_noise_of_its_own_and_the_same_in_every_run(images: Path, tmp_path: Path) -> None:
    first, second = (measure(config(images, "single-text"), Echo(), tmp_path / name) for name in "ab")
    assert first == second
    assert len({picture["snr_estimated_db"] for picture in first["pictures"]}) == 6


def test_estimated_snr_is_that_of_the_channel(images: Path) -> None:
    encoded = bpg_ldpc().encode(load_image(images / "0.png"), {"cbr": "1/2", "mcs": "1/2:qpsk"})
    channel = ChannelConfig(noise_variance=time_noise_variance(7.0), seed=4)
    passage = pass_through(encoded, "bpg-ldpc", PhyConfig(), channel)
    assert passage.snr_estimated_db == pytest.approx(7.0, abs=0.3)
    np.testing.assert_array_equal(passage.received.streams[0].data, encoded.streams[0].data)
    assert passage.channel_uses < passage.channel_uses_total


def test_nothing_arrives_in_deep_noise(images: Path) -> None:
    encoded = bpg_ldpc().encode(load_image(images / "0.png"), {"cbr": "1/12", "mcs": "1/2:qpsk"})
    channel = ChannelConfig(noise_variance=time_noise_variance(-30.0), seed=4)
    assert pass_through(encoded, "bpg-ldpc", PhyConfig(), channel).received is None


def test_single_picture_has_no_interval() -> None:
    record = {"system": "x", "snr_db": 0.0, "outage": False, "cbr": 0.1, "channel_uses": 1, "channel_uses_total": 2}
    row = summarise([record | {"metrics": {"psnr_db": 30.0, "lpips": None}}])
    assert row["metrics"] == {"psnr_db": {"mean": 30.0, "ci95": None, "count": 1}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["--system", "fax"], "'fax': must be one of"),
        (["--system", "bpg-ldpc,cbr"], "must be name=value"),
        (["--system", "bpg-ldpc,cbr=9"], "bpg-ldpc,cbr=9, {images}/0.png: option cbr is '9'"),
        (["--system", "bpg-ldpc", "--system", "bpg-ldpc"], "called bpg-ldpc: must be named once"),
        (["--snr", "5,0"], "ascending within -30 to 60 dB"),
        (["--images", "nowhere"], "nowhere: no such file"),
    ],
)
def test_bad_usage(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes, line) -> None:
    command = ["sweep", "--images", str(images), "--snr", "0", "--out", str(tmp_path / "out"), *changes]
    try:
        code = main(command)
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(error) == 1
    assert line.format(images=images) in error[0]


def test_names_must_differ() -> None:
    paths = (Path("a/1.png"), Path("b/1.png"))
    with pytest.raises(BadInputError, match=r"called 1\.png"):
        SweepConfig((), paths, (0.0,), 0, ChannelConfig(), PhyConfig(), "none")
