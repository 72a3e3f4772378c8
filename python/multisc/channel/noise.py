"""Random impairments that add to or turn the signal: thermal noise and oscillator phase noise."""

from __future__ import annotations

import numpy as np

from multisc.channel.impairment import Impairment, Samples, as_samples, in_range

Seed = int | np.random.SeedSequence


def generator(seed: Seed) -> np.random.Generator:
    """Return the generator that impairments draw from; SFC64 is the fastest of NumPy's for normals."""
    return np.random.Generator(np.random.SFC64(seed))


class Awgn(Impairment):
    """Additive white Gaussian noise, circularly symmetric.

    Args:
        noise_variance: N0, variance of the complex noise per sample (half of it per real dimension); at least 0.
            ``multisc.phy.units.time_noise_variance`` gives it for an Es/N0.
        seed: of the noise.

    Raises:
        BadInputError: for a variance outside its range.
    """

    def __init__(self, noise_variance: float, seed: Seed = 0) -> None:
        self.noise_variance = in_range("noise variance", noise_variance, 0.0, 1e30)
        self._deviation = np.float32(np.sqrt(noise_variance / 2.0))
        self._random = generator(seed)

    def process(self, samples: Samples) -> Samples:
        """Add noise."""
        samples = as_samples(samples)
        noise = self._random.standard_normal(2 * samples.size, np.float32)
        noise *= self._deviation
        noise += samples.view(np.float32)
        return noise.view(np.complex64)


class PhaseNoise(Impairment):
    """Phase noise of a free-running oscillator: a random walk of the phase, so a Lorentzian line.

    The phase moves between samples by a normal step of variance 2 pi linewidth / sample rate (rad^2).

    Args:
        linewidth_hz: full width of the line at half power, Hz; at least 0. The level at an offset f well above it is
            linewidth / (pi f^2) per Hz: 1 Hz gives -85 dBc/Hz at 10 kHz.
        sample_rate: Hz.
        seed: of the walk.

    Raises:
        BadInputError: for an argument outside its range.
    """

    def __init__(self, linewidth_hz: float, sample_rate: float, seed: Seed = 0) -> None:
        in_range("sample rate", sample_rate, 1.0, 1e12, "Hz")
        in_range("phase noise linewidth", linewidth_hz, 0.0, sample_rate, "Hz")
        self._deviation = float(np.sqrt(2.0 * np.pi * linewidth_hz / sample_rate))
        self._random = generator(seed)
        self._phase = 0.0

    def process(self, samples: Samples) -> Samples:
        """Turn each sample by the phase of the walk."""
        samples = as_samples(samples)
        walk = np.empty(samples.size + 1)
        walk[0] = self._phase
        walk[1:] = self._random.standard_normal(samples.size)
        walk[1:] *= self._deviation
        np.cumsum(walk, out=walk)
        self._phase = float(walk[-1])
        turn = np.empty(samples.size, np.complex64)
        angle = np.remainder(walk[1:], 2.0 * np.pi).astype(np.float32)
        turn.real = np.cos(angle)
        turn.imag = np.sin(angle)
        turn *= samples
        return turn
