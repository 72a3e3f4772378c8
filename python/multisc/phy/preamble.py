"""The preamble: a short training sequence to find a burst by, a long one to measure the channel with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from multisc.phy.config import PhyConfig
from multisc.phy.ofdm import grid_of
from multisc.phy.sequences import qpsk

# The seeds with the lowest peak among the first three thousand, at the default numerology.
SHORT_SEED = 39
LONG_SEED = 720
# Products of the signs of neighbouring short blocks. They add up to zero, so that a constant or a tone, whose blocks
# all agree, cancels; their aperiodic autocorrelation has no side lobe above 2 of 8.
SHORT_SIGNS = (1, -1, -1, -1, 1, 1, -1, 1)
SHORT_SPACING = 4  # the short sequence uses every fourth subcarrier: its period is a quarter of the FFT
LONG_SYMBOLS = 2
TRAINING_AMPLITUDE = np.sqrt(2.0)  # training is sent 3 dB above the payload; its peaks stay below the payload's


class Preamble:
    """The preamble of a numerology. Cached by ``preamble_of``.

    Layout: 9 short blocks of fft_size/4 samples, a cyclic prefix of twice the payload's, 2 long symbols of fft_size.

    Attributes:
        lag: samples of one short block.
        short_samples: samples of the short training.
        long_start: offset of the first long symbol, behind its prefix.
        length: samples of the preamble.
        samples: complex64 (length,), the preamble at amplitude 1.
        long: complex64 (occupied,), the values on the subcarriers of either long symbol.
    """

    def __init__(self, config: PhyConfig) -> None:
        n = config.fft_size
        carriers = grid_of(config).carriers
        self.lag = n // SHORT_SPACING
        self.short_samples = (len(SHORT_SIGNS) + 1) * self.lag
        self.long_start = self.short_samples + 2 * config.cyclic_prefix
        self.length = self.long_start + LONG_SYMBOLS * n

        used = carriers[carriers % SHORT_SPACING == 0]
        spectrum = np.zeros(n, np.complex64)
        # As much power in every fourth subcarrier as the long training has in all of them.
        level = TRAINING_AMPLITUDE * np.sqrt(config.occupied / len(used))
        spectrum[used] = level * qpsk(SHORT_SEED, len(used))
        block = np.fft.ifft(spectrum, norm="ortho")[: self.lag]
        signs = np.concatenate([[1], np.cumprod(SHORT_SIGNS)])
        short = (signs[:, None] * block).ravel()

        self.long = (TRAINING_AMPLITUDE * qpsk(LONG_SEED, config.occupied)).astype(np.complex64)
        spectrum = np.zeros(n, np.complex64)
        spectrum[carriers] = self.long
        symbol = np.fft.ifft(spectrum, norm="ortho")
        prefix = symbol[n - 2 * config.cyclic_prefix :]
        self.samples = np.concatenate([short, prefix] + [symbol] * LONG_SYMBOLS).astype(np.complex64)


@lru_cache(maxsize=8)
def _preamble(fft_size: int, cyclic_prefix: int, occupied: int) -> Preamble:
    return Preamble(PhyConfig(fft_size=fft_size, cyclic_prefix=cyclic_prefix, occupied=occupied))


def preamble_of(config: PhyConfig) -> Preamble:
    """The preamble of a configuration, made once per numerology."""
    return _preamble(config.fft_size, config.cyclic_prefix, config.occupied)
