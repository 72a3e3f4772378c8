"""The LDPC, multiplexer and BPG blocks: alone, and in a chain that must be the plain one bit for bit."""

from __future__ import annotations

import time

import numpy as np
import pytest
from gnuradio import gr, multisc
from gnuradio.multisc import pdu

from multisc.channel import make_channel
from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.images import save_png
from multisc.phy.config import PhyConfig
from multisc.phy.fec import make_code
from multisc.phy.modulation import demap, map_bits
from multisc.phy.transport import modulate
from multisc.phy.units import noise_variance, time_noise_variance
from multisc.streams import Stream
from multisc.systems import mcs as schemes
from tests.support.inference import eventually


class Chain(gr.top_block):
    """Blocks that only pass messages, one behind the other; what comes out at the end is collected."""

    def __init__(self, *stages: tuple[multisc.message_block.MessageBlock, str, str]) -> None:
        super().__init__("chain")
        self.faults = multisc.Faults()
        self.end = multisc.collector(self.faults)
        self.stages = stages  # GNU Radio lets go of a Python block that nobody holds
        for (block, _, out), (other, into, _) in zip(stages, [*stages[1:], (self.end, "in", "")], strict=True):
            self.msg_connect(block, out, other, into)
        for block, _, _ in stages:
            block.faults = self.faults

    def run_messages(self, messages: list) -> list[tuple[dict, np.ndarray]]:
        first, port, _ = self.stages[0]
        for message in [*messages, pdu.END]:
            first.to_basic_block()._post(pdu.pmt.intern(port), message)
        self.start()
        deadline = time.monotonic() + 30
        while not self.end.done.wait(0.01):
            assert time.monotonic() < deadline, "the flowgraph hangs"
        self.stop()
        self.wait()
        return [pdu.unpack(message) for message in self.end.messages]


def run_block(block, into: str, out: str, messages: list) -> list[tuple[dict, np.ndarray]]:
    chain = Chain((block, into, out))
    received = chain.run_messages(messages)
    if chain.faults.first is not None:
        raise chain.faults.first
    return received


def packed(*streams: Stream, image_id: int = 7) -> list:
    return [
        pdu.pack_stream(stream, pdu.Envelope(image_id, index, len(streams), "echo", b"side"))
        for index, stream in enumerate(streams)
    ]


def streams_of_every_kind(seed: int = 1) -> list[Stream]:
    rng = np.random.default_rng(seed)
    coefficients = rng.uniform(-1, 1, 2000).astype(np.float32)
    return [
        Stream("slice", coefficients, "qpsk", "nr:1/2", Quantiser(6, 1.0)),
        Stream("text", rng.integers(0, 2, 801).astype(np.uint8), "16qam"),
        Stream("coded", rng.integers(0, 2, 3000).astype(np.uint8), "64qam", "nr:2/3"),
        Stream("gallager", rng.integers(0, 2, 500).astype(np.uint8), "bpsk", "pyldpc:648:3:6"),
        Stream("features", rng.normal(size=901).astype(np.float32), "analog"),
        Stream("empty", np.zeros(0, np.uint8), "qpsk", "nr:1/2"),
    ]


def received_symbols(streams: list[Stream], snr_db: float, seed: int = 2) -> list:
    """What a burst receiver would hand on: each stream's symbols and noise."""
    rng = np.random.default_rng(seed)
    variance = noise_variance(snr_db)
    messages = []
    for index, stream in enumerate(streams):
        sent = modulate(stream)
        size = sent.symbols.size
        noise = rng.normal(scale=np.sqrt(variance / 2), size=(size, 2)).astype(np.float32).view(np.complex64).ravel()
        envelope = pdu.Envelope(7, index, len(streams), "echo", b"")
        levels = np.full(size, variance, np.float32)
        messages.append(pdu.pack_symbols(sent.descriptor, sent.symbols + noise, envelope, levels))
    return messages


# ---- LDPC


def test_encoder_and_modulator_make_the_symbols_that_the_modulator_alone_makes() -> None:
    streams = packed(*streams_of_every_kind())
    quantised = run_block(multisc.quantiser(), "coefficients", "bits", streams)
    bits = [pdu.pack(*message) for message in quantised]
    plain = run_block(multisc.modulator(), "bits", "symbols", bits)
    chain = Chain((multisc.ldpc_encoder(), "bits", "coded"), (multisc.modulator(), "bits", "symbols"))
    split = chain.run_messages(bits)
    assert chain.faults.first is None
    assert len(split) == len(plain) == 6
    for (meta, symbols), (wanted_meta, wanted) in zip(split, plain, strict=True):
        np.testing.assert_array_equal(symbols, wanted)
        assert pdu.unpack_symbols(meta, symbols).descriptor == pdu.unpack_symbols(wanted_meta, wanted).descriptor


def test_demodulator_and_decoder_give_the_bits_that_the_demodulator_alone_gives() -> None:
    symbols = received_symbols(streams_of_every_kind(), 4.0)
    plain = run_block(multisc.demodulator(), "symbols", "bits", symbols)
    chain = Chain(
        (multisc.demodulator(decode=False), "symbols", "bits"), (multisc.ldpc_decoder(), "soft_bits", "bits")
    )
    split = chain.run_messages(symbols)
    assert chain.faults.first is None
    for (meta, data), (wanted_meta, wanted) in zip(split, plain, strict=True):
        np.testing.assert_array_equal(data, wanted)
        assert set(meta) == set(wanted_meta)
        assert meta.get("crc_ok") == wanted_meta.get("crc_ok")
    assert [meta.get("crc_ok") for meta, _ in split] == [True, None, False, True, None, None]


def test_code_bits_are_those_of_the_library_and_a_rate_can_be_forced() -> None:
    bits = np.random.default_rng(5).integers(0, 2, 1000).astype(np.uint8)
    ((meta, coded),) = run_block(
        multisc.ldpc_encoder("nr:1/3"), "bits", "coded", packed(Stream("a", bits, "16qam", "none"))
    )
    np.testing.assert_array_equal(coded, make_code("nr:1/3", 1000, 4).encode(bits))
    assert (meta["code"], meta["length"], meta["modulation"]) == ("nr:1/3", 1000, "16qam")


def test_frame_error_rate_through_the_blocks_is_the_measured_one() -> None:
    """QPSK, rate 1/2, 1024 bits, at the SNR of the committed table where about one frame in ten fails."""
    frames, bits = 300, 1024
    (rate,) = [r for r in schemes.table()["1/2:qpsk"] if r.payload_bits == bits]
    snr_db, sent, failed = min(rate.points, key=lambda p: abs(p[2] / p[1] - 0.1))
    rng = np.random.default_rng(11)
    payloads = [rng.integers(0, 2, bits).astype(np.uint8) for _ in range(frames)]
    coded = run_block(
        multisc.ldpc_encoder("nr:1/2"), "bits", "coded", [m for p in payloads for m in packed(Stream("a", p))]
    )
    variance = noise_variance(snr_db)
    heard = []
    for meta, word in coded:
        symbols = map_bits(word, "qpsk")
        noise = rng.normal(scale=np.sqrt(variance / 2), size=(symbols.size, 2)).astype(np.float32)
        llrs = demap(symbols + noise.view(np.complex64).ravel(), variance, "qpsk")
        heard.append(pdu.pack(meta | {"delivered": True, "snr_db": snr_db}, llrs))
    decoded = run_block(multisc.ldpc_decoder(), "soft_bits", "bits", heard)
    wrong = sum(not np.array_equal(data, payload) for (_, data), payload in zip(decoded, payloads, strict=True))
    assert sum(meta["crc_ok"] is False for meta, _ in decoded) == wrong
    expected = failed / sent
    deviation = 3.3 * np.sqrt(expected * (1 - expected) * (1 / frames + 1 / sent))
    assert abs(wrong / frames - expected) < deviation


def test_more_iterations_decode_more() -> None:
    """Near the threshold one iteration gets fewer frames through than the usual twenty."""
    symbols = received_symbols([Stream(f"s{i}", np.zeros(1024, np.uint8), "qpsk", "nr:1/2") for i in range(12)], 2.0)
    good = []
    for iterations in (1, 0):
        soft, decoder = multisc.demodulator(decode=False), multisc.ldpc_decoder(iterations)
        received = Chain((soft, "symbols", "bits"), (decoder, "soft_bits", "bits")).run_messages(symbols)
        good.append(sum(meta["crc_ok"] for meta, _ in received))
    assert good[0] < good[1] == 12
    for wrong in (-1, 1001):
        with pytest.raises(BadInputError, match="iterations"):
            multisc.ldpc_decoder(wrong)


def test_two_encoders_in_a_row_are_refused() -> None:
    chain = Chain(
        (multisc.ldpc_encoder("nr:1/2"), "bits", "coded"), (multisc.ldpc_encoder("nr:1/2"), "bits", "coded")
    )
    assert chain.run_messages(packed(Stream("a", np.zeros(100, np.uint8)))) == []
    assert isinstance(chain.faults.first, BadInputError)
    assert "coded already" in str(chain.faults.first)


def test_code_bits_that_do_not_fit_their_length_are_refused() -> None:
    (message,) = packed(Stream("a", np.zeros(100, np.uint8), "qpsk", "nr:1/2"))
    meta, _ = pdu.unpack(message)
    with pytest.raises(BadInputError, match=r"99 code bits, 100 bits of nr:1/2 in qpsk make \d+"):
        run_block(multisc.modulator(), "bits", "symbols", [pdu.pack(meta | {"length": 100}, np.zeros(99, np.uint8))])


@pytest.mark.parametrize("code", ["none", "nr:4/5", "turbo"])
def test_an_encoder_needs_a_code_that_exists(code: str) -> None:
    with pytest.raises(BadInputError):
        multisc.ldpc_encoder(code)


# ---- orthogonal channels


@pytest.mark.parametrize("orthogonal", ["fdm", "tdm", "cdm"])
def test_demultiplexing_undoes_multiplexing(orthogonal: str) -> None:
    config = PhyConfig(orthogonal=orthogonal, max_payload_symbols=8)  # so that the image takes several bursts
    symbols = run_block(multisc.modulator(), "bits", "symbols", packed(*streams_of_every_kind()))
    messages = [pdu.pack(*message) for message in symbols]
    grids = run_block(multisc.multiplexer(config), "symbols", "grid", messages)
    assert len(grids) > 1
    assert {meta["total"] for meta, _ in grids} == {len(grids)}
    assert all(data.size == meta["payload_symbols"] * meta["carriers"] for meta, data in grids)
    back = run_block(multisc.demultiplexer(), "grid", "symbols", [pdu.pack(*grid) for grid in reversed(grids)])
    for (meta, data), (wanted_meta, wanted) in zip(back, symbols, strict=True):
        np.testing.assert_allclose(data, wanted, atol=1e-6)
        assert pdu.unpack_symbols(meta, data).descriptor == pdu.unpack_symbols(wanted_meta, wanted).descriptor
        assert pdu.envelope_of(meta) == pdu.envelope_of(wanted_meta)


@pytest.mark.parametrize(("orthogonal", "leak_db"), [("fdm", -300.0), ("tdm", -300.0), ("cdm", -120.0)])
def test_a_stream_does_not_leak_into_another(orthogonal: str, leak_db: float) -> None:
    """One stream at 0 dB beside one of all-zero symbols: what arrives on the second is the first one's leakage."""
    rng = np.random.default_rng(3)
    loud = modulate(Stream("loud", rng.integers(0, 2, 8000).astype(np.uint8)))
    silent = modulate(Stream("silent", np.zeros(7000, np.float32), "analog"))
    messages = [
        pdu.pack_symbols(stream.descriptor, stream.symbols, pdu.Envelope(1, index, 2, "echo", b""))
        for index, stream in enumerate((loud, silent))
    ]
    blocks = [(multisc.multiplexer(PhyConfig(orthogonal=orthogonal)), "symbols", "grid")]
    chain = Chain(*blocks, (multisc.demultiplexer(), "grid", "symbols"))
    first, second = (data for _, data in chain.run_messages(messages))
    assert np.mean(np.abs(first) ** 2) == pytest.approx(1.0, abs=1e-5)
    assert 10 * np.log10(np.mean(np.abs(second) ** 2) + 1e-30) <= leak_db


def through_the_air(split: bool, config: PhyConfig, symbols: list, snr_db: float) -> tuple[list, np.ndarray]:
    """Symbols over a noisy channel, multiplexed by blocks of their own or by the burst blocks."""
    graph = gr.top_block("air")
    faults = multisc.Faults()
    transmitter = multisc.burst_transmitter(config, faults)
    air = multisc.channel(make_channel("awgn", time_noise_variance(snr_db), 3, 2e6, cfo_hz=700.0), faults)
    receiver = multisc.burst_receiver(PhyConfig(max_payload_symbols=config.max_payload_symbols), faults=faults)
    end = multisc.collector(faults)
    graph.connect(transmitter, air, receiver)
    first, keep = transmitter, []
    if split:
        multiplexer, demultiplexer = multisc.multiplexer(config, faults), multisc.demultiplexer(faults)
        graph.msg_connect(multiplexer, "grid", transmitter, "grid")
        graph.msg_connect(receiver, "grid", demultiplexer, "grid")
        graph.msg_connect(demultiplexer, "symbols", end, "in")
        first, keep = multiplexer, [multiplexer, demultiplexer]
    else:
        graph.msg_connect(receiver, "symbols", end, "in")
    for message in [*symbols, pdu.END]:
        first.to_basic_block()._post(pdu.pmt.intern("symbols"), message)
    graph.start()
    deadline = time.monotonic() + 60
    while not end.done.wait(0.01) and faults.first is None:
        assert time.monotonic() < deadline, "the flowgraph hangs"
    graph.stop()
    graph.wait()
    assert faults.first is None
    uses = np.array([transmitter.bursts, transmitter.channel_uses, transmitter.channel_uses_total])
    del keep
    return [pdu.unpack(message) for message in end.messages], uses


@pytest.mark.parametrize("orthogonal", ["fdm", "cdm"])
def test_multiplexer_and_burst_blocks_together_are_the_burst_blocks_alone(orthogonal: str) -> None:
    config = PhyConfig(orthogonal=orthogonal, max_payload_symbols=8)
    plain = run_block(multisc.modulator(), "bits", "symbols", packed(*streams_of_every_kind()))
    symbols = [pdu.pack(*message) for message in plain]
    whole, uses = through_the_air(False, config, symbols, 10.0)
    parts, uses_of_parts = through_the_air(True, config, symbols, 10.0)
    np.testing.assert_array_equal(uses, uses_of_parts)
    assert len(whole) == len(parts) == 6
    for (meta, data), (wanted_meta, wanted) in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(data, wanted)
        np.testing.assert_array_equal(meta["noise_variance"], wanted_meta["noise_variance"])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"carriers": 175}, "have 1575 complex64 items"),
        ({"header": b""}, "header cannot be read"),
        ({"noise_variance": np.zeros(3, np.float32)}, "3 float32 noise variances"),
        ({"payload_symbols": 8}, "have 1408 complex64 items"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(change: dict, what: str) -> None:
    symbols = run_block(multisc.modulator(), "bits", "symbols", packed(Stream("a", np.zeros(3000, np.uint8))))
    ((meta, data),) = run_block(
        multisc.multiplexer(PhyConfig()), "symbols", "grid", [pdu.pack(*message) for message in symbols]
    )
    with pytest.raises(BadInputError, match=what):
        run_block(multisc.demultiplexer(), "grid", "symbols", [pdu.pack(meta | change, data)])


# ---- BPG


def test_a_picture_survives_bpg_within_its_budget(photograph) -> None:
    encoder = multisc.bpg_encoder(6000, "16qam", "nr:1/3")
    ((meta, bits),) = run_block(encoder, "image", "bits", [pdu.pack_image(photograph, 5)])
    assert 0.8 * 6000 <= bits.size / 8 <= 6000
    assert (meta["stream"], meta["modulation"], meta["code"], meta["system"]) == (
        "bpg",
        "16qam",
        "nr:1/3",
        "bpg-ldpc",
    )
    received = meta | {"delivered": True, "crc_ok": True, "snr_db": 10.0}
    ((about, flat),) = run_block(multisc.bpg_decoder(), "bits", "image", [pdu.pack(received, bits)])
    picture, image_id = pdu.unpack_image(about, flat)
    assert image_id == 5
    assert about["outage"] is False
    error = np.mean((picture.astype(float) - photograph) ** 2)
    assert 10 * np.log10(255**2 / error) > 30


def test_a_failed_crc_and_a_damaged_file_are_outages(photograph) -> None:
    ((meta, bits),) = run_block(multisc.bpg_encoder(4000), "image", "bits", [pdu.pack_image(photograph, 0)])
    about = meta | {"delivered": True, "crc_ok": False, "snr_db": 0.0}
    cut = pdu.pack(about | {"crc_ok": True}, bits[:800])
    other = pdu.pack(about | {"system": "multi-sc"}, bits)
    outages = run_block(multisc.bpg_decoder(), "bits", "image", [pdu.pack(about, bits), cut, other])
    assert [(meta["outage"], data.size) for meta, data in outages] == [(True, 0), (True, 0)]
    assert "CRC" in outages[0][0]["outage_reason"]
    assert "no picture" in outages[1][0]["outage_reason"]


def test_a_budget_too_small_for_any_file_is_a_fault(photograph) -> None:
    with pytest.raises(BadInputError, match="64"):
        run_block(multisc.bpg_encoder(64), "image", "bits", [pdu.pack_image(photograph, 0)])
    for wrong in ((63,), (1000, "8psk"), (1000, "qpsk", "turbo"), (1000, "qpsk", "none", "422")):
        with pytest.raises(BadInputError):
            multisc.bpg_encoder(*wrong)


def test_a_picture_goes_through_every_block_of_the_classic_chain(photograph, tmp_path) -> None:
    """BPG, LDPC, QAM, orthogonal channels, OFDM bursts and back, each step a block of its own."""
    faults, config = multisc.Faults(), PhyConfig(orthogonal="tdm", max_payload_symbols=64)
    path = tmp_path / "photo.png"
    save_png(path, photograph)
    blocks = {
        "source": multisc.image_source(str(path), False, 77, faults),
        "bpg_encoder": multisc.bpg_encoder(5000, "16qam", "none", faults=faults),
        "ldpc_encoder": multisc.ldpc_encoder("nr:1/2", faults),
        "modulator": multisc.modulator(faults=faults),
        "multiplexer": multisc.multiplexer(config, faults),
        "transmitter": multisc.burst_transmitter(PhyConfig(), faults),
        "receiver": multisc.burst_receiver(PhyConfig(), faults=faults),
        "demultiplexer": multisc.demultiplexer(faults),
        "demodulator": multisc.demodulator(False, faults),
        "ldpc_decoder": multisc.ldpc_decoder(faults=faults),
        "bpg_decoder": multisc.bpg_decoder(faults),
        "end": multisc.collector(faults),
    }
    air = multisc.channel(make_channel("awgn", time_noise_variance(11.0), 5, 2e6, cfo_hz=3000.0), faults)
    graph = gr.top_block("classic")
    for first, out, second, into in (
        ("source", "image", "bpg_encoder", "image"),
        ("bpg_encoder", "bits", "ldpc_encoder", "bits"),
        ("ldpc_encoder", "coded", "modulator", "bits"),
        ("modulator", "symbols", "multiplexer", "symbols"),
        ("multiplexer", "grid", "transmitter", "grid"),
        ("receiver", "grid", "demultiplexer", "grid"),
        ("demultiplexer", "symbols", "demodulator", "symbols"),
        ("demodulator", "bits", "ldpc_decoder", "soft_bits"),
        ("ldpc_decoder", "bits", "bpg_decoder", "bits"),
        ("bpg_decoder", "image", "end", "in"),
    ):
        graph.msg_connect(blocks[first], out, blocks[second], into)
    graph.connect(blocks["transmitter"], air, blocks["receiver"])
    graph.start()
    try:
        eventually(lambda: blocks["end"].done.is_set() or faults.first, "the picture arrives", 60)
    finally:
        graph.stop()
        graph.wait()
    assert faults.first is None
    ((meta, flat),) = [pdu.unpack(message) for message in blocks["end"].messages]
    picture, image_id = pdu.unpack_image(meta, flat)
    assert image_id == 77
    assert blocks["transmitter"].bursts > 1
    assert 10 * np.log10(255**2 / np.mean((picture.astype(float) - photograph) ** 2)) > 30
