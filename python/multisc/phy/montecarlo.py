"""Link-level Monte Carlo: bit and frame error rates of a code and a modulation on the AWGN channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from multisc.errors import BadInputError
from multisc.phy import modulation
from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.ldpc.decoder import DecodeResult
from multisc.phy.ldpc.gallager import GallagerBlock
from multisc.phy.units import ebn0_to_esn0_db, noise_variance

# Coded bits simulated at a time; small enough that a point at a high error rate is quick.
BATCH_BITS = 1 << 18
UNCODED_FRAME_BITS = 960


class FrameCode(Protocol):
    """A block code whose code words are frames."""

    @property
    def k(self) -> int:
        """Information bits of a frame."""

    @property
    def n(self) -> int:
        """Coded bits of a frame."""

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode uint8 (B, k) into uint8 (B, n)."""

    def decode(
        self, llr: NDArray[np.float32], algorithm: str, schedule: str, iterations: int, early_stop: bool = True
    ) -> DecodeResult:
        """Decode float32 (B, n)."""


class UncodedFrame:
    """Frames of 960 bits without a code: a whole number of symbols of every modulation."""

    k = n = UNCODED_FRAME_BITS

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bits as they are."""
        return bits

    def decode(
        self, llr: NDArray[np.float32], algorithm: str, schedule: str, iterations: int, early_stop: bool = True
    ) -> DecodeResult:
        """Return the hard decisions."""
        blocks = llr.shape[0]
        return DecodeResult((llr < 0).astype(np.uint8), np.ones(blocks, np.bool_), np.zeros(blocks, np.int32))


def frame_code(spec: str, bits_per_symbol: int) -> FrameCode:
    """Return the code of a specification: ``nr:N:K``, ``pyldpc:N:DV:DC`` or ``none``.

    ``nr:N:K`` is one code block of TS 38.212 with K information bits and no CRC, rate-matched to N with redundancy
    version 0 and interleaved over the bits of a symbol (5.4.2).

    Raises:
        BadInputError: for another specification, or numbers out of range.
    """
    kind, *rest = spec.split(":")
    if not all(part.isascii() and part.isdigit() and len(part) <= 7 for part in rest):
        rest = []
    numbers = [int(part) for part in rest]
    if kind == "nr" and len(numbers) == 2:
        return NrLdpcBlock(numbers[1], numbers[0], bits_per_symbol=bits_per_symbol)
    if kind == "pyldpc" and len(numbers) == 3:
        if numbers[0] % bits_per_symbol:
            raise BadInputError(f"code {spec!r}: N must be a multiple of the {bits_per_symbol} bits of a symbol")
        return GallagerBlock(*numbers)
    if spec == "none":
        return UncodedFrame()
    raise BadInputError(f"code {spec!r}: must be nr:N:K such as nr:1024:512, pyldpc:N:DV:DC or none")


@dataclass(frozen=True)
class ErrorRates:
    """Counts of a Monte Carlo run at one Eb/N0 (dB).

    Args:
        information_bits: information bits of one frame.
    """

    ebn0_db: float
    information_bits: int
    frames: int = 0
    frame_errors: int = 0
    bit_errors: int = 0

    @property
    def fer(self) -> float:
        """Frame error rate."""
        return self.frame_errors / self.frames

    @property
    def ber(self) -> float:
        """Bit error rate of the information bits."""
        return self.bit_errors / (self.frames * self.information_bits)

    @property
    def ci95(self) -> tuple[float, float]:
        """Exact (Clopper-Pearson) 95 % confidence interval of the frame error rate."""
        errors, good = self.frame_errors, self.frames - self.frame_errors
        low = float(beta.ppf(0.025, errors, good + 1)) if errors else 0.0
        high = float(beta.ppf(0.975, errors + 1, good)) if good else 1.0
        return low, high


@dataclass(frozen=True)
class Link:
    """A code, its decoder and a modulation.

    Args:
        code: see :func:`frame_code`.
        modulation: "bpsk", "qpsk", "16qam", "64qam" or "256qam".
        decoder: "spa", "minsum", "offset-minsum" or "normalised-minsum".
        schedule: "layered" or "flooding".
        iterations: at most this many, 1 or more.
        demapper: "exact" or "maxlog".
    """

    code: str
    modulation: str = "bpsk"
    decoder: str = "spa"
    schedule: str = "flooding"
    iterations: int = 20
    demapper: str = "exact"

    def simulate(
        self,
        ebn0_db: float,
        min_frame_errors: int = 100,
        max_frames: int = 1_000_000,
        seed: int = 0,
        progress: Callable[[ErrorRates], None] = lambda rates: None,
    ) -> ErrorRates:
        """Send random frames until enough of them came out wrong.

        Frames are simulated in batches of a fixed size, each with its own generator derived from the seed, so the
        counts do not depend on the machine.

        Args:
            ebn0_db: energy per information bit over N0 in dB; noise variance is N0 per complex symbol.
            min_frame_errors: stop after the batch in which this many frame errors are reached, 1 or more.
            max_frames: stop after this many frames whatever the errors, 1 or more.
            seed: of bits and noise.
            progress: called after each batch.

        Raises:
            BadInputError: when a name or a number is out of range.
        """
        if min_frame_errors < 1 or max_frames < 1:
            raise BadInputError("the numbers of frame errors and of frames must be 1 or more")
        per_symbol = modulation.bits_per_symbol(self.modulation)
        code = frame_code(self.code, per_symbol)
        variance = noise_variance(ebn0_to_esn0_db(ebn0_db, per_symbol, code.k / code.n))
        batch = max(1, BATCH_BITS // code.n)
        rates = ErrorRates(ebn0_db, code.k)
        for index in range(-(-max_frames // batch)):
            count = min(batch, max_frames - rates.frames)
            sent, decided = self._batch(code, variance, count, np.random.default_rng([seed, index]))
            wrong = (sent != decided).sum(axis=1)
            rates = ErrorRates(
                ebn0_db,
                code.k,
                rates.frames + count,
                rates.frame_errors + int(np.count_nonzero(wrong)),
                rates.bit_errors + int(wrong.sum()),
            )
            progress(rates)
            if rates.frame_errors >= min_frame_errors:
                break
        return rates

    def _batch(
        self, code: FrameCode, variance: float, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        sent = rng.integers(0, 2, (count, code.k), np.uint8)
        symbols = modulation.map_bits(code.encode(sent).ravel(), self.modulation)
        noise = rng.standard_normal(2 * symbols.size, np.float32).view(np.complex64)
        symbols += np.float32(np.sqrt(variance / 2)) * noise
        llr = modulation.demap(symbols, variance, self.modulation, self.demapper).reshape(count, code.n)
        return sent, code.decode(llr, self.decoder, self.schedule, self.iterations).bits
