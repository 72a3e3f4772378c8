"""The model of result.json: what it writes, what it refuses, and that it reads back what it wrote."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multisc import __version__
from multisc.errors import BadInputError, MultiscError
from multisc.evaluation.result import ChannelInfo, ImageInfo, Result, StreamResult, TextInfo, finite
from tests.support.paths import ROOT


def example(**changes):
    result = Result(
        system="multi-sc",
        models="embedded",
        image=ImageInfo("kodim23.png", 768, 512),
        channel=ChannelInfo("awgn", seed=1, snr_db=6.0, snr_measured_db=6.02, snr_estimated_db=5.9, cfo_hz=0.0),
        streams=[
            StreamResult("slice", "digital", "qpsk", "none", 36864, True, 73728, 1610, 6.0, 6.03, 5.9),
            StreamResult("text-tl", "digital", "qpsk", "nr:1/2", 300, True, 300, 0, 6.0, 6.0, 6.1, crc_ok=True),
            StreamResult("feature", "analog", "analog", "none", 128, False),
        ],
        channel_uses=37292,
        channel_uses_total=45000,
        outage_reason=None,
        text=TextInfo(["a parrot"], ["a pzrrot"], ["a parrot"]),
        metrics={"psnr_db": 17.25, "ssim": 0.5, "lpips": None},
        metrics_reasons={"lpips": "no weights"},
        options={"steps": 20, "slice_code": "none"},
        receiver={"bursts_received": 3, "bursts_total": 3, "complete": True},
        timings_s={"encode": 1.5, "decode": 9.25},
        files={"received": "received.png"},
    )
    return replace(result, **changes)


def test_written_file_has_every_field_of_the_contract(tmp_path):
    example().write(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert list(data) == [
        *("schema", "version", "system", "models", "options", "image", "channel", "receiver", "streams"),
        *("channel_uses", "channel_uses_total", "cbr", "outage", "outage_reason", "text", "metrics"),
        *("metrics_reasons", "timings_s", "files", "radio"),
    ]
    assert data["schema"] == "multisc-result/1"
    assert data["version"] == __version__
    assert data["image"] == {"path": "kodim23.png", "width": 768, "height": 512}
    assert data["cbr"] == 37292 / (3 * 768 * 512)
    assert data["outage"] is False
    assert data["streams"][0]["bit_errors"] == 1610
    assert data["streams"][2]["bits"] is None
    assert data["metrics"]["lpips"] is None
    assert data["metrics_reasons"]["lpips"] == "no weights"


def test_reads_back_what_it_wrote(tmp_path):
    example().write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == example()


def test_equal_results_give_equal_files():
    assert example().to_json() == example().to_json()


def test_outage():
    result = example(outage_reason="no stream was delivered")
    assert result.outage
    assert result.to_dict()["outage"] is True
    assert Result.from_dict(json.loads(result.to_json())) == result


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_never_written(value):
    with pytest.raises(BadInputError, match=r"metrics\.psnr_db"):
        example(metrics={"psnr_db": value}, metrics_reasons={})
    with pytest.raises(BadInputError, match="snr_measured_db"):
        ChannelInfo("awgn", snr_measured_db=value)
    with pytest.raises(BadInputError, match=r"options\.x"):
        example(options={"x": value})
    assert finite(value) is None


def test_numpy_scalars_become_numbers():
    result = example(
        channel_uses=np.int64(5),
        metrics={"psnr_db": np.float64(3), "ssim": np.float32(0.5), "hits": 2},
        metrics_reasons={},
        receiver={"complete": np.bool_(True)},
    )
    assert type(result.channel_uses) is int
    assert [type(value) for value in result.metrics.values()] == [float] * 3
    assert result.receiver["complete"] is True
    assert finite(np.float32(0.5)) == 0.5
    assert finite(None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"psnr_db": None}, "metrics_reasons": {}}, "each null needs a reason"),
        ({"metrics": {"psnr_db": 3.0}, "metrics_reasons": {"psnr_db": "why"}}, "each reason a null"),
        ({"metrics": {"psnr_db": None}, "metrics_reasons": {"psnr_db": ""}}, "a reason is empty"),
        ({"channel_uses": 45001}, "channel_uses"),
        ({"channel_uses": True}, "channel_uses"),
        ({"channel_uses": 3.5}, "channel_uses"),
        ({"outage_reason": ""}, "outage_reason"),
        ({"timings_s": {"encode": -1.0}}, "negative"),
        ({"system": None}, "system"),
        ({"text": TextInfo}, "text"),
        ({"receiver": {"list": []}}, r"receiver\.list"),
        ({"files": {1: "a"}}, "files"),
    ],
)
def test_contradictions_and_wrong_types_are_refused(changes, message):
    with pytest.raises(BadInputError, match=message):
        example(**changes)


@pytest.mark.parametrize(
    "arguments",
    [
        ("s", "digital", "qpsk", "none", 10, True, 20, 21),
        ("s", "digital", "qpsk", "none", 10, True, 20, -1),
        ("s", "digital", "qpsk", "none", 10, True, None, None),
        ("s", "analog", "analog", "none", 10, True, 20, None),
        ("s", "digital", "qpsk", "none", -1, True, 20, 0),
        ("s", "optical", "qpsk", "none", 10, True, 20, 0),
    ],
)
def test_impossible_streams_are_refused(arguments):
    with pytest.raises(BadInputError, match="stream s"):
        StreamResult(*arguments)


def test_two_streams_of_one_name_are_refused():
    with pytest.raises(BadInputError, match="same name"):
        example(streams=[example().streams[0]] * 2)


def test_empty_image_is_refused():
    with pytest.raises(BadInputError, match="positive"):
        ImageInfo(None, 0, 10)


def test_strange_path_stays_strict_json(tmp_path):
    result = example(image=ImageInfo('bad\udcff "name"\n.png', 16, 16))
    result.write(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_bytes())["image"]["path"] == 'bad\udcff "name"\n.png'
    assert Result.read(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not strict JSON"),
        ("{", "not strict JSON"),
        ("[" * 100_000, "not strict JSON"),
        ('{"schema": NaN}', "not strict JSON"),
        ("[]", "must be an object"),
        ("{}", "schema"),
        ('{"schema": "multisc-result/1"}', "result: missing or unknown field"),
    ],
)
def test_files_that_are_no_result_are_refused(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadInputError, match=rf"r\.json: {message}"):
        Result.read(tmp_path / "r.json")


def test_missing_file_and_directory(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(BadInputError, match="cannot be read"):
            Result.read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cbr", 1.0, "cbr contradicts"),
        ("cbr", None, "cbr"),
        ("outage", True, "outage contradicts"),
        ("extra", 1, "unknown field 'extra'"),
        ("streams", [{"name": "x"}], "missing or unknown"),
        ("streams", {}, "must be a list"),
        ("image", None, "image"),
        ("schema", "multisc-result/2", "schema"),
    ],
)
def test_edited_files_are_refused(key, value, message):
    data = example().to_dict()
    data[key] = value
    with pytest.raises(BadInputError, match=message):
        Result.from_dict(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_edit_gives_a_result_or_bad_input(data):
    changed = example().to_dict()
    changed[data.draw(st.sampled_from(sorted(changed)))] = data.draw(json_values)
    try:
        result = Result.from_dict(changed)
    except BadInputError:
        return
    assert Result.from_dict(json.loads(result.to_json())) == result


def test_write_into_a_missing_directory(tmp_path):
    with pytest.raises(MultiscError, match="cannot be written"):
        example().write(tmp_path / "none" / "result.json")


def test_documentation_names_every_field_and_its_example_is_valid():
    text = (ROOT / "docs" / "reference" / "result.md").read_text(encoding="utf-8")
    data = json.loads(text.split("```json")[1].split("```")[0])
    assert Result.from_dict(data).to_dict() == data
    shown = example().to_dict()
    for name in (*shown, *shown["image"], *shown["channel"], *shown["streams"][0], *shown["text"]):
        assert f"`{name}`" in text


def test_a_file_from_before_there_were_radios_is_read():
    data = example().to_dict()
    del data["radio"]
    assert Result.from_dict(data) == example()
