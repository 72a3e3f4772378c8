"""Decode with gr-fec's ldpc_decoder; run as a script by the interpreter that has GNU Radio.

    python grfec.py WORDS.npz OUT.json SECONDS

The input holds ``checks`` (parity-check matrix), ``bits`` (words, k), ``iterations`` and ``sigma``. gr-fec chooses by
itself which bits of a word are the message, so it encodes them too; only the decoding flowgraph is timed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

import numpy as np
from gnuradio import blocks, fec, gr


def write_alist(checks: np.ndarray, path: str) -> None:
    """Write a parity-check matrix in MacKay's format, which gr-fec reads."""
    m, n = checks.shape
    columns = [np.flatnonzero(checks[:, j]) + 1 for j in range(n)]
    rows = [np.flatnonzero(checks[i]) + 1 for i in range(m)]
    widest = max(map(len, columns)), max(map(len, rows))
    with open(path, "w") as file:
        print(n, m, file=file)
        print(*widest, file=file)
        print(*map(len, columns), file=file)
        print(*map(len, rows), file=file)
        for lists, width in ((columns, widest[0]), (rows, widest[1])):
            for entries in lists:
                print(*entries, *[0] * (width - len(entries)), file=file)


def encode(alist: str, bits: np.ndarray) -> np.ndarray:
    """Return the code bits of message bits, flat."""
    top = gr.top_block()
    source, sink = blocks.vector_source_b(bits.ravel().tolist()), blocks.vector_sink_b()
    top.connect(source, fec.encoder(fec.ldpc_encoder.make(alist), gr.sizeof_char, gr.sizeof_char), sink)
    top.run()
    return np.array(sink.data(), np.uint8)


def decode(alist: str, soft: np.ndarray, sigma: float, iterations: int) -> tuple[np.ndarray, float, float]:
    """Run one flowgraph over soft values; return the decided bits and the wall and processor seconds it ran."""
    top = gr.top_block()
    # gr-fec 3.10.5 needs half the true sigma to decode, and takes a positive value as bit 1.
    decoder = fec.ldpc_decoder.make(alist, sigma / 2, iterations)
    source, sink = blocks.vector_source_f(soft.tolist()), blocks.vector_sink_b()
    top.connect(source, fec.decoder(decoder, gr.sizeof_float, gr.sizeof_char), sink)
    began, cpu_began = time.perf_counter(), time.process_time()
    top.run()
    took, cpu_took = time.perf_counter() - began, time.process_time() - cpu_began
    return np.array(sink.data(), np.uint8), took, cpu_took


def main() -> None:
    """Measure for about the wanted time."""
    words, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with np.load(words) as data:
        checks, bits = data["checks"], data["bits"]
        iterations, sigma = int(data["iterations"]), float(data["sigma"])
    k = bits.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        alist = os.path.join(folder, "code.alist")
        write_alist(checks, alist)
        rng = np.random.default_rng(1)
        spent, cpu, frames, errors = 0.0, 0.0, 0, 0
        while spent < seconds and frames + 8 <= bits.shape[0]:
            part = slice(frames, frames + 8)
            coded = encode(alist, bits[part])
            received = 2.0 * coded - 1.0 + rng.normal(size=coded.size) * sigma
            decided, took, cpu_took = decode(alist, received, sigma, iterations)
            decided = decided.reshape(8, -1)
            if decided.shape[1] != k:
                sys.exit(f"gr-fec returns {decided.shape[1]} bits a word, not {k}")
            spent, cpu, frames = spent + took, cpu + cpu_took, frames + 8
            errors += int((decided != bits[part]).any(axis=1).sum())
    with open(out, "w") as file:
        json.dump({"seconds": spent, "cpu_seconds": cpu, "frames": frames, "frame_errors": errors}, file)


if __name__ == "__main__":
    main()
