"""Captions as they come out of our text channel: the noise that BART is trained against."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from multisc.codecs.text import TextChannel, Words
from multisc.phy.transport import ModulatedStream, demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import Stream


class Speaker(Words, Protocol):
    """A language model that also turns sentences into its tokens, such as the captioner."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""


class NoisyCaptions:
    """From sentence to received sentence: text codec, this project's transport of a stream, white Gaussian noise.

    Args:
        speaker: the language model that both ends hold.
        mode: of the text channel, see ``TextChannel``.
        modulation, code: of the stream.
        dimensions: coefficients per token in mode ``embedding``; None for what suits the table.
        bits: bits per coefficient in mode ``embedding``.

    Raises:
        BadInputError: for a mode, or coefficients and bits, that do not exist.
    """

    def __init__(
        self,
        speaker: Speaker,
        mode: str = "embedding",
        modulation: str = "qpsk",
        code: str = "none",
        dimensions: int | None = None,
        bits: int = 1,
    ) -> None:
        self._speaker = speaker
        self._channel = TextChannel(speaker, mode, dimensions, bits)
        self._modulation, self._code = modulation, code
        self._sent: dict[str, ModulatedStream] = {}  # training sends each sentence again and again

    def stream(self, text: str) -> Stream:
        """Return a sentence as it is handed to the transmitter."""
        coefficients = self._channel.coefficients(self._speaker.encode(text))
        return Stream("text", coefficients, self._modulation, self._code, self._channel.book.quantiser)

    def receive(self, text: str, snr_db: float, rng: np.random.Generator) -> str:
        """Return a sentence as received at an Es/N0 of ``snr_db``, in dB."""
        if text not in self._sent:
            self._sent[text] = modulate(self.stream(text))
        sent = self._sent[text]
        variance = noise_variance(snr_db)
        noise = rng.standard_normal((2, sent.symbols.size)) * np.sqrt(variance / 2.0)
        noisy = (sent.symbols + noise[0] + 1j * noise[1]).astype(np.complex64)
        received = demodulate(sent.descriptor, noisy, np.full(noisy.size, variance, np.float32))
        return self._channel.text(received.data)
