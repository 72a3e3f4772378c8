"""On the air without a radio: `run_flowgraph.py --sdr soapy` against a SoapySDR device that hears itself.

Where time does not matter the device runs unthrottled: the tests then do not depend on how busy the machine is.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from gnuradio import blocks, gr
from gnuradio.multisc import run
from gnuradio.multisc.air_graph import image_receiver, on_air
from gnuradio.multisc.burst import LEAD, WARM_UP_SYMBOLS, burst_transmitter
from gnuradio.multisc.driver_log import DriverLog
from gnuradio.multisc.message_block import Faults
from gnuradio.multisc.radio import FrontEnd, FrontEndSettings, check_plan

from multisc.errors import BadInputError, ModelError
from multisc.images import load_image, save_png
from multisc.link.backend import Backend
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver
from tests.support.grc import compile_flowgraph
from tests.support.inference import children_of, eventually, is_running
from tests.support.paths import ROOT
from tests.support.phy import make_streams
from tests.support.soapy_loopback import build

pytestmark = [
    pytest.mark.skipif(
        not build.HEADER.exists() or shutil.which("g++") is None, reason="needs g++ and libsoapysdr-dev"
    ),
]
# -51 dBm full scale + 30 dB of gain - 12 dB of amplitude = -33 dBm, less 53 dB; noise -174 + 63 + 10 = -101 dBm.
GAINS = ["--tx-gain", "AMP=0,VGA=30", "--rx-gain", "LNA=40,VGA=30"]
FOR_15_DB = "driver=multisc_loopback,attenuation=53"
COMMON = ["--sdr", "soapy", "--freq", "433.92e6", "--system", "bpg-ldpc", "--snr", "12"]


@pytest.fixture(scope="module", autouse=True)
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SoapySDR finds the device, in this process too."""
    environment = build.build(tmp_path_factory.mktemp("device"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOAPY_SDR_PLUGIN_PATH", environment["SOAPY_SDR_PLUGIN_PATH"])
        yield environment


@pytest.fixture
def photo(photograph: np.ndarray, tmp_path: Path) -> Path:
    save_png(tmp_path / "photo.png", photograph[:128, :160])
    return tmp_path / "photo.png"


def txrx(out: Path, photo: Path, device: str, *arguments: str) -> dict:
    """Both ends in this process; the result."""
    code = run.main(
        [*COMMON, *GAINS, "--txrx", "--image", str(photo), "--args", device, "--out", str(out), *arguments]
    )
    assert code == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize(
    ("impairments", "arguments", "cfo_hz"),
    [
        ("", [], 0.0),
        ("cfo=-5000,ppm=-15,leak=0.1", [], -5000.0),
        ("cfo=3000,ppm=10", ["--sample-rate", "4e6"], 3000.0),
        # The leakage is stronger than the signal; inside the waveform it would cost several dB.
        ("cfo=3000,leak=0.3", ["--oversample", "2", "--lo-offset", "1.02e6"], 3000.0),
    ],
)
def test_a_picture_crosses_the_air_at_the_snr_of_the_link_budget(
    impairments: str, arguments: list[str], cfo_hz: float, photo: Path, tmp_path: Path
) -> None:
    # Twice the rate is twice the noise.
    rate = 4e6 if "--sample-rate" in arguments else 2e6
    device = f"{FOR_15_DB if rate == 2e6 else FOR_15_DB.replace('53', '50')},throttle=0,{impairments}"
    result = txrx(tmp_path, photo, device, *arguments)
    assert result["outage"] is False
    assert result["streams"][0]["bit_errors"] == 0
    assert result["channel"]["kind"] == "radio"
    assert result["channel"]["snr_db"] is None
    assert result["channel"]["snr_measured_db"] is None
    assert result["channel"]["snr_estimated_db"] == pytest.approx(15.0, abs=0.7)
    assert result["channel"]["cfo_estimated_hz"] == pytest.approx(cfo_hz, abs=50.0)
    radio = result["radio"]
    assert radio["driver"] == "soapy"
    assert radio["rate_hz"] == rate * (2 if "--oversample" in arguments else 1)
    assert (radio["tx_gain_db"], radio["rx_gain_db"], radio["rx_antenna"]) == (30.0, 70.0, "TX/RX")
    assert (radio["underflows"], radio["overflows"], radio["clipped_samples"]) == (0, 0, 0)
    assert radio["first_burst_s"] > 0
    assert load_image(tmp_path / "received.png").shape == (128, 160, 3)
    assert "overflows" in (tmp_path / "report.html").read_text()


def test_nothing_heard_is_an_outage_and_ends(photo: Path, tmp_path: Path) -> None:
    result = txrx(tmp_path, photo, "driver=multisc_loopback,throttle=0,attenuation=110")
    assert result["outage"] is True
    assert result["receiver"]["bursts_received"] == 0
    assert not (tmp_path / "received.png").exists()


def test_noise_and_leakage_are_no_images(tmp_path: Path) -> None:
    device = "driver=multisc_loopback,throttle=0,leak=0.2"
    arguments = ["--rx", "--streams-only", "--args", device, *GAINS[2:], "--duration", "10", "--out", str(tmp_path)]
    assert run.main([*COMMON, *arguments]) == 0
    reception = json.loads((tmp_path / "reception.json").read_text())
    assert reception["samples"] >= 20_000_000
    assert reception["images"] == []
    assert reception["bursts"] == 0
    assert reception["detections"] == reception["truncated"] <= 1  # the spike's end with the stream's is an edge


class Program:
    """run_flowgraph.py as a process of its own, which ends with its ``with``."""

    def __init__(self, environment: dict[str, str], *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_flowgraph.py"), *COMMON, *map(str, arguments)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def await_line(self, word: str) -> None:
        assert self.process.stderr is not None
        while word not in (line := self.process.stderr.readline()):
            assert line, "it has ended"

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_one_process_sends_and_another_receives_in_real_time(
    device: dict[str, str], photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """With results whatever this machine has to do beside: what was lost is counted, and nothing else."""
    air = f"air={tmp_path}"
    with Program(
        device, "--rx", "--args", f"{FOR_15_DB},serial=b,{air}", *GAINS[2:], "--count", 3, "--duration", 25,
        "--out", tmp_path / "rx",
    ) as receiver:  # fmt: skip
        receiver.await_line("receiving at 433.92 MHz")
        # The same device, a second time.
        code = run.main(
            [*COMMON, "--rx", "--args", f"{FOR_15_DB},serial=b,{air}", "--count", "1", "--out", str(tmp_path)]
        )
        assert code == 1
        _, err = capfd.readouterr()
        assert len(err.splitlines()) == 1
        assert "another program is using the device" in err
        with Program(
            device, "--tx", "--image", photo, "--args", f"driver=multisc_loopback,serial=a,{air}", *GAINS[:2],
            "--repeat", 6, "--interval", 0.3, "--seed", 7, "--out", tmp_path / "tx",
        ) as sender:  # fmt: skip
            code, out, err = sender.end()
        assert (code, err) == (0, "")
        assert "sent 6 times" in out
        code, out, err = receiver.end()
        assert code == 0, err
    sent = json.loads((tmp_path / "tx" / "transmission.json").read_text())
    assert sent["images_sent"] == 6
    reception = json.loads((tmp_path / "rx" / "reception.json").read_text())
    lost = reception["radio"]["overflows"] + sent["radio"]["underflows"]
    assert len(reception["images"]) == 3 or lost
    for image in reception["images"]:
        result = json.loads((tmp_path / "rx" / image["directory"] / "result.json").read_text())
        assert result["channel"]["kind"] == "radio"
        assert result["radio"]["rx_gain_db"] == 70.0
        assert 7 <= image["image_id"] < 13
        assert not image["outage"] or lost


@pytest.mark.parametrize(
    ("radio", "arguments", "code", "words"),
    [
        ("driver=nobody", [], 1, ["driver=nobody", "no such device", "multisc doctor"]),
        ("driver=multisc_loopback,deny=1", [], 1, ["no permission", "udev"]),
        ("driver=multisc_loopback,refuse_rate=1", [], 1, ["sample rate", "invalid parameter"]),
        ("driver=multisc_loopback,throttle=0,unplug=0.5", [], 1, ["stopped receiving", "STREAM_ERROR", "unplugged"]),
        ("driver=multisc_loopback", ["--sample-rate", "50e6"], 2, ["50000000", "1000000 to 20000000"]),
        ("driver=multisc_loopback", ["--freq", "50e9"], 2, ["--freq", "6000000000"]),
        ("driver=multisc_loopback", ["--rx-gain", "LNB=3"], 2, ["LNB", "LNA, AMP, VGA"]),
        ("driver=multisc_loopback", ["--rx-gain", "LNA=60"], 2, ["--rx-gain LNA 60", "0 to 40 dB"]),
        ("driver=multisc_loopback", ["--rx-gain", "200"], 2, ["--rx-gain 200", "0 to 116 dB"]),
        ("driver=multisc_loopback", ["--rx-antenna", "J1"], 2, ["J1", "TX/RX"]),
        ("driver=multisc_loopback", ["--repeat", "3"], 2, ["--repeat", "--tx"]),
        ("driver=multisc_loopback", ["--doppler", "3"], 2, ["--doppler", "simulated"]),
        ("driver=multisc_loopback", ["--duration", "0"], 2, ["--duration 0"]),
    ],
)
def test_what_goes_wrong_is_one_line(
    radio: str, arguments: list[str], code: int, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    full = [*COMMON, "--rx", "--streams-only", "--duration", "30", "--args", radio, "--out", str(tmp_path)]
    assert run.main([*full, *arguments]) == code
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "receiving at" not in line]
    assert out == ""
    assert len(lines) == 1, err
    for word in words:
        assert word in lines[0]


def test_options_that_need_a_radio_say_so(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    for arguments, word in (
        (["--tx"], "--tx needs --sdr"),
        (["--freq", "1e8"], "--freq needs --sdr"),
        (["--sdr", "soapy"], "--tx, --rx, --txrx"),
        (["--sdr", "soapy", "--rx"], "--freq"),
        (["--sdr", "soapy", "--txrx", "--freq", "1e8", "--args", "driver=hackrf"], "--rx-args"),
    ):
        assert run.main([*arguments, "--out", str(tmp_path)]) == 2
        assert word in capfd.readouterr().err


def test_a_sender_whose_device_is_unplugged_leaves_nothing_behind(
    device: dict[str, str], photo: Path, tmp_path: Path
) -> None:
    with Program(
        device, "--tx", "--image", photo, "--args", "driver=multisc_loopback,throttle=0,unplug=1",
        "--repeat", 1000, "--out", tmp_path,
    ) as sender:  # fmt: skip
        code, out, err = sender.end()
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "stopped sending" in err


def test_a_driver_that_does_not_come_back_does_not_hold_up_the_program(
    device: dict[str, str], tmp_path: Path
) -> None:
    with Program(
        device, "--rx", "--streams-only", "--args", "driver=multisc_loopback,throttle=0,hang=0.5", "--out", tmp_path
    ) as receiver:
        code, _, err = receiver.end()
    assert code == 1
    assert "driver does not come back" in err.splitlines()[-1]


def test_reception_runs_while_the_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    running = threading.Event()
    start = on_air.start

    def started(graph: on_air) -> None:
        start(graph)
        running.set()

    def load(self: Backend, system: str) -> None:
        if not running.wait(30.0):
            raise ModelError("nothing was received meanwhile")
        if system == "deep-jscc":
            raise ModelError("a model is missing")

    monkeypatch.setattr(on_air, "start", started)
    monkeypatch.setattr(Backend, "prepare", load)
    device = ["--args", "driver=multisc_loopback,throttle=0", "--duration", "3", "--out", str(tmp_path)]
    assert run.main([*COMMON, "--rx", *device]) == 0
    running.clear()
    capfd.readouterr()
    assert run.main([*COMMON, "--rx", *device, "--duration", "1e6", "--system", "deep-jscc"]) == 1
    assert capfd.readouterr().err.splitlines()[1:] == ["run_flowgraph.py: a model is missing"]


def test_ctrl_c_while_models_are_loaded_leaves_nothing_behind(device: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--rx", "--system", "multi-sc", "--args", "driver=multisc_loopback", "--out", tmp_path]
    with Program(device, *arguments) as receiver:
        receiver.await_line("receiving")
        eventually(lambda: bool(children_of(receiver.process.pid)), "the models are being loaded")
        children = children_of(receiver.process.pid)
        receiver.process.send_signal(signal.SIGINT)
        code, _, err = receiver.end()
    assert (code, err) == (0, "")
    eventually(lambda: not any(is_running(pid) for pid in children), "all children end")


def test_ctrl_c_is_an_ordinary_end_of_reception(device: dict[str, str], tmp_path: Path) -> None:
    with Program(device, "--rx", "--args", "driver=multisc_loopback", "--out", tmp_path) as receiver:
        receiver.await_line("receiving")
        children = children_of(receiver.process.pid)
        receiver.process.send_signal(signal.SIGINT)
        code, out, _ = receiver.end()
    assert code == 0
    assert "0 images" in out
    assert json.loads((tmp_path / "reception.json").read_text())["images"] == []
    eventually(lambda: not any(is_running(pid) for pid in children), "all children end")


def test_the_hackrf_flowgraphs_run_with_another_device_string(
    device: dict[str, str], photo: Path, tmp_path: Path
) -> None:
    """In real time, from one process to the other, as on two HackRFs; the picture is sent again until it is there."""
    flowgraphs = []
    air = f"driver=multisc_loopback,air={tmp_path}"
    for name, arguments in (
        ("hackrf_rx", ["--device", f"{air},serial=b,attenuation=40", "--folder", "received"]),
        ("hackrf_tx", ["--device", f"{air},serial=a", "--image", photo, "--system", "bpg-ldpc", "--period", 500]),
    ):
        compile_flowgraph(ROOT / "flowgraphs" / f"{name}.grc", tmp_path)
        flowgraphs.append([sys.executable, f"{name}.py", *map(str, arguments)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(command, cwd=tmp_path, env=device, **pipes) for command in flowgraphs]
    try:
        received = tmp_path / "received"
        eventually(lambda: list(received.glob("*.png")), "a picture arrives", 90)
        for flowgraph in running:
            flowgraph.communicate("\n", timeout=30)
            assert flowgraph.returncode == 0
    finally:
        for flowgraph in running:
            flowgraph.kill()
    assert load_image(sorted(received.glob("*.png"))[0]).shape == (128, 160, 3)


@pytest.mark.parametrize(
    ("name", "trouble", "words"),
    [
        ("hackrf_rx", "driver=nobody", ["no such device", "multisc doctor"]),
        ("hackrf_tx", "driver=multisc_loopback,deny=1", ["no permission", "udev"]),
        ("hackrf_rx", "driver=multisc_loopback,refuse_rate=1", ["invalid parameter"]),
        ("hackrf_rx", "driver=multisc_loopback,unplug=0.2", ["STREAM_ERROR", "was it unplugged?"]),
        ("hackrf_tx", "driver=multisc_loopback,unplug=0.2", ["STREAM_ERROR", "was it unplugged?"]),
        ("hackrf_rx", "driver=multisc_loopback,hang=0.2", ["does not come back"]),
    ],
)
def test_a_flowgraph_whose_radio_fails_ends_with_one_line(
    name: str, trouble: str, words: list[str], device: dict[str, str], photo: Path, tmp_path: Path
) -> None:
    """Nobody presses Enter; the driver's own lines come hundreds of times a second while its device is gone."""
    compile_flowgraph(ROOT / "flowgraphs" / f"{name}.grc", tmp_path)
    sending = ["--image", str(photo), "--system", "bpg-ldpc"] if name.endswith("tx") else []
    flowgraph = subprocess.Popen(
        [sys.executable, f"{name}.py", "--device", trouble, *sending],
        cwd=tmp_path, env=device, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        flowgraph.wait(timeout=60)
        out, err = flowgraph.communicate()
    finally:
        flowgraph.kill()
        flowgraph.communicate()
    assert flowgraph.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith(f"{name}.py: ")
    for word in words:
        assert word in line
    assert len(out) < 1000


def test_a_continuous_transmitter_fills_the_time_between_bursts_and_limits_its_samples() -> None:
    from gnuradio.multisc import pdu

    config = PhyConfig(amplitude=0.6)
    faults = Faults()
    transmitter = burst_transmitter(config, faults=faults, continuous=True, tail=5000)
    sink, graph = blocks.vector_sink_c(), gr.top_block()
    head = blocks.head(gr.sizeof_gr_complex, 3_000_000)
    graph.connect(transmitter, head, sink)
    streams = make_streams(np.random.default_rng(1), [30_000])
    envelope = pdu.Envelope(3, 0, 1, "", b"")
    port = "symbols"
    message = pdu.pack_symbols(streams[0].descriptor, streams[0].symbols, envelope, None, 0.0)
    transmitter.to_basic_block()._post(pdu.pmt.intern(port), message)
    graph.start()
    eventually(lambda: transmitter.nitems_written(0) >= 2_500_000, "zeros flow without end")
    graph.stop()
    graph.wait()
    samples = np.array(sink.data(), np.complex64)
    assert faults.first is None
    warm_up = samples[LEAD : LEAD + WARM_UP_SYMBOLS * config.symbol_samples]
    assert np.mean(np.abs(warm_up) ** 2) == pytest.approx(0.75 * config.amplitude**2, rel=0.1)
    assert max(np.abs(samples.real).max(), np.abs(samples.imag).max()) == 1.0
    assert transmitter.clipped > 0
    assert transmitter.waiting == 0
    assert not samples[-100_000:].any()
    receiver = BurstReceiver(config)
    bursts = receiver.push(samples)
    assert [burst.header.image_id for burst in bursts] == [3] * len(bursts) != []
    assert receiver.counters.detections == len(bursts)  # none in the stretch that is thrown away


def test_what_is_received_does_not_depend_on_how_the_scheduler_chops_the_samples() -> None:
    config = PhyConfig()
    rng = np.random.default_rng(2)
    bursts = [np.concatenate(BurstTransmitter(config).transmit(i, make_streams(rng, [9000, 300]))) for i in range(3)]
    quiet = np.zeros(30_001, np.complex64)
    samples = np.concatenate([quiet, bursts[0], bursts[1], quiet, bursts[2], quiet, quiet])
    samples += (0.1 * rng.normal(size=(samples.size, 2))).astype(np.float32).view(np.complex64).ravel()
    seen = []
    for piece in (333, 4096, 60_000):
        receiver = image_receiver(config, Faults())
        graph = gr.top_block()
        graph.connect(blocks.vector_source_c(samples.tolist()), receiver)
        receiver.set_max_noutput_items(piece)
        graph.run(piece)
        images = []
        while (found := receiver.take(0.0)) is not None:
            images.append(found)
        assert [image.image_id for image, _ in images] == [0, 1, 2]
        seen.append(np.concatenate([symbols for image, _ in images for _, symbols, _ in image.streams]))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


def test_images_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnuradio.multisc.air_graph.MAX_SYMBOLS_WAITING", 5000)
    config = PhyConfig()
    receiver = image_receiver(config, Faults())
    rng = np.random.default_rng(3)
    for image_id in range(4):
        bursts = BurstTransmitter(config).transmit(image_id, make_streams(rng, [2000]))
        receiver.work([np.concatenate([*bursts, np.zeros(30_000, np.complex64)])], [])
    assert receiver.dropped == 2
    assert [receiver.take(0.0)[0].image_id for _ in range(2)] == [0, 1]
    assert receiver.take(0.0) is None


def test_lost_samples_are_counted_from_what_drivers_print() -> None:
    soapy = DriverLog("soapy")
    for chunk in (b"sUs", b"UsO[INFO] sOUsage of sUgar\ns", b"O\n", b"source :warning: Soapy source err", b"or: X\n"):
        soapy.feed(chunk)
    assert (soapy.underflows, soapy.overflows) == (2, 2)
    assert list(soapy.lines) == ["[INFO] sOUsage of sUgar", "source :warning: Soapy source error: X"]
    assert soapy.last_words() == "Soapy source error: X"
    said: list[str] = []
    told = DriverLog("soapy", said.append)
    told.feed(b"sO[INFO] ready\nSoapy source error: X\nSoapy source error: X\n")
    assert said == ["[INFO] ready"]  # not the failure, which is repeated without end
    uhd = DriverLog("uhd")
    uhd.feed(b"UUO[WARNING] LO Unlocked\nOverrun on channel\nLSD")
    assert (uhd.underflows, uhd.overflows) == (4, 2)
    assert uhd.last_words() == "Overrun on channel"


def test_the_oscillator_stays_out_of_the_waveform() -> None:
    def settings(offset: float, oversample: int, driver: str = "soapy") -> FrontEndSettings:
        return FrontEndSettings(driver, "", 2e6, 1e8, lo_offset=offset, oversample=oversample)

    for right in ((0.0, 1), (1.02e6, 2), (-2.5e6, 4)):
        check_plan(settings(*right), PhyConfig())
    check_plan(settings(1e5, 1, "uhd"), PhyConfig())  # the device's own converter does it
    for wrong in ((1e5, 1), (0.8e6, 2), (1.2e6, 2), (0.0, 0), (0.0, 17)):
        with pytest.raises(BadInputError):
            check_plan(settings(*wrong), PhyConfig())


class FakeUsrp(gr.sync_block):
    """Has the methods of ``uhd.usrp_sink`` with its signatures, and its ranges are gr-uhd's own objects."""

    def __init__(self, device_addr: str, stream_args: object, tsb_tag_name: str = "") -> None:
        from gnuradio import uhd

        gr.sync_block.__init__(self, "fake", [np.complex64], None)
        self.ranges = {"rate": (0.2e6, 56e6), "frequency": (50e6, 6e9), "gain": (0.0, 89.75)}
        self.uhd = uhd
        self.was: dict[str, object] = {"args": device_addr, "gain": 0.0, "antenna": "TX/RX"}

    def range(self, name: str) -> object:
        return self.uhd.meta_range_t(*self.ranges[name])

    def get_samp_rates(self) -> object:
        return self.range("rate")

    def get_freq_range(self, chan: int = 0) -> object:
        return self.range("frequency")

    def get_gain_range(self, *name_and_channel: object) -> object:
        return self.range("gain")

    def get_gain_names(self, chan: int = 0) -> list[str]:
        return ["PGA"]

    def get_antennas(self, chan: int = 0) -> list[str]:
        return ["TX/RX", "RX2"]

    def set_samp_rate(self, rate: float) -> None:
        self.was["rate"] = rate if rate != 3e6 else 2.99e6

    def get_samp_rate(self) -> object:
        return self.was["rate"]

    def set_center_freq(self, request: object, chan: int = 0) -> None:
        self.was["request"] = request

    def get_center_freq(self, chan: int = 0) -> float:
        return self.was["request"].target_freq

    def set_gain(self, gain: float, *name_and_channel: object) -> None:
        self.was["gain"] = gain

    def get_gain(self, chan: int = 0) -> object:
        return self.was["gain"]

    def set_antenna(self, name: str, chan: int = 0) -> None:
        self.was["antenna"] = name

    def get_antenna(self, chan: int = 0) -> object:
        return self.was["antenna"]


def test_a_usrp_is_set_and_checked_through_gr_uhd(monkeypatch: pytest.MonkeyPatch) -> None:
    """No USRP was ever attached: this shows that the calls fit gr-uhd, and no more."""
    uhd = pytest.importorskip("gnuradio.uhd")
    monkeypatch.setattr(uhd, "usrp_sink", FakeUsrp)

    def front_end(**changes: object) -> FrontEnd:
        usual = {"driver": "uhd", "args": "type=b200", "rate": 2e6, "frequency": 1e9, "gains": {"": 40.0}}
        return FrontEnd("tx", FrontEndSettings(**{**usual, **changes}), PhyConfig())

    end = front_end(antenna="RX2", lo_offset=5e5, gains={"PGA": 30.0})
    (device,) = end.blocks
    assert (end.gain, end.antenna, device.was["args"]) == (30.0, "RX2", "type=b200")
    assert device.was["request"].rf_freq == 1e9 + 5e5
    for wrong, word in (
        ({"rate": 60e6}, "200000 to 56000000"),
        ({"rate": 3e6}, "2990000"),
        ({"frequency": 1e6}, "50000000 to"),
        ({"gains": {"": 90.0}}, "89.75"),
        ({"gains": {"VGA": 1.0}}, "PGA"),
        ({"antenna": "J1"}, "TX/RX, RX2"),
    ):
        with pytest.raises(BadInputError, match=word):
            front_end(**wrong)
