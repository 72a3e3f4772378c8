"""Speed of GNU Radio's stock ofdm_tx and ofdm_rx, printed as JSON: a child process of ``multisc bench phy``."""

import json
import sys
import time

import numpy as np
import pmt
from gnuradio import blocks, digital, gr

PACKET = 400  # bytes; more would not fit GNU Radio's default buffers as one tagged packet of symbols
PACKETS = 64
KEY = "length"
CP = 16
FFT = 64


def tags(length: int, every: int) -> list:
    """Length tags at the beginning of each packet."""
    out = []
    for offset in range(0, length, every):
        tag = gr.tag_t()
        tag.offset, tag.key, tag.value = offset, pmt.intern(KEY), pmt.from_long(every)
        out.append(tag)
    return out


def transmitter() -> digital.ofdm_tx:
    """Stock transmitter, QPSK payload."""
    return digital.ofdm_tx(fft_len=FFT, cp_len=CP, packet_length_tag_key=KEY, bps_header=1, bps_payload=2)


def source(data: bytes, repeat: bool) -> blocks.vector_source_b:
    """Tagged packets."""
    return blocks.vector_source_b(list(data), repeat, 1, tags(len(data), PACKET))


def run(flowgraph: gr.top_block) -> tuple[float, float]:
    """Run to the end; seconds it took, and those of processors."""
    start, cpu = time.perf_counter(), time.process_time()
    flowgraph.run()
    return time.perf_counter() - start, time.process_time() - cpu


def row(samples: int, seconds: tuple[float, float]) -> dict:
    """10**6 samples per second, and processor time per sample in nanoseconds; 0 when none went through."""
    elapsed, cpu = seconds
    return {"msps": samples / elapsed / 1e6, "cpu_ns": cpu / samples * 1e9 if samples else 0.0}


def main(seconds: float) -> None:
    """Measure both."""
    data = np.random.default_rng(1).integers(0, 256, PACKET * PACKETS).astype(np.uint8).tobytes()

    once = gr.top_block()
    sink = blocks.vector_sink_c()
    once.connect(source(data, False), transmitter(), sink)
    run(once)
    samples = np.array(sink.data(), np.complex64)

    def sent(count: int) -> dict:
        flowgraph, sink = gr.top_block(), blocks.null_sink(gr.sizeof_gr_complex)
        flowgraph.connect(source(data, True), transmitter(), blocks.head(gr.sizeof_gr_complex, count), sink)
        seconds = run(flowgraph)
        return row(sink.nitems_read(0), seconds)

    def received(count: int) -> dict:
        flowgraph, head = gr.top_block(), blocks.head(gr.sizeof_gr_complex, count)
        receiver = digital.ofdm_rx(fft_len=FFT, cp_len=CP, packet_length_tag_key=KEY, bps_header=1, bps_payload=2)
        sink = blocks.null_sink(gr.sizeof_char)
        flowgraph.connect(blocks.vector_source_c(samples.tolist(), True), head, receiver, sink)
        seconds = run(flowgraph)
        return row(head.nitems_written(0) if sink.nitems_read(0) else 0, seconds)

    out = []
    for name, measure, guess in (("ofdm_tx", sent, 8e6), ("ofdm_rx", received, 2e6)):
        measure(int(0.1 * guess))
        out.append({"name": name, **measure(int(guess * seconds))})
    print(json.dumps(out))


if __name__ == "__main__":
    main(float(sys.argv[1]))
