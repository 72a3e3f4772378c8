"""Plain decoders in double precision, written for clarity: what the compiled ones are held against."""

import numpy as np

from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.ldpc.kernels import KNOWN_ZERO


def check_node(t: np.ndarray, algorithm: str) -> np.ndarray:
    """Answers of one check to its inputs t (words, degree)."""
    if algorithm == "spa":
        tanh = np.tanh(t / 2)
        others = np.stack([np.delete(tanh, k, 1).prod(axis=1) for k in range(t.shape[1])], axis=1)
        return 2 * np.arctanh(np.clip(others, -1 + 1e-15, 1 - 1e-15))
    sign = np.where(t < 0, -1.0, 1.0)
    magnitude = np.abs(t)
    ordered = np.sort(magnitude, axis=1)
    smallest = np.arange(t.shape[1]) == magnitude.argmin(axis=1)[:, None]
    least = np.where(smallest, ordered[:, 1:2], ordered[:, :1])
    if algorithm == "offset-minsum":
        least = np.maximum(least - 0.5, 0)
    elif algorithm == "normalised-minsum":
        least = 0.75 * least
    return sign.prod(axis=1, keepdims=True) * sign * least


def decode(checks: np.ndarray, channel: np.ndarray, algorithm: str, schedule: str, iterations: int) -> np.ndarray:
    """Posterior LLRs (words, bits)."""
    rows = [np.flatnonzero(row) for row in checks]
    messages = [np.zeros((channel.shape[0], row.size)) for row in rows]
    posterior = channel.copy()
    for _ in range(iterations):
        before = posterior.copy()
        if schedule == "flooding":
            posterior = channel.copy()
        for i, row in enumerate(rows):
            t = (before if schedule == "flooding" else posterior)[:, row] - messages[i]
            messages[i] = check_node(t, algorithm)
            if schedule == "flooding":
                posterior[:, row] += messages[i]
            else:
                posterior[:, row] = t + messages[i]
    return posterior


def channel_of(block: NrLdpcBlock, llr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parity checks of the shortened code a block decodes, and its channel LLRs in double precision."""
    decoder = block._decoder
    channel = np.zeros((llr.shape[0], decoder.graph.bits))
    sent = decoder._source >= 0
    channel[:, sent] = llr[:, decoder._source[sent]]
    channel[:, decoder._source == KNOWN_ZERO] = 1000.0
    return decoder.graph.dense(), channel


def receive(code: np.ndarray, rate: float, ebn0_db: float, rng: np.random.Generator) -> np.ndarray:
    """LLRs of code bits sent by antipodal signals over Gaussian noise, float32."""
    variance = 1 / (2 * rate * 10 ** (ebn0_db / 10))
    received = 1.0 - 2.0 * code + rng.normal(size=code.shape) * np.sqrt(variance)
    return (2 * received / variance).astype(np.float32)
