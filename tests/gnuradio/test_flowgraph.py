"""Real GNU Radio flowgraphs with a system that needs no models."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from gnuradio.multisc import loopback
from gnuradio.multisc.apps import outcome
from gnuradio.multisc.blocks.burst import LEAD
from gnuradio.multisc.blocks.channel import _Energy

from multisc.channel import make_channel
from multisc.codecs.quantise import Quantiser
from multisc.errors import InferenceError
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver, IdealSync
from multisc.phy.transport import modulate
from multisc.phy.units import time_noise_variance
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream
from tests.support.phy import AT_1E3, theory

IMAGE = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)


class Echo:
    """Sends given streams and keeps what comes back."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams
        self.received: ReceivedImage | None = None

    def encode(self, system, image, options):
        np.testing.assert_array_equal(image, IMAGE)
        return Encoded(self.streams, b"side", {})

    def decode(self, system, received, options):
        assert system == "echo"
        self.received = received
        return Reconstruction(IMAGE)


def run(backend, snr_db: float = 20.0, config: PhyConfig | None = None, seed: int = 0, **channel) -> loopback:
    kind = channel.pop("kind", "awgn")
    power_db = channel.pop("power_db", None)
    receiver = channel.pop("receiver", None)
    chain = make_channel(kind, time_noise_variance(snr_db), seed, 2e6, **channel)
    graph = loopback(backend, "echo", {}, config or PhyConfig(), chain, power_db, receiver)
    graph.send(IMAGE, image_id=seed)
    graph.start()
    deadline = time.monotonic() + 60
    for end in (graph.sent_bits, graph.sent_symbols, graph.received_symbols, graph.received_bits, graph.image):
        while not end.done.wait(0.01) and graph.faults.first is None:
            assert time.monotonic() < deadline, "the flowgraph hangs"
    graph.stop()
    graph.wait()
    return graph


def mixed_streams(seed: int = 1) -> list[Stream]:
    rng = np.random.default_rng(seed)
    coefficients = rng.uniform(-1, 1, 4000).astype(np.float32)
    return [
        Stream("slice", coefficients, "qpsk", "none", Quantiser(6, 1.0)),
        Stream("text", rng.integers(0, 2, 801).astype(np.uint8), "16qam"),
        Stream("coded", rng.integers(0, 2, 3000).astype(np.uint8), "64qam", "nr:1/2"),
        Stream("features", rng.normal(size=2001).astype(np.float32), "analog"),
    ]


@pytest.mark.parametrize("orthogonal", ["fdm", "tdm", "cdm"])
def test_streams_of_every_kind_arrive(orthogonal: str) -> None:
    backend = Echo(mixed_streams())
    graph = run(backend, 30.0, PhyConfig(orthogonal=orthogonal))
    assert graph.faults.first is None
    assert backend.received is not None
    assert backend.received.side_info == b"side"
    slice_, text, coded, features = backend.received.streams
    half_step = 1 / 2**6
    assert np.abs(slice_.data - backend.streams[0].data).max() <= half_step * 1.01
    np.testing.assert_array_equal(text.data, backend.streams[1].data)
    np.testing.assert_array_equal(coded.data, backend.streams[2].data)
    assert coded.crc_ok is True
    assert text.crc_ok is None
    error = np.mean((features.data - backend.streams[3].data) ** 2)
    assert 10 * np.log10(1 / error) == pytest.approx(30.0, abs=1.0)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_the_channel_has_the_snr_that_was_asked_for(snr_db: float) -> None:
    rng = np.random.default_rng(3)
    backend = Echo([Stream("bits", rng.integers(0, 2, 80_000).astype(np.uint8))])
    graph = run(backend, snr_db, seed=4)
    (result,) = outcome.stream_results(graph, PhyConfig(), {"bits": snr_db})
    assert result.snr_measured_db == pytest.approx(snr_db, abs=0.1)
    assert result.snr_estimated_db == pytest.approx(snr_db, abs=0.5)


@pytest.mark.parametrize("name", AT_1E3)
@pytest.mark.parametrize(("ideal", "within_db"), [(True, 0.3), (False, 0.7)])
def test_uncoded_error_rate_through_the_flowgraph_is_near_theory(name: str, ideal: bool, within_db: float) -> None:
    """At 1e-3 the error rate lies between theory and theory at an SNR less by the allowance (99.9 % bounds)."""
    snr_db, config = AT_1E3[name], PhyConfig()
    bits = np.random.default_rng(9).integers(0, 2, 240_000).astype(np.uint8)
    stream = Stream("bits", bits, name)
    receiver = None
    if ideal:
        bursts = BurstTransmitter(config).transmit(10, [modulate(stream)], b"side", "echo")
        starts = LEAD + np.concatenate([[0], np.cumsum([burst.size for burst in bursts])])[:-1]
        receiver = BurstReceiver(config, IdealSync(starts.tolist(), time_noise_variance(snr_db)))
    graph = run(Echo([stream]), snr_db, config, seed=10, receiver=receiver, cfo_hz=0.0 if ideal else 5000.0)
    (result,) = outcome.stream_results(graph, config, {"bits": snr_db})
    rate, deviation = result.bit_errors / bits.size, 3.3 / np.sqrt(result.bit_errors)
    assert rate * (1 + deviation) > theory(name, snr_db)
    assert rate * (1 - deviation) < theory(name, snr_db - within_db)


def test_each_stream_can_have_its_own_snr() -> None:
    rng = np.random.default_rng(5)
    backend = Echo([Stream(name, rng.integers(0, 2, 20_000).astype(np.uint8)) for name in ("slice", "text")])
    plan = {"slice": 0.0, "text": -7.0}
    graph = run(backend, 10.0, power_db=plan.__getitem__)
    first, second = outcome.stream_results(graph, PhyConfig(), {"slice": 10.0, "text": 3.0})
    assert first.snr_measured_db == pytest.approx(10.0, abs=0.15)
    assert second.snr_measured_db == pytest.approx(3.0, abs=0.15)
    assert second.snr_estimated_db == pytest.approx(3.0, abs=0.6)
    for result, snr_db in ((first, 10.0), (second, 3.0)):  # between theory and 0.7 dB less, 99.9 % bounds
        fewest, most = 20_000 * theory("qpsk", snr_db), 20_000 * theory("qpsk", snr_db - 0.7)
        assert fewest - 3.3 * np.sqrt(fewest) < result.bit_errors < most + 3.3 * np.sqrt(most)


def test_the_same_seed_gives_the_same_bits() -> None:
    soft = []
    for _ in range(3):
        backend = Echo(mixed_streams())
        run(backend, 3.0, seed=7, cfo_hz=900.0)
        assert backend.received is not None
        soft.append(np.concatenate([stream.llrs for stream in backend.received.streams]))
    np.testing.assert_array_equal(soft[0], soft[1])
    np.testing.assert_array_equal(soft[0], soft[2])


@pytest.mark.parametrize("clock_ppm", [-20.0, 20.0])
def test_a_clock_offset_is_followed(clock_ppm: float) -> None:
    rng = np.random.default_rng(6)
    backend = Echo([Stream("bits", rng.integers(0, 2, 60_000).astype(np.uint8), "16qam", "nr:1/2")])
    graph = run(backend, 15.0, seed=8, clock_ppm=clock_ppm)
    assert graph.faults.first is None
    (result,) = outcome.stream_results(graph, PhyConfig(), {"bits": 15.0})
    assert result.crc_ok is True
    assert result.snr_measured_db == pytest.approx(15.0, abs=0.15)


def test_nothing_received_ends_the_run() -> None:
    backend = Echo(mixed_streams())
    graph = run(backend, -25.0)
    assert backend.received is None
    assert graph.decoder.reconstruction is None
    assert graph.faults.first is None


def test_the_measured_snr_does_not_depend_on_how_the_samples_are_chopped() -> None:
    rng = np.random.default_rng(2)
    samples = rng.normal(size=(50_003, 2)).astype(np.float32).view(np.complex64).ravel()
    totals = set()
    for _ in range(4):
        energy = _Energy()
        for piece in np.split(samples, np.sort(rng.integers(0, samples.size, 20))):
            energy.add(piece)
        assert energy.samples == samples.size
        totals.add(energy.total())
    assert len(totals) == 1
    assert totals.pop() == pytest.approx(np.sum(np.abs(samples.astype(complex)) ** 2), rel=1e-12)


def test_a_failing_backend_ends_the_run_with_its_error() -> None:
    class Dead:
        def encode(self, system, image, options):
            raise InferenceError("the inference process died")

    graph = run(Dead())
    assert isinstance(graph.faults.first, InferenceError)


def test_a_failure_in_the_receiver_is_not_silent(monkeypatch) -> None:
    def broken(self, samples):
        raise ZeroDivisionError("in the receiver")

    monkeypatch.setattr("multisc.phy.receiver.BurstReceiver.follow_up", broken)
    before = set(threading.enumerate())
    graph = run(Echo(mixed_streams()))
    assert isinstance(graph.faults.first, ZeroDivisionError)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(30.0)
    assert not any(thread.is_alive() for thread in left)
