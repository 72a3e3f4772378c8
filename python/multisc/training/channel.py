"""Captions as they come out of our text channel: the noise that BART is trained against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.text import Reading, TextChannel, Words
from multisc.phy.transport import demodulate, modulate
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
        self._sent: dict[str, NDArray[np.float32]] = {}  # training sends each sentence again and again

    def stream(self, text: str) -> Stream:
        """Return a sentence as it is handed to the transmitter."""
        return self._stream(self._channel.coefficients(self._speaker.encode(text)))

    def receive(self, text: str, snr_db: float, rng: np.random.Generator) -> str:
        """Return a sentence as received at an Es/N0 of ``snr_db``, in dB."""
        return self.receive_all([text], snr_db, rng)[0]

    def receive_all(self, texts: Sequence[str], snr_db: float, rng: np.random.Generator) -> list[str]:
        """Return sentences as received at one Es/N0 of ``snr_db``, in dB."""
        return [self._channel.text(received) for received in self._received(texts, snr_db, rng)]

    def read_all(self, texts: Sequence[str], snr_db: float, rng: np.random.Generator) -> list[Reading]:
        """Return what is received of sentences at one Es/N0 of ``snr_db``, in dB, with its alternatives."""
        return [self._channel.read(received) for received in self._received(texts, snr_db, rng)]

    def _received(
        self, texts: Sequence[str], snr_db: float, rng: np.random.Generator
    ) -> Sequence[NDArray[np.float32]]:
        """Return the coefficients that arrive of each sentence."""
        for text in texts:
            if text not in self._sent:
                self._sent[text] = self._channel.coefficients(self._speaker.encode(text))
        sent = [self._sent[text] for text in texts]
        if self._code != "none":
            return [self._through(coefficients, snr_db, rng) for coefficients in sent]
        # Without a code every symbol fares alone, so that all may go in one stream.
        ends = np.cumsum([len(coefficients) for coefficients in sent])
        return np.split(self._through(np.concatenate(sent), snr_db, rng), ends[:-1])

    def _stream(self, coefficients: NDArray[np.float32]) -> Stream:
        return Stream("text", coefficients, self._modulation, self._code, self._channel.book.quantiser)

    def _through(
        self, coefficients: NDArray[np.float32], snr_db: float, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        sent = modulate(self._stream(coefficients))
        variance = noise_variance(snr_db)
        noise = rng.standard_normal((2, sent.symbols.size)) * np.sqrt(variance / 2.0)
        noisy = (sent.symbols + noise[0] + 1j * noise[1]).astype(np.complex64)
        return demodulate(sent.descriptor, noisy, np.full(noisy.size, variance, np.float32)).data
