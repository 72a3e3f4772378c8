"""Decode stored LLRs with Sionna's 5G LDPC decoder on the CPU; run as a script by an interpreter that has Sionna.

    python sionna_ldpc.py WORDS.npz OUT.json SECONDS

The input holds ``llr`` (words, n), ``bits`` (words, k) and ``iterations``. Written for Sionna 2 (PyTorch) and tried
with 2.2.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder

BATCH = 256


def main() -> None:
    """Measure for about the wanted time."""
    words, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with np.load(words) as data:
        llr, bits, iterations = data["llr"], data["bits"], int(data["iterations"])
    encoder = LDPC5GEncoder(bits.shape[1], llr.shape[1])
    decoder = LDPC5GDecoder(
        encoder, cn_update="offset-minsum", num_iter=iterations, hard_out=True, return_infobits=True
    )
    # Sionna's logits are log(p(1)/p(0)).
    logits = torch.from_numpy(-llr)
    spent, cpu, frames, errors = 0.0, 0.0, 0, 0
    with torch.no_grad():
        decoder(logits[:BATCH])
        while spent < seconds:
            part = slice(frames % len(llr), frames % len(llr) + BATCH)
            began, cpu_began = time.perf_counter(), time.process_time()
            decided = decoder(logits[part]).numpy()
            spent, cpu = spent + time.perf_counter() - began, cpu + time.process_time() - cpu_began
            frames += len(decided)
            errors += int((decided.astype(np.uint8) != bits[part]).any(axis=1).sum())
    with open(out, "w") as file:
        json.dump({"seconds": spent, "cpu_seconds": cpu, "frames": frames, "frame_errors": errors}, file)


if __name__ == "__main__":
    main()
