"""`multisc tx` and `multisc rx` as a user runs them: recordings out and in, any level, many bursts, bad input."""

import json
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from multisc.channel import CarrierOffset, Chain, ClockOffset
from multisc.cli import main, radio
from multisc.cli.rx import Reception
from multisc.errors import BadInputError
from multisc.evaluation.result import Result
from multisc.images import load_image, save_png
from multisc.phy import units
from multisc.phy.burst import BurstTransmitter, burst_uses
from multisc.phy.config import PhyConfig
from multisc.phy.transport import modulate
from multisc.recording import RecordingWriter, open_recording
from multisc.streams import Stream
from tests.support.inference import running_server

BITS = np.random.default_rng(1).integers(0, 2, 20_000, dtype=np.uint8)
FEATURES = np.random.default_rng(2).normal(0, 3, 999).astype(np.float32)
SILENCE = np.zeros(30_000, np.complex64)


@pytest.fixture
def picture(tmp_path, photograph):
    path = tmp_path / "cat.png"
    save_png(path, np.ascontiguousarray(photograph[60:220, 100:292]))
    return path


def streams():
    return [
        Stream("plain", BITS[:6000], "16qam"),
        Stream("coded", BITS[6000:], "qpsk", "nr:1/2"),
        Stream("feature", FEATURES, "analog"),
    ]


def bursts(image_id=7, config=None, system="mystery"):
    return BurstTransmitter(config or PhyConfig()).transmit(image_id, [modulate(s) for s in streams()], b"xy", system)


def noisy(samples, esn0_db, seed=3):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(2 * samples.size, np.float32).view(np.complex64)
    return samples + noise * np.float32(np.sqrt(units.time_noise_variance(esn0_db) / 2))


def record(path, samples, **options):
    with RecordingWriter(path, 2e6, **options) as writer:
        writer.write(samples.astype(np.complex64))
    return path


def receive(path, out, *arguments):
    """Run rx; return its recording.json and the results by directory."""
    assert main(["rx", str(path), "--out", str(out), *arguments]) == 0
    summary = json.loads((out / "recording.json").read_text())
    return summary, {i["directory"]: Result.read(out / i["directory"] / "result.json") for i in summary["images"]}


def check_streams(folder, exact=True):
    with np.load(folder / "received.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["coded.data"], BITS[6000:])
        assert bytes(arrays["side_info"]) == b"xy"
        if exact:
            np.testing.assert_array_equal(arrays["plain.data"], BITS[:6000])
            assert arrays["plain.llrs"].shape == (6000,)
        error = arrays["feature.data"] - FEATURES
        assert np.sqrt(np.mean(error**2)) < 0.5


def test_a_picture_through_a_recording(tmp_path, picture, capsys):
    out = tmp_path / "cat.sigmf-meta"
    channel = ["--snr", "16", "--channel", "rician", "--k-factor", "12", "--doppler", "5"]
    channel += ["--cfo", "-3000", "--clock-ppm", "12", "--linewidth", "1"]
    bpg = ["--system", "bpg-ldpc", "--set", "mcs=1/2:16qam", "--seed", "3"]
    assert main(["tx", str(picture), "--out", str(out), *bpg, *channel]) == 0
    said = capsys.readouterr().out
    summary, results = receive(out, tmp_path / "rx")
    image = load_image(picture)
    assert list(results) == [str(zlib.crc32(image.tobytes()))]
    (result,) = results.values()
    assert result.models == "none"
    assert (result.system, result.outage, result.image.width, result.image.height) == ("bpg-ldpc", False, 192, 160)
    assert result.channel.cfo_estimated_hz == pytest.approx(-3000, abs=60)
    assert f"{result.channel_uses} channel uses ({result.channel_uses_total} with overhead)" in said
    shown = load_image(tmp_path / "rx" / str(summary["images"][0]["image_id"]) / result.files["received"])
    assert 10 * np.log10(255**2 / np.mean((shown.astype(float) - image) ** 2)) > 25


def test_the_same_seed_gives_the_same_recording(tmp_path, picture):
    arguments = ["--system", "bpg-ldpc", "--set", "mcs=1/2:qpsk", "--snr", "5", "--channel", "tdl", "--doppler", "40"]
    data = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            main(["tx", str(picture), "--out", str(tmp_path / f"{name}.cf32"), *arguments, "--seed", str(seed)]) == 0
        )
        data.append((tmp_path / f"{name}.cf32").read_bytes())
    assert data[0] == data[1] != data[2]


def test_a_system_with_models_talks_to_the_inference_process(tmp_path, picture, handlers_can_be_imported):
    with running_server() as server:
        remote = ["--inference", server.address]
        out = tmp_path / "a.sigmf-meta"
        assert main(["tx", str(picture), "--out", str(out), *remote, "--snr", "slice=30,bits=20"]) == 0
        _, results = receive(out, tmp_path / "rx", *remote)
        (result,) = results.values()
        assert (result.image.width, result.image.height) == (5, 4)  # what the test's handler shows
        assert result.text.received == ["slice", "bits"]
        assert result.models == "embedded"  # as the server says
        assert main(["rx", str(out), "--out", str(tmp_path / "x"), *remote, "--set", "raise=model"]) == 1
        assert main(["rx", str(out), "--out", str(tmp_path / "x"), *remote, "--set", "raise=bad"]) == 2
        assert main(["tx", str(picture), "--out", str(tmp_path / "b.cf32"), *remote, "--snr", "slice=30"]) == 2
        assert not (tmp_path / "b.cf32").exists()


def test_streams_have_their_own_snr_in_a_common_noise():
    plan = {"plain": 20.0, "coded": 8.0, "feature": 14.0}
    sent = [modulate(s, radio.power_db(plan, s.name)) for s in streams()]
    made = BurstTransmitter(PhyConfig()).transmit(1, sent)
    samples = noisy(np.concatenate([SILENCE, *made, SILENCE]), radio.strongest_db(plan))
    reception = Reception(PhyConfig())
    (image, uses), *more = reception.push(samples) + reception.flush()
    assert not more
    assert uses == sum(burst_uses(PhyConfig(), burst) for burst in made)
    for (descriptor, symbols, variance), modulated in zip(image.streams, sent, strict=True):
        error = np.mean(np.abs(symbols - modulated.symbols) ** 2)
        assert -10 * np.log10(error) == pytest.approx(plan[descriptor.name], abs=0.7)
        assert -10 * np.log10(variance.mean()) == pytest.approx(plan[descriptor.name], abs=0.7)
    with pytest.raises(BadInputError, match="below the strongest"):
        radio.power_db({"a": 0.0, "b": 50.0}, "a")


@pytest.mark.parametrize(
    ("name", "level"), [("r.cf32", 1e-5), ("r.cf32", 3e4), ("r.ci16", 0.02), ("r.ci8", 0.2), ("r.cu8", 0.3)]
)
def test_any_level_and_format(tmp_path, name, level):
    samples = noisy(np.concatenate([SILENCE, *bursts(), SILENCE]), 30.0)
    path = record(tmp_path / name, level * samples)
    summary, results = receive(path, tmp_path / "rx", "--streams-only", "--sample-rate", "2e6")
    check_streams(tmp_path / "rx" / "7")
    assert summary["images"] == [{"image_id": 7, "directory": "7", "complete": True, "outage": True}]
    result = results["7"]
    assert (result.outage_reason, result.image.width, result.cbr) == ("not decoded: --streams-only", None, None)
    assert [s.crc_ok for s in result.streams] == [None, True, None]
    assert result.channel.snr_estimated_db == pytest.approx(30.0, abs=1.5 if name.endswith("f32") else 4)


def test_many_images_with_silence_between_them(tmp_path):
    """Nine transmissions from three radios with carriers and clocks of their own; one image is sent twice."""
    config = PhyConfig(max_payload_symbols=8)
    pieces = [SILENCE]
    for k in range(9):
        radio_chain = Chain([CarrierOffset((k % 3 - 1) * 7000.0, 2e6), ClockOffset((k % 3 - 1) * 15.0)])
        sent = np.concatenate(bursts(100 + k % 8, config))
        pieces += [np.float32(0.1 + k) * radio_chain.process(np.append(sent, SILENCE)), SILENCE[: 1000 * k]]
    samples = np.concatenate(pieces)
    samples += noisy(np.zeros_like(samples), 40.0)
    path = record(tmp_path / "many.sigmf-meta", samples)
    summary, results = receive(path, tmp_path / "rx", "--streams-only", "--burst-symbols", "8")
    assert list(results) == [*(str(100 + k) for k in range(8)), "100-2"]
    assert all(image["complete"] for image in summary["images"])
    for name in results:
        check_streams(tmp_path / "rx" / name)


def test_a_recording_that_ends_inside_the_image_and_an_unknown_system(tmp_path):
    config = PhyConfig(max_payload_symbols=8)
    made = bursts(5, config)
    cut = np.concatenate([SILENCE, *made[:-2], made[-2][:-1000]])
    path = record(tmp_path / "cut.cf32", noisy(cut, 25.0))
    summary, results = receive(path, tmp_path / "rx", "--burst-symbols", "8")
    assert summary["truncated"] == 1
    assert results["5"].receiver["complete"] is False
    assert results["5"].receiver["bursts_received"] == len(made) - 1
    assert "mystery" in results["5"].outage_reason
    whole = sum(burst_uses(config, burst) for burst in made)
    assert results["5"].channel_uses_total == pytest.approx(whole, rel=0.02)
    assert not (tmp_path / "rx" / "5" / "received.png").exists()


def test_noise_only_holds_no_image(tmp_path, capsys):
    path = record(tmp_path / "noise.cf32", noisy(np.zeros(300_000, np.complex64), 0.0))
    summary, results = receive(path, tmp_path / "rx")
    assert (results, summary["bursts"], summary["images"]) == ({}, 0, [])
    assert "0 images, 0 bursts" in capsys.readouterr().out


def test_bad_samples_are_counted_and_survived(tmp_path):
    samples = noisy(np.concatenate([SILENCE, *bursts(), SILENCE]), 30.0)
    samples[[10, SILENCE.size + 5000, SILENCE.size + 5001]] = [np.nan, np.inf, complex(0, -np.inf)]
    path = record(tmp_path / "bad.cf32", samples)
    summary, _ = receive(path, tmp_path / "rx", "--streams-only")
    assert summary["bad_samples"] == 3
    check_streams(tmp_path / "rx" / "7", exact=False)


def test_a_long_recording_takes_no_more_memory(tmp_path):
    made = np.concatenate([*bursts(), SILENCE])
    peaks = []
    for count in (2, 40):
        path = tmp_path / f"{count}.cf32"
        with RecordingWriter(path, 2e6) as writer:
            for k in range(count):
                writer.write(noisy(made, 30.0, k))
        reception = Reception(PhyConfig())
        tracemalloc.start()
        found = sum(len(reception.push(block)) for block in open_recording(path).blocks()) + len(reception.flush())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == count
    assert peaks[1] < peaks[0] + (4 << 20)


def refused(capsys, *arguments):
    """Run a command that must end with 2; return its one line."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2, error
    return error.strip().splitlines()[-1]


def test_recordings_that_are_none(tmp_path, capsys):
    (tmp_path / "empty.cf32").touch()
    record(tmp_path / "one.cf32", np.ones(1))
    record(tmp_path / "good.sigmf-meta", SILENCE)
    np.random.default_rng(1).integers(-2000, 2000, 8000).astype("<i2").tofile(tmp_path / "ints.cf32")
    (tmp_path / "lie.sigmf-meta").write_text('{"global": {"core:datatype": "cf64_le"}}')
    (tmp_path / "lie.sigmf-data").write_bytes(bytes(8 * 2001))
    for name, line in {
        "empty.cf32": "is empty",
        "one.cf32": "1 samples, the shortest burst has more",
        "ints.cf32": "does not look like cf32_le",
        "lie.sigmf-meta": "no whole number of cf64_le",
        "missing.cf32": "no such file",
    }.items():
        assert line in refused(capsys, "rx", tmp_path / name, "--out", tmp_path / "rx")
    assert "format ci8 was given" in refused(capsys, "rx", tmp_path / "good.sigmf-meta", "--format", "ci8")
    (tmp_path / "file").touch()
    assert "cannot be made" in refused(capsys, "rx", tmp_path / "good.sigmf-meta", "--out", tmp_path / "file" / "x")
    assert not (tmp_path / "rx").exists()


def test_transmissions_that_cannot_be(tmp_path, picture, capsys):
    out = ("--out", tmp_path / "a.cf32", "--system", "bpg-ldpc")
    assert "no such file" in refused(capsys, "tx", tmp_path / "missing.png", *out).lower()
    assert "fft_size 100" in refused(capsys, "tx", picture, *out, "--fft-size", "100")
    assert "amplitude" in refused(capsys, "tx", picture, *out, "--amplitude", "0")
    assert "does not fade" in refused(capsys, "tx", picture, *out, "--doppler", "10")
    assert "--k-factor 3 goes with --channel rician" in refused(capsys, "tx", picture, *out, "--k-factor", "3")
    rayleigh = (*out, "--channel", "rayleigh")
    assert "--profile A goes with --channel tdl" in refused(capsys, "tx", picture, *rayleigh, "--profile", "A")
    assert "--delay-spread 1e-06 goes with" in refused(capsys, "tx", picture, *rayleigh, "--delay-spread", "1e-6")
    assert "--adc-full-scale 2 goes with --adc-bits" in refused(capsys, "tx", picture, *out, "--adc-full-scale", "2")
    assert "carrier offset" in refused(capsys, "tx", picture, *out, "--cfo", "2e6")
    assert "SNR of 99 dB" in refused(capsys, "tx", picture, *out, "--snr", "99")
    assert "ending" in refused(capsys, "tx", picture, "--out", tmp_path / "a.wav", "--system", "bpg-ldpc")
    assert "mcs" in refused(capsys, "tx", picture, *out, "--set", "mcs=7")
    assert "another machine" in refused(
        capsys, "tx", picture, "--out", tmp_path / "a.cf32", "--inference", "tcp://10.0.0.1:1"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat.png"]


def test_integer_formats_say_when_they_clip(tmp_path, picture, capsys):
    arguments = ["--system", "bpg-ldpc", "--set", "mcs=1/2:qpsk", "--amplitude", "2"]
    assert main(["tx", str(picture), "--out", str(tmp_path / "loud.ci8"), *arguments]) == 0
    assert "lower --amplitude" in capsys.readouterr().err


def test_neither_needs_gnu_radio_nor_torch(tmp_path):
    path = record(tmp_path / "r.cf32", noisy(np.concatenate([SILENCE, *bursts(), SILENCE]), 30.0))
    script = (
        "import sys; from multisc.cli import main; import multisc.cli.tx;"
        f"code = main(['rx', {str(path)!r}, '--out', {str(tmp_path / 'rx')!r}]);"
        "sys.exit(code or bool({'gnuradio', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_estimated_snr_is_that_of_the_noise():
    """Six levels; the estimate over a whole image lies within 0.5 dB."""
    errors = []
    for esn0_db in (0.0, 5.0, 10.0, 15.0, 20.0, 25.0):
        reception = Reception(PhyConfig())
        samples = noisy(np.concatenate([SILENCE, *bursts(), SILENCE]), esn0_db)
        (image, _), *_ = reception.push(samples) + reception.flush()
        errors.append(image.snr_db - esn0_db)
    assert np.abs(errors).max() < 0.5, errors
