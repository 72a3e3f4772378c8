"""Arguments of the command lines."""

from __future__ import annotations

import argparse

import pytest

from multisc.cli import arguments
from multisc.errors import BadInputError


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "", "ten", "1e999", "61", "-31", "=3", "a=1,a=2", "slice="])
def test_an_snr_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.snr(text)


def test_snr_for_all_or_by_stream() -> None:
    assert arguments.snr_of(arguments.snr("-3.5"), "slice") == -3.5
    plan = arguments.snr("slice=10,text=3,text-tl=5")
    assert arguments.snr_of(plan, "text-br") == 3
    assert arguments.snr_of(plan, "text-tl") == 5
    with pytest.raises(BadInputError, match="bpg"):
        arguments.snr_of(plan, "bpg")


def test_a_stream_that_is_not_there_is_refused() -> None:
    arguments.check_snr_names(arguments.snr("10"), ["slice"])
    arguments.check_snr_names(arguments.snr("slice=10,text=3"), ["slice", "text-tl"])
    with pytest.raises(BadInputError, match="slcie"):
        arguments.check_snr_names(arguments.snr("slcie=10,3"), ["slice", "text-tl"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mcs=1/2:16qam", ("mcs", "1/2:16qam")), ("text-bits=4", ("text_bits", 4)), ("conceal=true", ("conceal", True))],
)
def test_options_are_json_where_they_can_be(text: str, expected: tuple) -> None:
    assert arguments.option(text) == expected


@pytest.mark.parametrize("text", ["steps", "=3", "a=[1]", "a=null"])
def test_options_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.option(text)


def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys) -> None:
    parser = arguments.Parser(prog="x")
    parser.add_argument("--snr", type=arguments.snr)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--snr", "nan"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "nan" in lines[0]


def test_a_seed_is_a_whole_number() -> None:
    assert arguments.seed("7") == 7
    for text in ("-1", "1.5", str(2**32), "²"):
        with pytest.raises(argparse.ArgumentTypeError):
            arguments.seed(text)


@pytest.mark.parametrize("text", ["-5,0", "-5:10:5", "-.5,0", "-5", "0,5"])
@pytest.mark.parametrize("between", [" ", "="])
def test_a_list_that_begins_below_zero_is_a_value(text: str, between: str) -> None:
    parser = arguments.Parser()
    commands = parser.add_subparsers()
    sweep = commands.add_parser("sweep")
    sweep.add_argument("--snr", type=arguments.snr_values)
    sweep.add_argument("--json", action="store_true")
    parsed = parser.parse_args(["sweep", *f"--snr{between}{text}".split(), "--json"])
    assert parsed.snr == arguments.snr_values(text)
    assert parsed.json


def test_a_list_without_an_option_is_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments.Parser(prog="p").parse_args(["-5,0"])
    assert capsys.readouterr().err == "p: unrecognized arguments: -5,0 (see --help)\n"


def test_after_a_bare_dash_dash_nothing_is_a_value_of_an_option() -> None:
    parser = arguments.Parser()
    parser.add_argument("files", nargs="*")
    assert parser.parse_args(["--", "-5,0.png", "--x", "-5:3"]).files == ["-5,0.png", "--x", "-5:3"]
