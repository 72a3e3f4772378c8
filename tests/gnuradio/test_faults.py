"""What a block cannot use is counted and logged, and the block goes on with the next message."""

from __future__ import annotations

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, multisc
from gnuradio.multisc import pdu
from gnuradio.multisc.message_block import MessageBlock

from multisc.channel import Awgn, Chain, make_channel
from multisc.errors import BadInputError
from multisc.images import save_png
from multisc.phy.config import PhyConfig
from tests.support.inference import eventually


class NoBackend:
    """Is never asked: no message gets so far."""


MAKERS = {
    "bpg_decoder": lambda tmp: multisc.bpg_decoder(),
    "bpg_encoder": lambda tmp: multisc.bpg_encoder(1000),
    "burst_transmitter": lambda tmp: multisc.burst_transmitter(PhyConfig()),
    "demodulator": lambda tmp: multisc.demodulator(),
    "demultiplexer": lambda tmp: multisc.demultiplexer(),
    "dequantiser": lambda tmp: multisc.dequantiser(),
    "image_file_sink": lambda tmp: multisc.image_file_sink(str(tmp)),
    "ldpc_decoder": lambda tmp: multisc.ldpc_decoder(),
    "ldpc_encoder": lambda tmp: multisc.ldpc_encoder(),
    "modulator": lambda tmp: multisc.modulator(),
    "multiplexer": lambda tmp: multisc.multiplexer(PhyConfig()),
    "quantiser": lambda tmp: multisc.quantiser(),
    "semantic_decoder": lambda tmp: multisc.semantic_decoder(NoBackend(), {}),
    "semantic_encoder": lambda tmp: multisc.semantic_encoder(NoBackend(), "multi-sc", {}),
}
NONSENSE = {
    "no PDU": pmt.intern("hello"),
    "no metadata": pmt.cons(pmt.make_dict(), pmt.init_u8vector(3, [1, 0, 1])),
    "other items": pmt.cons(pmt.make_dict(), pmt.init_f64vector(2, [1.0, 2.0])),
    "a place that is none": pdu.pack(
        {
            "image_id": 0, "index": 7, "count": 2, "system": "multi-sc", "side_info": b"", "stream": "a",
            "modulation": "8psk", "code": "none", "length": 3, "symbols": 3, "gain": 1.0, "power_db": 0.0,
            "noise_variance": np.ones(3, np.float32), "width": 0, "height": -1, "quantiser_bits": 4,
            "quantiser_limit": 1.0, "payload_symbols": 1, "carriers": 3, "header": b"nonsense",
        },
        np.zeros(3, np.uint8),
    ),
}  # fmt: skip


PASSES = {"dequantiser": 1, "ldpc_decoder": 1}  # what names no quantiser or no code is none of their business


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_nonsense_is_counted_and_logged_and_the_block_goes_on(name: str, tmp_path, capfd) -> None:
    block, source = MAKERS[name](tmp_path), MessageBlock("source", [], ["out"])
    graph = gr.top_block()
    (port, *_) = [port for port in ports_in(block) if port != "system"]
    graph.msg_connect(source, "out", block, port)
    sink = blocks.null_sink(gr.sizeof_gr_complex)
    if name == "burst_transmitter":
        graph.connect(block, sink)
    count = len(NONSENSE) - PASSES.get(name, 0)
    graph.start()
    try:
        for message in NONSENSE.values():
            source.send("out", message)
        eventually(lambda: block.faults.count >= count, "all nonsense is counted", 20)
    finally:
        graph.stop()
        graph.wait()
    assert block.faults.count == count
    assert isinstance(block.faults.first, BadInputError)
    said = "".join(capfd.readouterr())
    assert said.count(":error:") == count, said
    assert "Traceback" not in said


def ports_in(block) -> list[str]:
    ports = block.to_basic_block().message_ports_in()
    return [str(pmt.vector_ref(ports, i)) for i in range(pmt.length(ports))]


def test_every_block_with_a_message_input_is_among_these() -> None:
    named = {name: getattr(multisc, name) for name in multisc.__all__}
    others = {"collector", "burst_receiver", "image_source"}  # any message will do for these
    shown = {"image_sink", "link_statistics", "statistics_panel"}  # tests of their own
    takers = {
        name
        for name, value in named.items()
        if isinstance(value, type) and issubclass(value, (MessageBlock, multisc.burst_transmitter))
    }
    assert takers - others - shown == set(MAKERS)


def test_the_channel_can_be_changed() -> None:
    """The new chain counts from the next sample on, and so does the measured SNR."""
    count = 400_000
    samples = np.ones(count, np.complex64)
    source = blocks.vector_source_c(samples.tolist(), False)
    air = multisc.channel(make_channel("awgn", 0.1, 0, 2e6))
    sink = blocks.vector_sink_c()
    graph = gr.top_block()
    graph.connect(source, air, sink)
    air.set_chain(make_channel("awgn", 0.001, 0, 2e6))
    graph.run()
    received = np.array(sink.data())
    assert received.size == count
    assert air.snr_db(1.0) == pytest.approx(30.0, abs=0.1)
    assert 10 * np.log10(1 / np.mean(np.abs(received - 1) ** 2)) == pytest.approx(30.0, abs=0.1)


def test_a_channel_without_noise_is_refused_and_the_old_one_stays() -> None:
    air = multisc.channel(make_channel("awgn", 0.1, 0, 2e6))
    with pytest.raises(BadInputError, match="0 stages of white noise"):
        air.set_chain(Chain([]))
    with pytest.raises(BadInputError, match="2 stages"):
        air.set_chain(Chain([Awgn(0.1, 0), Awgn(0.1, 1)]))


def test_pictures_on_demand_count_up_from_the_first_id(photograph, tmp_path) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, picture in zip(paths, (photograph, photograph[:100]), strict=True):
        save_png(path, picture)
    source = multisc.image_source(paths, on_demand=True, first_id=2**32 - 2)
    asker, end, graph = MessageBlock("asker", [], ["out"]), multisc.collector(), gr.top_block()
    graph.msg_connect(asker, "out", source, "next")
    graph.msg_connect(source, "image", end, "in")
    graph.start()
    try:
        for _ in range(3):
            asker.send("out", pmt.PMT_T)
        eventually(lambda: len(end.messages) == 3, "three pictures", 20)
    finally:
        graph.stop()
        graph.wait()
    sent = [pdu.unpack_image(*pdu.unpack(message)) for message in end.messages]
    assert [(image.shape[0], image_id) for image, image_id in sent] == [(300, 2**32 - 2), (100, 2**32 - 1), (300, 0)]
    assert not end.done.is_set()


@pytest.mark.parametrize("first_id", [-1, 2**32])
def test_an_image_source_refuses_ids_out_of_range_and_no_picture(first_id: int) -> None:
    with pytest.raises(BadInputError, match="image id"):
        multisc.image_source("a.png", first_id=first_id)
    with pytest.raises(BadInputError, match="without a picture"):
        multisc.image_source("")
