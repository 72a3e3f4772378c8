"""Loading pictures: every kind that must work, every kind that must be refused, and the limits."""

import io
import os
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from multisc import images
from multisc.errors import BadInputError, MultiscError
from multisc.images import load_image, save_png


def picture(height=40, width=56, seed=1):
    """A smooth random picture, so that lossy formats stay close to it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def refused(path):
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(BadInputError) as error:
        load_image(path)
    message = str(error.value)
    assert "\n" not in message
    assert os.path.basename(str(path)) in message
    return message


def png(width, height, idat, depth=8, colour=2):
    """A PNG file with a header that says what it is told, and a given compressed body."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_are_exact(tmp_path, suffix):
    wanted = picture()
    Image.fromarray(wanted).save(tmp_path / f"a.{suffix}")
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    assert np.array_equal(loaded, wanted)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_are_close(tmp_path, suffix):
    wanted = picture()
    Image.fromarray(wanted).save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(load_image(tmp_path / f"a.{suffix}").astype(int) - wanted).mean() < 3


def test_content_decides_not_the_name(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(load_image(str(tmp_path / "a.jpg")), picture())


def test_greyscale(tmp_path):
    grey = picture()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), np.repeat(grey[:, :, None], 3, axis=2))


def test_one_bit(tmp_path):
    bits = picture()[:, :, 0] > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png")[:, :, 1], bits * 255)


def test_rgba_is_composited_over_white(tmp_path):
    rgba = np.dstack([picture(), np.zeros((40, 56), np.uint8)])
    rgba[:, 28:, 3] = 255
    rgba[0, 0] = (0, 100, 200, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(loaded[:, 28:], picture()[:, 28:])
    assert (loaded[1:, :28] == 255).all()
    assert np.abs(loaded[0, 0].astype(int) - [127, 177, 227]).max() <= 1


def test_grey_with_alpha_over_white(tmp_path):
    la = np.dstack([np.full((20, 20), 10, np.uint8), np.zeros((20, 20), np.uint8)])
    la[:10, :, 1] = 255
    Image.fromarray(la, "LA").save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert (loaded[:10] == 10).all()
    assert (loaded[10:] == 255).all()


def test_palette_and_its_transparency(tmp_path):
    image = Image.fromarray(picture()).quantize(32)
    wanted = np.asarray(image.convert("RGB")).copy()
    image.save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), wanted)
    image.save(tmp_path / "b.png", transparency=3)
    wanted[np.asarray(image) == 3] = 255
    assert np.array_equal(load_image(tmp_path / "b.png"), wanted)


def test_cmyk_jpeg(tmp_path):
    wanted = picture()
    Image.fromarray(wanted).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - wanted).mean() < 4


def test_sixteen_bit_grey_uses_the_whole_range(tmp_path):
    wide = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    for suffix in ("png", "tiff"):
        Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
        loaded = load_image(tmp_path / f"a.{suffix}")
        assert np.array_equal(loaded[:, :, 2], np.rint(wide / 257.0).astype(np.uint8))


def test_sixteen_bit_colour(tmp_path):
    wide = picture().astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    (tmp_path / "a.png").write_bytes(png(56, 40, zlib.compress(rows), depth=16))
    assert np.array_equal(load_image(tmp_path / "a.png"), picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_rotation_is_undone(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.shape == ((56, 40, 3) if orientation >= 5 else (40, 56, 3))
    assert np.array_equal(loaded, wanted)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"Exif\0\0 nonsense", bytes(range(64))])
def test_broken_exif_does_not_lose_the_picture(tmp_path, exif):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (40, 56, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (24, 20), colour) for colour in ("#ff0000", "#00ff00")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=50, **options)
    assert (load_image(tmp_path / f"a.{suffix}") == (255, 0, 0)).all()


def test_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.png")


def test_directory(tmp_path):
    assert "directory" in refused(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    assert "empty" in refused(tmp_path / "a.png")


@pytest.mark.timeout(10)
def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "regular file" in refused(tmp_path / "a.png")


def test_path_with_a_null_byte_or_a_line_break(tmp_path):
    for name in ("a\0b.png", "a\nb.png"):
        with pytest.raises(BadInputError) as error:
            load_image(os.path.join(tmp_path, name))
        assert "\n" not in str(error.value)


def test_text_named_png(tmp_path):
    (tmp_path / "a.png").write_text("I am no picture.\n" * 20)
    assert "not an image" in refused(tmp_path / "a.png")


def test_formats_that_run_other_programs_are_refused(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.eps")
    assert "not an image" in refused(tmp_path / "a.eps")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_truncated_file(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format={"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    for length in (len(whole) // 2, len(whole) * 3 // 4, len(whole) * 9 // 10):
        (tmp_path / f"a.{suffix}").write_bytes(whole[:length])
        refused(tmp_path / f"a.{suffix}")


def test_jpeg_cut_anywhere_is_refused_or_whole(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format="jpeg")
    whole = buffer.getvalue()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    wanted = load_image(path)
    accepted = 0
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            assert np.array_equal(load_image(path), wanted)
            accepted += 1
        except BadInputError:
            pass
    assert accepted <= 1


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    message = refused(tmp_path / "a.png")
    assert "1x1" in message
    assert "16x16" in message


def test_smallest_accepted_size(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (16, 16, 3)
    Image.new("RGB", (15, 400)).save(tmp_path / "b.png")
    assert "15x400" in refused(tmp_path / "b.png")


def test_huge_png_is_refused_before_decoding(tmp_path):
    compressor = zlib.compressobj(1)
    row = bytes(1 + 20000 * 3)
    body = b"".join(compressor.compress(row) for _ in range(20000)) + compressor.flush()
    (tmp_path / "a.png").write_bytes(png(20000, 20000, body))
    tracemalloc.start()
    started = time.process_time()
    message = refused(tmp_path / "a.png")
    elapsed = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{images.MAX_PIXELS:,}" in message
    assert elapsed < 1.0
    assert peak < 32e6  # decoded it would be 1.2 GB


def test_size_just_above_the_limit_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8001, 8000, zlib.compress(b"")))
    assert "8001x8000" in refused(tmp_path / "a.png")


def test_header_that_claims_more_than_there_is(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4000, 4000, zlib.compress(bytes(100))))
    assert "truncated" in refused(tmp_path / "a.png")


def test_header_that_claims_less_than_there_is_costs_no_more_than_it_claims(tmp_path):
    rows = b"".join(b"\0" + row.tobytes() for row in picture())
    bomb = zlib.compress(rows + bytes(200_000_000), 1)
    (tmp_path / "a.png").write_bytes(png(56, 40, bomb))
    started = time.process_time()
    assert np.array_equal(load_image(tmp_path / "a.png"), picture())
    assert time.process_time() - started < 1.0


def test_text_chunk_bomb_is_refused(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    tracemalloc.start()
    refused(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_file_larger_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(bytes(1001))
    assert "1,001 bytes" in refused(tmp_path / "a.png")


def test_floating_point_samples_are_refused(tmp_path):
    Image.fromarray(np.ones((20, 20), np.float32)).save(tmp_path / "a.tiff")
    assert "floating-point" in refused(tmp_path / "a.tiff")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm"]))
def test_damaged_files_are_pictures_or_bad_input(tmp_path, data, suffix):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format=suffix)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(damaged))
    try:
        loaded = load_image(path)
    except BadInputError:
        refused(path)
    else:
        assert loaded.dtype == np.uint8
        assert loaded.shape[2] == 3
        assert min(loaded.shape[:2]) >= images.MIN_SIDE


def test_save_png_round_trip_and_determinism(tmp_path):
    save_png(tmp_path / "a.png", picture())
    save_png(tmp_path / "b.png", picture())
    assert np.array_equal(load_image(tmp_path / "a.png"), picture())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", picture())
    before = (tmp_path / "a.png").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MultiscError, match=r"a\.png: cannot be written: No space left"):
        save_png(tmp_path / "a.png", picture(seed=2))
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_save_into_a_missing_directory(tmp_path):
    with pytest.raises(MultiscError, match="cannot be written"):
        save_png(tmp_path / "none" / "a.png", picture())


@pytest.mark.parametrize("shape", [(4, 4, 4), (0, 4, 3), (4,)])
def test_save_refuses_what_is_no_picture(tmp_path, shape):
    with pytest.raises(BadInputError, match="not a picture"):
        save_png(tmp_path / "a.png", np.zeros(shape, np.uint8))
