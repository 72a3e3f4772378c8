"""What the tests of the physical layer share: streams with known bits, plain channels, a receiver's run."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from multisc.phy import modulation
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver, ReceivedBurst
from multisc.phy.transport import ModulatedStream, demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import Encoded, ReceivedImage, Stream


def make_streams(
    rng: np.random.Generator, sizes: list[int], name: str = "qpsk", power_db: list[float] | None = None
) -> list[ModulatedStream]:
    """Uncoded streams of so many symbols of random bits."""
    width = modulation.bits_per_symbol(name)
    powers = power_db or [0.0] * len(sizes)
    return [
        modulate(Stream(f"s{i}", rng.integers(0, 2, n * width).astype(np.uint8), name), power)
        for i, (n, power) in enumerate(zip(sizes, powers, strict=True))
    ]


def noisy(
    rng: np.random.Generator, samples: NDArray, snr_db: float, cfo: float = 0.0, fft_size: int = 256
) -> NDArray[np.complex64]:
    """A carrier offset in subcarriers and noise of the variance that gives Es/N0 on the subcarriers."""
    turned = samples * np.exp(2j * np.pi * (cfo / fft_size * np.arange(samples.size) + rng.random()))
    noise = rng.standard_normal(samples.size) + 1j * rng.standard_normal(samples.size)
    return (turned + np.sqrt(0.5 * 10.0 ** (-snr_db / 10.0)) * noise).astype(np.complex64)


def arrive(encoded: Encoded, snr_db: float, lost: Collection[str] = ()) -> ReceivedImage:
    """What comes out of white noise on the symbols themselves; the streams named in ``lost`` never arrive."""
    rng = np.random.default_rng(5)
    n0 = noise_variance(snr_db)
    streams = []
    for stream in encoded.streams:
        sent = modulate(stream)
        noise = np.sqrt(n0 / 2) * (rng.standard_normal((2, sent.symbols.size)).T @ [1, 1j])
        variance = np.full(sent.symbols.size, np.inf if stream.name in lost else n0, np.float32)
        streams.append(demodulate(sent.descriptor, (sent.symbols + noise).astype(np.complex64), variance))
    return ReceivedImage(streams, encoded.side_info)


def silence(count: int) -> NDArray[np.complex64]:
    return np.zeros(count, np.complex64)


def receive(samples: NDArray, config: PhyConfig) -> tuple[list[ReceivedBurst], BurstReceiver]:
    receiver = BurstReceiver(config)
    return receiver.push(np.asarray(samples, np.complex64)) + receiver.flush(), receiver


def one_burst(
    config: PhyConfig, streams: list[ModulatedStream], image_id: int = 1, system: str = "multi-sc"
) -> NDArray[np.complex64]:
    (burst,) = BurstTransmitter(config).transmit(image_id, streams, b"side", system)
    return burst


def error_ratio(burst: ReceivedBurst, streams: list[ModulatedStream]) -> float:
    """Mean squared error of all symbols of a burst over the noise variance the receiver states."""
    errors = []
    for segment, stream in zip(burst.segments, streams, strict=True):
        sent = stream.symbols[segment.offset :: segment.stride]
        errors.append(np.abs(segment.symbols - sent) ** 2 / segment.noise_variance)
    return float(np.mean(np.concatenate(errors)))


def mean_error(burst: ReceivedBurst, streams: list[ModulatedStream]) -> float:
    """Mean squared error of all symbols of a burst."""
    pairs = zip(burst.segments, streams, strict=True)
    return float(
        np.mean(np.concatenate([np.abs(s.symbols - t.symbols[s.offset :: s.stride]) ** 2 for s, t in pairs]))
    )


def theory(name: str, snr_db: float) -> float:
    """Exact bit error rate of Gray-labelled square QAM and BPSK over AWGN, by adding up the decision regions."""
    if name == "bpsk":
        return 0.5 * erfc(np.sqrt(10 ** (snr_db / 10)))
    bits = modulation.bits_per_symbol(name) // 2
    count = 1 << bits
    levels = np.arange(1 - count, count, 2.0)
    scale = np.sqrt(2 * np.mean(levels**2))
    sigma = np.sqrt(0.5 * 10 ** (-snr_db / 10)) * scale
    edges = np.concatenate([[-np.inf], levels[:-1] + 1, [np.inf]])
    tail = 0.5 * erfc((edges[None, :] - levels[:, None]) / sigma / np.sqrt(2))
    region = tail[:, :-1] - tail[:, 1:]
    gray = np.arange(count) ^ (np.arange(count) >> 1)
    distance = np.array([[bin(a ^ b).count("1") for b in gray] for a in gray])
    return float((region * distance).sum() / count / bits)


AT_1E3 = {"bpsk": 6.79, "qpsk": 9.80, "16qam": 16.55, "64qam": 22.55, "256qam": 28.42}
