"""How fast LDPC decoders are: this project, pyldpc, gr-fec and Sionna on the same words, in one run.

pyldpc and gr-fec know no 5G codes: they decode a regular (3,6) Gallager code of about the same length and rate, which
this project decodes too. Layered decoders run 10 iterations, flooding ones 20, which is the same work for about the
same error rate. All rows have Eb/N0 in common.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.ldpc.gallager import GallagerBlock
from multisc.phy.montecarlo import FrameCode

EBN0_DB = 2.5
LAYERED_ITERATIONS, FLOODING_ITERATIONS = 10, 20
PEERS = Path(__file__).parent / "peers"
_WORDS = 2048
_TIMEOUT_S = 300


def measure(seconds: float = 2.0) -> dict[str, Any]:
    """Measure decoding speed.

    Args:
        seconds: decoding time per row, 0.05 or more.

    Returns:
        ``{"rows": [{"name", "info_mbit_s", "fer", ...}], "missing": {name: reason}, "ebn0_db", "cpus"}``.
        ``info_mbit_s`` is information bits decoded per second of wall-clock time in 10**6, error-free or not;
        ``info_mbit_cpu_s`` the same per second of processor time of all threads, which other load hardly changes.

    Raises:
        BadInputError: when the time is too short.
    """
    if not 0.05 <= seconds <= 600:
        raise BadInputError(f"{seconds:g} seconds per row: must be 0.05 to 600")
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    nr = _Words(NrLdpcBlock(512, 1024))
    longer = _Words(NrLdpcBlock(972, 1944))
    gallager = _Words(GallagerBlock(1008, 3, 6))

    for words, name in ((nr, "nr:1024:512"), (longer, "nr:1944:972")):
        for algorithm in ("normalised-minsum", "offset-minsum"):
            for early in (True, False):
                rows.append(_own(words, name, algorithm, "layered", LAYERED_ITERATIONS, early, seconds))
    rows.append(_own(nr, "nr:1024:512", "spa", "flooding", FLOODING_ITERATIONS, True, seconds))
    rows.append(_own(gallager, "pyldpc:1008:3:6", "spa", "flooding", FLOODING_ITERATIONS, True, seconds))

    rows.append(_pyldpc(gallager, seconds))
    for name, module, script, words, code in (
        ("gr-fec ldpc_decoder", "gnuradio", "grfec.py", gallager, "pyldpc:1008:3:6"),
        ("Sionna offset-minsum, CPU", "sionna", "sionna_ldpc.py", nr, "nr:1024:512"),
    ):
        if importlib.util.find_spec(module) is None:
            missing[name] = f"{module} is not installed"
            continue
        outcome = _child(script, words, seconds)
        if isinstance(outcome, str):
            missing[name] = outcome
        else:
            rows.append(_row(name, code, "flooding", FLOODING_ITERATIONS, words.code.k, **outcome))
    return {"rows": rows, "missing": missing, "ebn0_db": EBN0_DB, "cpus": len(os.sched_getaffinity(0))}


class _Words:
    """Random words of a code and what BPSK over Gaussian noise makes of them."""

    def __init__(self, code: FrameCode) -> None:
        rng = np.random.default_rng(1)
        self.code = code
        self.sigma = float(np.sqrt(1 / (2 * (code.k / code.n) * 10 ** (EBN0_DB / 10))))
        self.bits = rng.integers(0, 2, (_WORDS, code.k), np.uint8)
        self.received = 1.0 - 2.0 * code.encode(self.bits) + rng.normal(size=(_WORDS, code.n)) * self.sigma
        self.llr: NDArray[np.float32] = (2 * self.received / self.sigma**2).astype(np.float32)


def _row(
    name: str,
    code: str,
    schedule: str,
    iterations: int,
    k: int,
    seconds: float,
    cpu_seconds: float,
    frames: int,
    frame_errors: int,
) -> dict[str, Any]:
    return {
        "name": name,
        "info_mbit_s": round(frames * k / seconds / 1e6, 4),
        "info_mbit_cpu_s": round(frames * k / cpu_seconds / 1e6, 4),
        "fer": frame_errors / frames,
        "code": code,
        "schedule": schedule,
        "iterations": iterations,
        "frames": frames,
    }


def _time(
    decode: Callable[[slice], NDArray[np.uint8]], bits: NDArray[np.uint8], batch: int, seconds: float
) -> dict[str, Any]:
    """Decode batch after batch until the time is spent; the first pass is for warming up."""
    decode(slice(0, batch))
    spent, cpu, frames, errors = 0.0, 0.0, 0, 0
    while spent < seconds:
        part = slice(frames % len(bits), frames % len(bits) + batch)
        began, cpu_began = time.perf_counter(), time.process_time()
        decided = decode(part)
        spent, cpu = spent + time.perf_counter() - began, cpu + time.process_time() - cpu_began
        errors += int((decided != bits[part]).any(axis=1).sum())
        frames += len(decided)
    return {"seconds": spent, "cpu_seconds": cpu, "frames": frames, "frame_errors": errors}


def _own(
    words: _Words, code: str, algorithm: str, schedule: str, iterations: int, early: bool, seconds: float
) -> dict[str, Any]:
    def decode(part: slice) -> NDArray[np.uint8]:
        return words.code.decode(words.llr[part], algorithm, schedule, iterations, early).bits

    name = f"multisc {algorithm}, {code}, {'early stop' if early else 'all iterations'}"
    return _row(name, code, schedule, iterations, words.code.k, **_time(decode, words.bits, 512, seconds))


def _pyldpc(words: _Words, seconds: float) -> dict[str, Any]:
    import pyldpc

    assert isinstance(words.code, GallagerBlock)
    checks, k = words.code.checks.astype(int), words.code.k
    snr_db = -20 * np.log10(words.sigma)

    def decode(part: slice) -> NDArray[np.uint8]:
        # One word at a time: in a batch pyldpc goes on after a word has converged, and spoils it. The code is
        # systematic, so its slow get_message is not needed.
        words_decided = [
            pyldpc.decode(checks, word, snr_db, maxiter=FLOODING_ITERATIONS)[:k] for word in words.received[part]
        ]
        return np.array(words_decided, np.uint8)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every word it cannot decode
        outcome = _time(decode, words.bits, 4, seconds)
    name = f"pyldpc {importlib.metadata.version('pyldpc')}"
    return _row(name, "pyldpc:1008:3:6", "flooding", FLOODING_ITERATIONS, k, **outcome)


def _child(script: str, words: _Words, seconds: float) -> dict[str, Any] | str:
    """Run a measuring script; return what it measured, or why it did not."""
    with tempfile.TemporaryDirectory() as folder:
        stored, out = Path(folder, "words.npz"), Path(folder, "out.json")
        extra = {"checks": words.code.checks} if isinstance(words.code, GallagerBlock) else {}
        np.savez(stored, llr=words.llr, bits=words.bits, iterations=FLOODING_ITERATIONS, sigma=words.sigma, **extra)
        command = [sys.executable, str(PEERS / script), str(stored), str(out), str(seconds)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no answer within {_TIMEOUT_S} s"
        if done.returncode:
            return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        return json.loads(out.read_text())
