"""Speed of this project's blocks in a flowgraph, printed as JSON: a child process of ``multisc bench phy``.

Arguments: a file of complex64 samples at full duty, how many images it holds, how many seconds to run, and how many
streams an image has. Receives, demaps, decodes, and counts the streams whose CRC is right.
"""

import json
import sys
import time

import pmt
from gnuradio import blocks, gr
from gnuradio.multisc import burst_receiver, demodulator
from gnuradio.multisc.blocks.burst import BUFFER
from gnuradio.multisc.blocks.message_block import Faults, MessageBlock

from multisc.phy.config import PhyConfig


class right_streams(MessageBlock):
    """Counts received streams whose CRC is right."""

    def __init__(self, faults: Faults) -> None:
        super().__init__("right_streams", ["bits"], [], faults)
        self.count = 0

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Count one."""
        self.count += pmt.is_true(pmt.dict_ref(pmt.car(message), pmt.intern("crc_ok"), pmt.PMT_NIL))


def received(path: str, samples: int, expected: int) -> tuple[float, float]:
    """Run ``samples`` through the chain until ``expected`` streams are decoded; seconds, and those of processors."""
    graph, faults = gr.top_block(), Faults()
    source, head = blocks.file_source(gr.sizeof_gr_complex, path, True), blocks.head(gr.sizeof_gr_complex, samples)
    for block in (source, head):
        block.set_min_output_buffer(BUFFER)
    receiver, decoder = burst_receiver(PhyConfig(), faults=faults), demodulator(faults=faults)
    sink = right_streams(faults)
    graph.connect(source, head, receiver)
    graph.msg_connect(receiver, "symbols", decoder, "symbols")
    graph.msg_connect(decoder, "bits", sink, "bits")
    start, cpu = time.perf_counter(), time.process_time()
    graph.start()
    while sink.count < expected and faults.first is None and time.perf_counter() - start < 300:
        time.sleep(0.002)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    graph.stop()
    graph.wait()
    if faults.first is not None:
        raise faults.first
    if sink.count < expected:
        raise RuntimeError(f"{sink.count} of {expected} streams were received")
    return elapsed, cpu


def main(path: str, images: int, seconds: float, streams: int) -> None:
    """Measure once for a guess, then for about ``seconds``."""
    with open(path, "rb") as file:
        samples = file.seek(0, 2) // gr.sizeof_gr_complex
    # The last image of a run is complete only when what follows it has been seen.
    guess, _ = received(path, 2 * samples, (2 * images - 1) * streams)
    rounds = max(2, round(seconds / guess * 2))
    elapsed, cpu = received(path, rounds * samples, (rounds * images - 1) * streams)
    count = rounds * samples
    print(json.dumps([{"msps": count / elapsed / 1e6, "cpu_ns": cpu / count * 1e9}]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
