"""Recordings: every format there and back, other programs' view of ours, and metadata that lies."""

import json
import tracemalloc

import numpy as np
import pytest
import sigmf
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.errors import BadInputError, MultiscError
from multisc.recording import FORMATS, RecordingWriter, open_recording

SAMPLES = (0.3 * np.random.default_rng(1).standard_normal(20_000, np.float32)).clip(-0.95, 0.95).view(np.complex64)


def write(path, samples=SAMPLES, **options):
    with RecordingWriter(path, 2e6, **options) as writer:
        writer.write(samples[:777])
        writer.write(samples[777:])
    return writer


def read(path, size=1000, **options):
    return np.concatenate(list(open_recording(path, **options).blocks(size)))


@pytest.mark.parametrize(("name", "error"), [("cf32", 0.0), ("ci16", 1.6e-5), ("ci8", 4e-3), ("cu8", 4e-3)])
@pytest.mark.parametrize("sigmf_file", [True, False])
def test_formats_come_back_within_half_a_step(tmp_path, name, error, sigmf_file):
    path = tmp_path / (f"r{name}.sigmf-meta" if sigmf_file else f"r.{name}")
    writer = write(path, format=name)
    assert (writer.count, writer.clipped) == (SAMPLES.size, 0)
    for given_path in writer.paths:
        recording = open_recording(given_path)
        assert (recording.count, recording.sample_rate) == (SAMPLES.size, 2e6 if sigmf_file else None)
        back = read(given_path)
        assert back.dtype == np.complex64
        assert np.abs((back - SAMPLES).view(np.float32)).max() <= error


def test_the_sigmf_package_reads_our_recordings(tmp_path):
    for name in FORMATS:
        path = tmp_path / f"{name}.sigmf-meta"
        with RecordingWriter(path, 2e6, format=name, frequency=433e6, description="a test") as writer:
            writer.write(SAMPLES)
            writer.annotate(5, 100, "burst")
        theirs = sigmf.fromfile(str(path))
        theirs.validate()
        # The package centres unsigned samples on 128, half a step from us.
        np.testing.assert_allclose(theirs.read_samples(), read(path), atol=6e-3 if name == "cu8" else 1e-6)
        assert theirs.get_captures()[0]["core:frequency"] == open_recording(path).frequency == 433e6
        assert theirs.get_annotations()[0]["core:label"] == "burst"


def test_we_read_recordings_of_the_sigmf_package(tmp_path):
    SAMPLES.tofile(tmp_path / "theirs.sigmf-data")
    made = sigmf.SigMFFile(
        data_file=str(tmp_path / "theirs.sigmf-data"),
        global_info={"core:datatype": "cf32_le", "core:sample_rate": 1e6, "core:version": "1.0.0"},
    )
    made.add_capture(0, metadata={"core:frequency": 1e9})
    made.tofile(str(tmp_path / "theirs.sigmf-meta"))
    np.testing.assert_array_equal(read(tmp_path / "theirs.sigmf-meta"), SAMPLES)


@pytest.mark.parametrize("kind", [">f4", ">i2", "<f8"])
def test_other_datatypes_of_sigmf(tmp_path, kind):
    datatype = {">f4": "cf32_be", ">i2": "ci16_be", "<f8": "cf64_le"}[kind]
    scale = 32768 if kind == ">i2" else 1
    np.rint(SAMPLES.view(np.float32) * scale * 1024).__truediv__(1024).astype(kind).tofile(tmp_path / "a.sigmf-data")
    (tmp_path / "a.sigmf-meta").write_text(json.dumps({"global": {"core:datatype": datatype}}))
    assert np.abs(read(tmp_path / "a.sigmf-meta") - SAMPLES).max() < 2e-3


def test_bad_numbers_are_handed_on(tmp_path):
    samples = SAMPLES.copy()
    samples[[3, 9]] = complex(np.nan, 1), complex(0, np.inf)
    write(tmp_path / "bad.cf32", samples)
    np.testing.assert_array_equal(read(tmp_path / "bad.cf32"), samples)


def test_integers_clip_and_say_so(tmp_path):
    writer = write(tmp_path / "loud.ci8", np.array([2 - 3j, 0.5 + 1.5j, complex(np.nan, 0)], np.complex64))
    assert writer.clipped == 3
    np.testing.assert_allclose(read(tmp_path / "loud.ci8"), [0.99219 - 1j, 0.5 + 0.99219j, 0], atol=1e-4)


def test_memory_is_bounded(tmp_path):
    path = tmp_path / "long.cf32"
    block = np.zeros(1 << 20, np.complex64)
    with RecordingWriter(path, 2e6) as writer:
        for _ in range(32):
            writer.write(block)
    tracemalloc.start()
    total = sum(b.size for b in open_recording(path).blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 32 << 20
    assert peak < 8 << 20


def test_nothing_is_left_of_a_failed_recording(tmp_path):
    writer = RecordingWriter(tmp_path / "a.sigmf-meta", 1e6)
    writer.write(SAMPLES)
    writer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInputError, match="no such directory"):
        RecordingWriter(tmp_path / "missing" / "a.cf32", 1e6)
    with pytest.raises(MultiscError, match="cannot be written"):
        RecordingWriter(tmp_path / ("long" * 80 + ".cf32"), 1e6)
    for bad in ("a.wav", "a"):
        with pytest.raises(BadInputError, match="ending"):
            RecordingWriter(tmp_path / bad, 1e6)
    with pytest.raises(BadInputError, match="contradicts"):
        RecordingWriter(tmp_path / "a.cf32", 1e6, format="ci8")
    with pytest.raises(BadInputError, match="sample rate"):
        RecordingWriter(tmp_path / "a.cf32", 0.0)


def test_raw_files_that_are_none(tmp_path):
    (tmp_path / "empty.cf32").touch()
    (tmp_path / "odd.cf32").write_bytes(b"1234567")
    (tmp_path / "dir.cf32").mkdir()
    (tmp_path / "what.bin").write_bytes(bytes(16))
    (np.random.default_rng(2).normal(0, 300, 4000).astype("<i2")).tofile(tmp_path / "ints.cf32")
    np.full(500, np.nan, np.complex64).tofile(tmp_path / "nan.cf32")
    for name, line in {
        "empty.cf32": "empty",
        "odd.cf32": "7 bytes are no whole number",
        "dir.cf32": "not a regular file",
        "missing.cf32": "no such file",
        "what.bin": "does not tell its sample format",
        "ints.cf32": "does not look like cf32_le",
        "nan.cf32": "does not look like cf32_le",
        "archive.sigmf": "unpack it",
        "nul\0.cf32": "no such file|cannot be read",
    }.items():
        with pytest.raises(BadInputError, match=line) as caught:
            open_recording(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert open_recording(tmp_path / "ints.cf32", format="ci16").count == 2000
    assert open_recording(tmp_path / "what.bin", format="cf32").count == 2
    with pytest.raises(BadInputError, match="must be one of"):
        open_recording(tmp_path / "what.bin", format="cf16")
    with pytest.raises(BadInputError, match="sample rate"):
        open_recording(tmp_path / "what.bin", format="cf32", sample_rate=float("nan"))


def test_a_silent_beginning_is_no_reason_to_refuse(tmp_path):
    np.zeros(100_000, np.complex64).tofile(tmp_path / "silent.cf32")
    assert open_recording(tmp_path / "silent.cf32").count == 100_000


GOOD = {
    "global": {"core:datatype": "cf32_le", "core:version": "1.2.0", "core:sample_rate": 2e6},
    "captures": [{"core:sample_start": 0}],
    "annotations": [],
}


def contradict(tmp_path, metadata):
    SAMPLES[:1000].tofile(tmp_path / "x.sigmf-data")
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    (tmp_path / "x.sigmf-meta").write_bytes(text)
    return tmp_path / "x.sigmf-meta"


def changed(section, **fields):
    renamed = {f"core:{name}": value for name, value in fields.items()}
    if section == "global":
        return {**GOOD, "global": {**GOOD["global"], **renamed}}
    return {**GOOD, section: [{"core:sample_start": 0, **renamed}]}


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"global": 3}', "global must be"),
        ({}, "core:datatype is None"),
        (changed("global", datatype="rf32_le"), "core:datatype"),
        (changed("global", datatype=["cf32_le"]), "core:datatype"),
        (changed("global", datatype="cf64_le", sha512=None, num_channels=2), "num_channels"),
        (changed("global", sample_rate=-1), "sample_rate"),
        (changed("global", sample_rate="2M"), "sample_rate"),
        (b'{"global": {"core:datatype": "cf32_le", "core:sample_rate": 1e999}}', "sample_rate"),
        (b'{"global": {"core:datatype": "cf32_le", "core:sample_rate": 1' + b"0" * 999 + b"}}", "sample_rate"),
        (changed("global", dataset="../../etc/passwd"), "core:dataset"),
        (changed("global", metadata_only=True), "metadata_only"),
        (changed("global", trailing_bytes=4), "trailing_bytes"),
        (changed("global", sha512="0" * 128), "sha512"),
        (changed("global", sha512=17), "sha512"),
        (changed("captures", sample_start=1000), "the data has 1,000"),
        (changed("captures", sample_start=-1), "sample_start"),
        (changed("captures", sample_start=1.5), "sample_start"),
        (changed("captures", header_bytes=8), "header_bytes"),
        (changed("captures", frequency="FM"), "frequency"),
        ({**GOOD, "captures": [{"core:sample_start": 9}, {"core:sample_start": 3}]}, "ascending"),
        ({**GOOD, "captures": {}}, "captures must be"),
        ({**GOOD, "captures": [7]}, "sample_start"),
        (changed("annotations", sample_count=-5), "sample_count"),
        (changed("annotations", sample_count="many"), "sample_count"),
    ],
)
def test_metadata_that_is_wrong_or_contradicts_the_data(tmp_path, metadata, line):
    with pytest.raises(BadInputError, match=line) as caught:
        open_recording(contradict(tmp_path, metadata))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_datatype_that_contradicts_the_size(tmp_path):
    contradict(tmp_path, changed("global", datatype="cf64_le"))
    (tmp_path / "x.sigmf-data").write_bytes(bytes(8 * 999))
    with pytest.raises(BadInputError, match="no whole number"):
        open_recording(tmp_path / "x.sigmf-data")


def test_arguments_that_contradict_the_metadata(tmp_path):
    path = contradict(tmp_path, GOOD)
    assert open_recording(path, format="cf32", sample_rate=2e6).count == 1000
    with pytest.raises(BadInputError, match="format ci8 was given"):
        open_recording(path, format="ci8")
    with pytest.raises(BadInputError, match="sample rate 1e"):
        open_recording(path, sample_rate=1e6)


def test_half_a_recording(tmp_path):
    path = contradict(tmp_path, GOOD)
    path.with_suffix(".sigmf-data").unlink()
    with pytest.raises(BadInputError, match=r"x\.sigmf-data: no such file"):
        open_recording(path)
    SAMPLES.tofile(tmp_path / "y.sigmf-data")
    with pytest.raises(BadInputError, match=r"y\.sigmf-meta: no such file"):
        open_recording(tmp_path / "y.sigmf-data")


def test_annotations_beyond_the_data_are_noted(tmp_path):
    path = contradict(tmp_path, changed("annotations", sample_count=2000))
    assert "cut short" in open_recording(path).notes[0]


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    SAMPLES.tofile(tmp_path / "a.cf32")
    blocks = open_recording(tmp_path / "a.cf32").blocks(1000)
    next(blocks)
    (tmp_path / "a.cf32").write_bytes(bytes(80))
    with pytest.raises(MultiscError, match="shorter"):
        list(blocks)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
core_keys = st.sampled_from(
    ["core:datatype", "core:sample_rate", "core:sample_start", "core:sample_count", "core:sha512", "core:dataset",
     "core:num_channels", "core:header_bytes", "core:frequency", "core:trailing_bytes"]
)  # fmt: skip
sections = st.dictionaries(core_keys, json_values, max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(sections, st.lists(sections | json_values, max_size=3), st.lists(sections | json_values, max_size=3))
def test_any_metadata_is_read_or_refused(tmp_path_factory, main, captures, annotations):
    folder = tmp_path_factory.mktemp("fuzz")
    metadata = {"global": {**GOOD["global"], **main}, "captures": captures, "annotations": annotations}
    path = contradict(folder, metadata)
    line = ""
    try:
        count = sum(block.size for block in open_recording(path).blocks())
    except BadInputError as error:
        count, line = 0, str(error)
    assert count == 1000 if not line else "\n" not in line
