"""The ``multisc ber`` command and the Monte Carlo behind it."""

import json
import math

import pytest

from multisc.cli import main
from multisc.errors import BadInputError
from multisc.phy.montecarlo import ErrorRates, Link


def run(capsys, arguments):
    code = main(["ber", *arguments.split()])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_has_the_contract_s_fields(capsys):
    code, out, err = run(
        capsys,
        "--code nr:1024:512 --decoder spa --schedule flooding --iterations 20 --modulation bpsk "
        "--ebn0 1.5 --min-frame-errors 30 --json",
    )
    assert code == 0
    assert err == ""
    record = json.loads(out)
    assert list(record) == ["ebn0_db", "frames", "frame_errors", "fer", "bit_errors", "ber", "ci95"]
    assert record["ebn0_db"] == 1.5
    assert record["frame_errors"] >= 30
    assert record["fer"] == record["frame_errors"] / record["frames"]
    assert record["ber"] == record["bit_errors"] / (512 * record["frames"])
    low, high = record["ci95"]
    assert low < 6.23e-2 < high


def test_several_points_one_object_each(capsys):
    code, out, _ = run(capsys, "--code nr:40:20 --ebn0 1 3 --max-frames 500 --json")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["ebn0_db"] for r in records] == [1.0, 3.0]
    assert records[0]["fer"] > records[1]["fer"]


def test_table_for_people(capsys):
    code, out, _ = run(capsys, "--code nr:40:20 --ebn0 2 --max-frames 100")
    assert code == 0
    header, row = out.splitlines()
    assert "FER" in header
    assert row.split()[:2] == ["2.00", "100"]


def test_seed_decides_the_result(capsys):
    arguments = "--code nr:96:40 --decoder offset-minsum --schedule layered --ebn0 2 --max-frames 700 --json"
    first = run(capsys, arguments + " --seed 1")
    assert run(capsys, arguments + " --seed 1") == first
    assert run(capsys, arguments + " --seed 2") != first


@pytest.mark.parametrize(
    ("modulation", "ebn0", "theory"),
    [
        ("bpsk", 4.0, 0.5 * math.erfc(math.sqrt(10**0.4))),
        ("qpsk", 4.0, 0.5 * math.erfc(math.sqrt(10**0.4))),
        # Gray 16-QAM, exact for independent dimensions: (3 Q(x) + 2 Q(3x) - Q(5x)) / 4.
        (
            "16qam",
            8.0,
            sum(
                w * 0.5 * math.erfc(m * math.sqrt(0.4 * 10**0.8))
                for w, m in ((3 / 4, 1), (2 / 4, 3), (-1 / 4, 5))
            ),
        ),
    ],
)  # fmt: skip
def test_uncoded_bit_error_rate_is_theory(modulation, ebn0, theory):
    rates = Link("none", modulation).simulate(ebn0, min_frame_errors=10**9, max_frames=2000, seed=1)
    bits = rates.frames * rates.information_bits
    assert abs(rates.ber - theory) < 4 * math.sqrt(theory / bits)


@pytest.mark.parametrize("modulation", ["qpsk", "16qam", "64qam", "256qam"])
def test_every_modulation_carries_the_code(modulation):
    """2.5 dB above where BPSK works QPSK does; denser ones at the same distance from capacity."""
    ebn0 = {"qpsk": 2.5, "16qam": 5.0, "64qam": 7.5, "256qam": 10.5}[modulation]
    link = Link("nr:1920:960", modulation, "normalised-minsum", "layered", 20)
    assert link.simulate(ebn0, max_frames=300).fer < 0.02
    assert link.simulate(ebn0 - 3, max_frames=100).fer > 0.5


def test_stops_at_the_frames_or_the_errors():
    link = Link("nr:40:20")
    few = link.simulate(10.0, min_frame_errors=5, max_frames=123)
    assert few.frames == 123
    many = link.simulate(0.0, min_frame_errors=1, max_frames=10**9)
    assert many.frame_errors >= 1
    assert many.frames < 10**5


def test_confidence_interval_is_exact():
    assert ErrorRates(0.0, 1, 100, 0, 0).ci95 == pytest.approx((0.0, 1 - 0.025 ** (1 / 100)))
    assert ErrorRates(0.0, 1, 100, 100, 100).ci95 == pytest.approx((0.025 ** (1 / 100), 1.0))
    # Tabulated Clopper-Pearson interval of 10 in 100.
    assert ErrorRates(0.0, 1, 100, 10, 10).ci95 == pytest.approx((0.0490, 0.1762), abs=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        "--code nr:1024 --ebn0 1",
        "--code nr:512:1024 --ebn0 1",
        "--code nr:a:b --ebn0 1",
        "--code nr:1000:500 --modulation 64qam --ebn0 1",
        "--code nr:99999999:5 --ebn0 1",
        "--code pyldpc:10:3:4 --ebn0 1",
        "--code ldpc --ebn0 1",
        "--code none:3 --ebn0 1",
        "--code nr:40:20 --ebn0 100",
        "--code nr:40:20 --ebn0 1 --iterations 0",
        "--code nr:40:20 --ebn0 1 --max-frames 0",
        "--code nr:40:20 --ebn0 1 --min-frame-errors 0",
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, arguments):
    assert run(capsys, arguments)[:2] == (2, "")  # no table's head either
    code, out, err = run(capsys, arguments + " --json")
    assert code == 2
    assert out == ""
    assert err.startswith("multisc ber: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    ["--code nr:40:20", "--ebn0 1", "--code nr:40:20 --ebn0 nan", "--code nr:40:20 --ebn0 1 --decoder turbo"],
)
def test_bad_usage_is_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        run(capsys, arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err


def test_unknown_names_are_refused():
    with pytest.raises(BadInputError, match="decoder"):
        Link("nr:40:20", decoder="turbo").simulate(1.0)
    with pytest.raises(BadInputError, match="modulation"):
        Link("nr:40:20", modulation="8psk").simulate(1.0)
