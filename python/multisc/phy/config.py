"""The numerology of the waveform, shared by transmitter and receiver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multisc.errors import BadInputError

ORTHOGONAL_MODES = ("fdm", "tdm", "cdm")
MAX_PAYLOAD_SYMBOLS = 512  # beyond it, 20 ppm of clock offset would move the burst by more than the guard
PILOT_SPACING = 12
PILOT_SHIFT = 3


@dataclass(frozen=True)
class PhyConfig:
    """Numerology and limits of a burst; the defaults suit radios at 2 Msample/s (7.8 kHz subcarriers).

    Args:
        fft_size: subcarriers, a power of two, 128 to 2048.
        cyclic_prefix: samples, fft_size/16 to fft_size/4; the channel's longest delay.
        occupied: subcarriers in use around the empty DC, a multiple of 24, at most 7/8 of fft_size.
        orthogonal: how the streams share the payload: "fdm", "tdm" or "cdm". A receiver learns it from the header.
        max_payload_symbols: payload OFDM symbols of one burst, 1 to 512. The transmitter cuts longer images
            into several bursts; the receiver refuses headers that claim more.
        amplitude: factor on the transmitted samples; at 1 their mean power is occupied / fft_size.
        gap: zero samples after each burst.

    Raises:
        BadInputError: for a value outside its range.
    """

    fft_size: int = 256
    cyclic_prefix: int = 40
    occupied: int = 192
    orthogonal: str = "fdm"
    max_payload_symbols: int = 128
    amplitude: float = 1.0
    gap: int = 0

    def __post_init__(self) -> None:
        n = self.fft_size
        if not (128 <= n <= 2048 and n & (n - 1) == 0):
            raise BadInputError(f"fft_size {n}: must be a power of two from 128 to 2048")
        if not n // 16 <= self.cyclic_prefix <= n // 4:
            raise BadInputError(f"cyclic_prefix {self.cyclic_prefix}: must be {n // 16} to {n // 4} samples")
        if not (0 < self.occupied <= n * 7 // 8 and self.occupied % (2 * PILOT_SPACING) == 0):
            raise BadInputError(
                f"occupied {self.occupied}: must be a multiple of {2 * PILOT_SPACING}, at most {n * 7 // 8} of {n}"
            )
        if self.orthogonal not in ORTHOGONAL_MODES:
            raise BadInputError(f"orthogonal {self.orthogonal!r}: must be one of {', '.join(ORTHOGONAL_MODES)}")
        if not 1 <= self.max_payload_symbols <= MAX_PAYLOAD_SYMBOLS:
            raise BadInputError(f"max_payload_symbols {self.max_payload_symbols}: must be 1 to {MAX_PAYLOAD_SYMBOLS}")
        if not (np.isfinite(self.amplitude) and self.amplitude > 0):
            raise BadInputError(f"amplitude {self.amplitude}: must be a positive number")
        if self.gap < 0:
            raise BadInputError(f"gap {self.gap}: must not be negative")

    @property
    def symbol_samples(self) -> int:
        """Samples of one OFDM symbol with its cyclic prefix."""
        return self.fft_size + self.cyclic_prefix

    @property
    def pilots(self) -> int:
        """Pilot subcarriers in each OFDM symbol."""
        return self.occupied // PILOT_SPACING

    @property
    def data_carriers(self) -> int:
        """Data subcarriers in each OFDM symbol."""
        return self.occupied - self.pilots
