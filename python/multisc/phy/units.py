"""Signal-to-noise conversions, all of them. docs/reference/definitions.md works each one out by hand.

SNR in this project is Es/N0 per channel use: the mean power of the data symbols over the variance N0 of the complex
noise in the same subcarrier (N0/2 per real dimension).
"""

from __future__ import annotations

import math

from multisc.errors import BadInputError


def db(ratio: float) -> float:
    """Return a power ratio in dB; minus infinity for 0.

    Raises:
        BadInputError: for a negative ratio.
    """
    if not ratio >= 0:
        raise BadInputError(f"power ratio {ratio}: must be at least 0")
    return 10.0 * math.log10(ratio) if ratio > 0 else -math.inf


def linear(decibel: float) -> float:
    """Return the power ratio of a level in dB.

    Raises:
        BadInputError: when it is not a number, or so large that the ratio overflows.
    """
    if math.isnan(decibel) or decibel > 3000:
        raise BadInputError(f"level {decibel} dB: must be a number, at most 3000")
    return 10.0 ** (decibel / 10.0)


def ebn0_to_esn0_db(ebn0_db: float, bits_per_symbol: int, code_rate: float = 1.0, overhead: float = 1.0) -> float:
    """Return Es/N0 of a channel use from Eb/N0 of an information bit, both in dB: Es = Eb * bits * rate / overhead.

    Args:
        ebn0_db: energy per information bit over N0, dB.
        bits_per_symbol: bits of one modulation symbol, at least 1.
        code_rate: information bits per coded bit, in (0, 1].
        overhead: energy sent per energy on data symbols, at least 1 (see ``overhead``). The literature on codes and
            modulation leaves it at 1, and so does everything in this project that does not say otherwise.

    Raises:
        BadInputError: for an argument outside its range.
    """
    return ebn0_db + _bits_per_energy_db(bits_per_symbol, code_rate, overhead)


def esn0_to_ebn0_db(esn0_db: float, bits_per_symbol: int, code_rate: float = 1.0, overhead: float = 1.0) -> float:
    """Return Eb/N0 of an information bit from Es/N0 of a channel use, both in dB; see ``ebn0_to_esn0_db``."""
    return esn0_db - _bits_per_energy_db(bits_per_symbol, code_rate, overhead)


def overhead(data_carriers: int, pilots: int, fft_size: int, cyclic_prefix: int) -> float:
    """Return the energy sent per energy on data symbols of an OFDM symbol with pilots of the data symbols' power.

    Args:
        data_carriers: data subcarriers of the OFDM symbol, at least 1.
        pilots: pilot subcarriers of the OFDM symbol.
        fft_size: samples of the OFDM symbol without its prefix.
        cyclic_prefix: samples of the prefix.

    Raises:
        BadInputError: for a negative number, or no data subcarrier.
    """
    if data_carriers < 1 or fft_size < 1 or pilots < 0 or cyclic_prefix < 0:
        raise BadInputError("overhead: needs data subcarriers and an FFT size of at least 1, nothing negative")
    return (data_carriers + pilots) / data_carriers * (fft_size + cyclic_prefix) / fft_size


def noise_variance(esn0_db: float, symbol_power: float = 1.0) -> float:
    """Return the variance N0 of the complex noise that gives an Es/N0 (dB) on symbols of a mean power."""
    return symbol_power * linear(-esn0_db)


def time_noise_variance(esn0_db: float, amplitude: float = 1.0) -> float:
    """Return the variance of complex white noise per time sample that gives an Es/N0 on the data subcarriers.

    Transmitter and receiver use unitary transforms (1/sqrt(N) both ways). They leave white noise as it is, so at unit
    mean power per data subcarrier the variance per sample is N0, whatever the FFT size, the number of occupied
    subcarriers and the prefix. What changes it is the amplitude by which the transmitter multiplies its samples.

    Args:
        esn0_db: Es/N0 on a data subcarrier, dB.
        amplitude: factor on the transmitted samples (``PhyConfig.amplitude``) and of any gain before the noise.

    Raises:
        BadInputError: for an amplitude that is not a positive number.
    """
    if not (math.isfinite(amplitude) and amplitude > 0):
        raise BadInputError(f"amplitude {amplitude}: must be a positive number")
    return noise_variance(esn0_db, amplitude * amplitude)


def sample_snr_db(esn0_db: float, occupied: int, fft_size: int) -> float:
    """Return mean signal power over noise power of the time samples, as a wideband meter would show it, in dB.

    The signal fills ``occupied`` of ``fft_size`` subcarriers, the noise all of them.

    Raises:
        BadInputError: unless 1 <= occupied <= fft_size.
    """
    if not 1 <= occupied <= fft_size:
        raise BadInputError(f"{occupied} occupied subcarriers: must be 1 to {fft_size}")
    return esn0_db + db(occupied / fft_size)


def _bits_per_energy_db(bits_per_symbol: int, code_rate: float, overhead: float) -> float:
    if bits_per_symbol < 1:
        raise BadInputError(f"{bits_per_symbol} bits per symbol: must be at least 1")
    if not 0 < code_rate <= 1:
        raise BadInputError(f"code rate {code_rate}: must be above 0 and at most 1")
    if not 1 <= overhead < math.inf:
        raise BadInputError(f"overhead {overhead}: must be at least 1")
    return db(bits_per_symbol * code_rate / overhead)
