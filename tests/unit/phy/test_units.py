"""The conversions against numbers worked out by hand (docs/reference/definitions.md) and against measured noise."""

import math

import numpy as np
import pytest

from multisc.errors import BadInputError
from multisc.phy import modulation, units
from multisc.phy.burst import BurstTransmitter, burst_uses
from multisc.phy.config import PhyConfig
from multisc.phy.transport import modulate
from multisc.streams import Stream


def test_eb_and_es_differ_by_information_bits_per_symbol():
    # 16-QAM, rate 1/2: two information bits per symbol, 3.0103 dB.
    assert units.ebn0_to_esn0_db(4.0, 4, 0.5) == pytest.approx(7.0103, abs=1e-4)
    assert units.ebn0_to_esn0_db(4.0, 1) == pytest.approx(4.0)
    assert units.esn0_to_ebn0_db(7.0103, 4, 0.5) == pytest.approx(4.0, abs=1e-4)


def test_overhead_of_pilots_and_prefix():
    # 176 data and 16 pilot subcarriers, 40 samples of prefix on 256: 192/176 * 296/256 = 1.26136, 1.0084 dB.
    factor = units.overhead(176, 16, 256, 40)
    assert factor == pytest.approx(1.261364, abs=1e-6)
    assert units.ebn0_to_esn0_db(4.0, 2, 1.0, factor) == pytest.approx(4.0 + 3.0103 - 1.0084, abs=1e-4)


def test_the_transmission_of_the_definitions_page():
    """docs/reference/definitions.md, "One transmission by hand"."""
    config = PhyConfig(amplitude=0.25)
    stream = modulate(Stream("bpg", np.zeros(8 * 8192, np.uint8), "16qam", "nr:1/2"))
    assert stream.symbols.size == (8 * 8192 + 24 + 8 * 24) * 2 // 4 == 32_876
    assert stream.symbols.size / (3 * 512 * 768) == pytest.approx(0.02787, abs=1e-5)
    assert config.data_carriers == 176
    bursts = BurstTransmitter(config).transmit(1, [stream])
    assert [burst.size for burst in bursts] == [31_952, 31_952]
    assert sum(burst_uses(config, burst) for burst in bursts) == 41_568
    assert units.noise_variance(10.0) == pytest.approx(0.1)
    assert units.time_noise_variance(10.0, 0.25) == pytest.approx(0.00625)
    assert units.sample_snr_db(10.0, 192, 256) == pytest.approx(8.75, abs=1e-3)
    assert units.esn0_to_ebn0_db(10.0, 4, 0.5) == pytest.approx(6.99, abs=1e-3)
    overhead = units.overhead(176, 16, 256, 40)
    assert units.esn0_to_ebn0_db(10.0, 4, 0.5, overhead) == pytest.approx(8.00, abs=3e-3)


def test_the_symbol_of_the_definitions_page():
    """docs/reference/definitions.md, "One symbol by hand"."""
    received = np.array([0.4 + 0.1j], np.complex64)
    np.testing.assert_allclose(modulation.demap(received, 0.1, "16qam"), [5.111, 1.266, 2.947, 6.961], atol=6e-4)
    assert modulation.demap(received, 0.1, "16qam", "maxlog")[[0, 2]] == pytest.approx([5.06, 2.94], abs=5e-3)
    sent = modulation.map_bits(np.array([1, 0, 1, 1], np.uint8), "16qam")
    assert sent[0] == pytest.approx((-3 + 3j) / np.sqrt(10))


def test_db_and_linear_are_inverse():
    assert units.linear(3.0) == pytest.approx(1.99526, abs=1e-5)
    assert units.db(units.linear(-17.5)) == pytest.approx(-17.5)
    assert units.db(0.0) == -math.inf
    assert units.linear(-math.inf) == 0.0


def test_sample_snr_counts_noise_outside_the_signal():
    assert units.sample_snr_db(10.0, 192, 256) == pytest.approx(10.0 - 1.2494, abs=1e-4)


@pytest.mark.parametrize(("fft_size", "occupied", "amplitude"), [(64, 48, 1.0), (256, 192, 0.3), (1024, 600, 2.0)])
def test_time_noise_gives_the_asked_snr_on_the_subcarriers(fft_size, occupied, amplitude):
    rng = np.random.default_rng(7)
    esn0_db = 6.0
    count = 400_000 // fft_size
    grid = np.zeros((count, fft_size), complex)
    used = np.r_[1 : occupied // 2 + 1, fft_size - occupied // 2 : fft_size]
    grid[:, used] = np.exp(1j * np.pi / 2 * rng.integers(0, 4, (count, occupied)))
    samples = amplitude * np.fft.ifft(grid, norm="ortho")
    variance = units.time_noise_variance(esn0_db, amplitude)
    noise = np.sqrt(variance / 2) * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
    received = np.fft.fft(samples + noise, norm="ortho")[:, used] / amplitude
    measured = np.mean(np.abs(received - grid[:, used]) ** 2)
    deviation = units.noise_variance(esn0_db) / math.sqrt(count * occupied)  # of a mean of exponentials
    assert abs(measured - units.noise_variance(esn0_db)) < 4 * deviation
    snr = units.db(np.mean(np.abs(samples) ** 2) / variance)
    assert snr == pytest.approx(units.sample_snr_db(esn0_db, occupied, fft_size), abs=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: units.ebn0_to_esn0_db(1.0, 0),
        lambda: units.ebn0_to_esn0_db(1.0, 2, 0.0),
        lambda: units.ebn0_to_esn0_db(1.0, 2, 1.5),
        lambda: units.ebn0_to_esn0_db(1.0, 2, 0.5, 0.9),
        lambda: units.time_noise_variance(3.0, 0.0),
        lambda: units.time_noise_variance(3.0, math.nan),
        lambda: units.noise_variance(math.nan),
        lambda: units.noise_variance(-5000.0),
        lambda: units.sample_snr_db(3.0, 300, 256),
        lambda: units.overhead(0, 1, 64, 16),
        lambda: units.db(-1.0),
    ],
)
def test_values_outside_the_range_are_refused(call):
    with pytest.raises(BadInputError):
        call()
