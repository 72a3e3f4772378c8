"""Captions as they come out of our text channel: the noise that BART is trained against."""

from __future__ import annotations

import numpy as np
from transformers import Qwen2Tokenizer

from multisc.codecs.text import TextCodec


class NoisyCaptions:
    """The text channel from sentence to received sentence: codec, uncoded QPSK, white Gaussian noise, soft decisions.

    Args:
        codec: over the language model's embedding table.
        tokenizer: of the language model.
    """

    def __init__(self, codec: TextCodec, tokenizer: Qwen2Tokenizer) -> None:
        self._codec = codec
        self._tokenizer = tokenizer

    def receive_tokens(self, ids: list[int], snr_db: float, rng: np.random.Generator) -> list[int]:
        """Return the tokens received at an Es/N0 of ``snr_db``, in dB, for the tokens sent."""
        noise_variance = 10.0 ** (-snr_db / 10.0)
        bits = self._codec.quantiser.quantise(self._codec.coefficients(ids))
        # One real dimension of unit-power QPSK: amplitude 1/sqrt(2), noise variance N0/2, LLR 2 sqrt(2) y / N0.
        sent = (1.0 - 2.0 * bits) * np.sqrt(0.5)
        received = sent + rng.standard_normal(len(sent)) * np.sqrt(noise_variance / 2.0)
        ratios = received * (2.0 * np.sqrt(2.0) / noise_variance)
        return self._codec.tokens(self._codec.quantiser.expect(ratios))

    def receive(self, text: str, snr_db: float, rng: np.random.Generator) -> str:
        """Return a sentence as received at an Es/N0 of ``snr_db``, in dB."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.decode(self.receive_tokens(ids, snr_db, rng), skip_special_tokens=True).strip()
