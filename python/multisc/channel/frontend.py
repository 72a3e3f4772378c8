"""Deterministic impairments: tuning error, level, delay, mixer imbalance, DC offset, clipping, converters."""

from __future__ import annotations

import numpy as np
from numba import njit

from multisc.channel.impairment import Impairment, Samples, as_samples, in_range

_TABLE = 1024  # samples between exactly computed phases of a carrier offset


class CarrierOffset(Impairment):
    """Difference of the carrier frequencies of transmitter and receiver, and of their phases.

    Args:
        offset_hz: frequency of the result for a constant input, Hz; at most half the sample rate either way.
        sample_rate: Hz.
        phase: of the first sample, radians.

    Raises:
        BadInputError: for an argument outside its range.
    """

    def __init__(self, offset_hz: float, sample_rate: float, phase: float = 0.0) -> None:
        in_range("sample rate", sample_rate, 1.0, 1e12, "Hz")
        in_range("carrier offset", offset_hz, -sample_rate / 2, sample_rate / 2, "Hz")
        in_range("phase", phase, -1e6, 1e6, "rad")
        self._cycles = offset_hz / sample_rate
        self._phase = phase
        self._fine = np.exp(2j * np.pi * self._cycles * np.arange(_TABLE)).astype(np.complex64)
        self._position = 0

    def process(self, samples: Samples) -> Samples:
        """Turn each sample by the phase at its place in the stream, which stays exact however long it is."""
        samples = as_samples(samples)
        first = self._position // _TABLE
        last = (self._position + samples.size) // _TABLE
        cycles = np.remainder(np.arange(first, last + 1) * (_TABLE * self._cycles), 1.0)
        coarse = np.exp(1j * (2.0 * np.pi * cycles + self._phase)).astype(np.complex64)
        out = np.empty_like(samples)
        _turn(samples, coarse, self._fine, self._position % _TABLE, out)
        self._position += samples.size
        return out


class Gain(Impairment):
    """A change of level.

    Args:
        gain_db: -200 to 200 dB; negative attenuates.

    Raises:
        BadInputError: for a gain outside its range.
    """

    def __init__(self, gain_db: float) -> None:
        self._factor = np.float32(10.0 ** (in_range("gain", gain_db, -200.0, 200.0, "dB") / 20.0))

    def process(self, samples: Samples) -> Samples:
        """Scale."""
        return as_samples(samples) * self._factor


class Delay(Impairment):
    """A delay by whole samples; the stream starts with zeros.

    Args:
        samples: 0 to 10 million.

    Raises:
        BadInputError: for a delay outside its range.
    """

    def __init__(self, samples: int) -> None:
        self._held = np.zeros(int(in_range("delay", samples, 0, 10_000_000, "samples")), np.complex64)

    def process(self, samples: Samples) -> Samples:
        """Return the samples that are due and hold back as many as the delay is long."""
        line = np.concatenate([self._held, as_samples(samples)])
        due = line.size - self._held.size
        self._held = line[due:].copy()
        return line[:due]

    def finish(self) -> Samples:
        """Return the samples held back."""
        held, self._held = self._held, self._held[:0]
        return held


class IqImbalance(Impairment):
    """Unequal gain and imperfect quadrature of the two branches of a mixer: y = a x + b conj(x), |a|^2 + |b|^2 = 1.

    Args:
        gain_db: level of the imaginary branch over the real one, -20 to 20 dB.
        phase_deg: error of the right angle between them, -45 to 45 degrees.

    Raises:
        BadInputError: for an argument outside its range.
    """

    def __init__(self, gain_db: float, phase_deg: float) -> None:
        ratio = 10.0 ** (in_range("IQ gain imbalance", gain_db, -20.0, 20.0, "dB") / 20.0)
        skew = ratio * np.exp(1j * np.deg2rad(in_range("IQ phase imbalance", phase_deg, -45.0, 45.0, "degrees")))
        a, b = (1.0 + skew) / 2.0, (1.0 - np.conj(skew)) / 2.0
        norm = np.sqrt(abs(a) ** 2 + abs(b) ** 2)
        self._direct, self._image = np.complex64(a / norm), np.complex64(b / norm)

    @property
    def image_rejection_db(self) -> float:
        """Power of the signal over that of its mirror image, dB; infinite without imbalance."""
        image = abs(self._image)
        return float(20.0 * np.log10(abs(self._direct) / image)) if image > 0 else float("inf")

    def process(self, samples: Samples) -> Samples:
        """Mix the signal with its mirror image."""
        samples = as_samples(samples)
        return samples * self._direct + np.conj(samples) * self._image


class DcOffset(Impairment):
    """A constant added to the samples: local oscillator leakage.

    Args:
        offset: complex, of magnitude at most 1e6.

    Raises:
        BadInputError: for an offset outside its range.
    """

    def __init__(self, offset: complex) -> None:
        in_range("magnitude of the DC offset", abs(offset), 0.0, 1e6)
        self._offset = np.complex64(offset)

    def process(self, samples: Samples) -> Samples:
        """Add the constant."""
        return as_samples(samples) + self._offset


class Clipping(Impairment):
    """A soft-limiting power amplifier: magnitudes above a level are cut to it, phases are kept.

    Args:
        level: largest magnitude that passes; positive.

    Raises:
        BadInputError: for a level outside its range.
    """

    def __init__(self, level: float) -> None:
        self._level = np.float32(in_range("clipping level", level, 1e-9, 1e9))

    def process(self, samples: Samples) -> Samples:
        """Cut large magnitudes."""
        samples = as_samples(samples)
        magnitude = np.maximum(np.abs(samples), self._level)
        return samples * (self._level / magnitude)


class Quantisation(Impairment):
    """An analog-digital converter: each rail is rounded to a step and saturates at full scale.

    Args:
        bits: 2 to 16 per rail.
        full_scale: magnitude per rail at which the converter saturates; positive. The steps are
            full_scale / (2^(bits-1) - 1) apart, and 0 is one of them.

    Raises:
        BadInputError: for an argument outside its range.
    """

    def __init__(self, bits: int = 8, full_scale: float = 4.0) -> None:
        in_range("converter bits", bits, 2, 16)
        self._largest = np.float32(2 ** (int(bits) - 1) - 1)
        self._step = np.float32(in_range("converter full scale", full_scale, 1e-9, 1e9) / float(self._largest))

    def process(self, samples: Samples) -> Samples:
        """Round to steps; what is not a number becomes 0, as no converter delivers it."""
        rails = as_samples(samples).view(np.float32) / self._step
        rails = np.clip(np.rint(np.nan_to_num(rails, nan=0.0)), -self._largest, self._largest)
        return (rails * self._step).view(np.complex64)


@njit(cache=True, nogil=True)
def _turn(samples, coarse, fine, start, out):  # type: ignore[no-untyped-def]
    """Multiply by coarse[i // table] * fine[i % table], i counted from ``start``."""
    table = fine.size
    done = 0
    block = 0
    at = start
    while done < samples.size:
        count = min(table - at, samples.size - done)
        turn = coarse[block]
        for i in range(count):
            out[done + i] = samples[done + i] * (turn * fine[at + i])
        done += count
        block += 1
        at = 0
