# SPDX-License-Identifier: GPL-3.0-or-later
"""The burst receiver and its threads: nothing is lost when the input ends, none is left when the graph stops."""

from __future__ import annotations

import threading

import numpy as np
from gnuradio import blocks, gr, multisc
from gnuradio.multisc.blocks.message_block import Faults, collector
from numpy.typing import NDArray

from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.transport import modulate
from multisc.streams import Stream

IMAGES = 12


def recording() -> NDArray[np.complex64]:
    """Bursts of one image each, with silence before and behind, and a little noise."""
    rng = np.random.default_rng(1)
    transmitter = BurstTransmitter(PhyConfig())
    parts = [np.zeros(2000, np.complex64)]
    for image_id in range(IMAGES):
        stream = modulate(Stream("bits", rng.integers(0, 2, 20_000).astype(np.uint8), "qpsk"))
        parts += [*transmitter.transmit(image_id, [stream], b""), np.zeros(500, np.complex64)]
    samples = np.concatenate(parts)
    noise = rng.standard_normal((samples.size, 2)).astype(np.float32).view(np.complex64).ravel()
    return samples + np.float32(0.01) * noise


def graph_of(samples: NDArray[np.complex64], repeat: bool) -> tuple[gr.top_block, collector, Faults]:
    graph, faults = gr.top_block(), Faults()
    graph.source = blocks.vector_source_c(samples.tolist(), repeat)
    graph.receiver = multisc.burst_receiver(PhyConfig(), faults=faults)
    graph.sink = collector(faults)
    graph.connect(graph.source, graph.receiver)
    graph.msg_connect(graph.receiver, "symbols", graph.sink, "in")
    return graph, graph.sink, faults


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("headers", "payloads"))]


def test_what_was_found_is_handed_on_when_the_input_ends_without_a_tag() -> None:
    """But for the last image, which nothing behind it completes."""
    graph, sink, faults = graph_of(recording(), repeat=False)
    graph.run()
    assert faults.first is None
    assert len(sink.messages) >= IMAGES - 1
    assert threads() == []


def test_stopping_in_the_middle_leaves_no_thread() -> None:
    graph, sink, faults = graph_of(recording(), repeat=True)
    graph.start()
    while not sink.messages and faults.first is None:
        sink.done.wait(0.01)
    graph.stop()
    graph.wait()
    assert faults.first is None
    assert threads() == []
