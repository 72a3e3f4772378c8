"""The resource grid, its modulation and the numerology's limits."""

import numpy as np
import pytest

from multisc.errors import BadInputError
from multisc.phy.config import PhyConfig
from multisc.phy.ofdm import grid_of, to_grid, to_samples
from multisc.phy.preamble import SHORT_SIGNS, preamble_of
from multisc.phy.sequences import gold, qpsk, rotations

CONFIGS = [
    PhyConfig(),
    PhyConfig(fft_size=512, cyclic_prefix=64, occupied=384),
    PhyConfig(fft_size=128, cyclic_prefix=16, occupied=96),
]


def random_data(config: PhyConfig, symbols: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return qpsk(int(rng.integers(1, 1000)), symbols * config.data_carriers).reshape(symbols, -1)


@pytest.mark.parametrize("config", CONFIGS)
def test_grid_to_samples_and_back(config: PhyConfig) -> None:
    grid = grid_of(config).fill(random_data(config, 9))
    samples = to_samples(grid, config)
    assert samples.size == 9 * config.symbol_samples
    back = to_grid(samples, config.cyclic_prefix, 9, config.symbol_samples, (0.0, 0.0, 0.0), config)
    np.testing.assert_allclose(back, grid, atol=2e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_payload_power_is_occupied_over_fft_size(config: PhyConfig) -> None:
    samples = to_samples(grid_of(config).fill(random_data(config, 64)), config)
    assert np.mean(np.abs(samples) ** 2) == pytest.approx(config.occupied / config.fft_size, rel=0.02)


def test_carrier_offset_and_constant_are_taken_out() -> None:
    config = PhyConfig()
    grid = grid_of(config).fill(random_data(config, 5))
    samples = to_samples(grid, config)
    turned = samples * np.exp(2j * np.pi * 1.3 / 256 * (np.arange(samples.size) - 70)) + (2 - 1j)
    back = to_grid(turned.astype(np.complex64), 40, 5, 296, (1.3, 70.0, 2 - 1j), config)
    np.testing.assert_allclose(back, grid, atol=5e-5)


def test_pilots_visit_every_third_subcarrier_and_leave_constant_room() -> None:
    config = PhyConfig()
    grid = grid_of(config)
    columns = np.sort(grid.pilot_columns.ravel())
    np.testing.assert_array_equal(np.diff(columns), 3)
    for row in range(4):
        both = np.sort(np.concatenate([grid.pilot_columns[row], grid.data_columns[row]]))
        np.testing.assert_array_equal(both, np.arange(192))
    assert 0 not in grid.carriers
    assert grid.carriers.min() == -96
    assert grid.carriers.max() == 96


def test_windows_outside_the_samples_are_refused() -> None:
    with pytest.raises(IndexError):
        to_grid(np.zeros(300, np.complex64), 100, 1, 296, (0.0, 0.0, 0.0), PhyConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"fft_size": 200},
        {"cyclic_prefix": 8},
        {"cyclic_prefix": 65},
        {"occupied": 190},
        {"occupied": 240},
        {"orthogonal": "sdm"},
        {"max_payload_symbols": 0},
        {"max_payload_symbols": 513},
        {"amplitude": 0.0},
        {"amplitude": float("nan")},
        {"gap": -1},
    ],
)
def test_numerology_outside_its_limits_is_refused(wrong: dict) -> None:
    with pytest.raises(BadInputError, match=next(iter(wrong))):
        PhyConfig(**wrong)


def test_gold_sequence_follows_its_recurrence() -> None:
    # An independent, bit-by-bit reading of TS 38.211 clause 5.2.1.
    c_init = 0x2A5A5
    x1, x2 = [1] + [0] * 30, [(c_init >> i) & 1 for i in range(31)]
    for n in range(1700):
        x1.append((x1[n + 3] + x1[n]) % 2)
        x2.append((x2[n + 3] + x2[n + 2] + x2[n + 1] + x2[n]) % 2)
    expected = [(x1[n + 1600] + x2[n + 1600]) % 2 for n in range(100)]
    np.testing.assert_array_equal(gold(c_init, 100), expected)


def test_scrambler_is_exact() -> None:
    turns = rotations(5, 1000)
    assert set(turns.tolist()) == {1, 1j, -1, -1j}
    np.testing.assert_array_equal(turns * np.conj(turns), 1)


@pytest.mark.parametrize("config", CONFIGS)
def test_preamble_layout(config: PhyConfig) -> None:
    preamble = preamble_of(config)
    n, lag = config.fft_size, config.fft_size // 4
    assert sum(SHORT_SIGNS) == 0
    assert preamble.length == 9 * lag + 2 * config.cyclic_prefix + 2 * n
    blocks = preamble.samples[: 9 * lag].reshape(9, lag)
    for i, sign in enumerate(SHORT_SIGNS):
        np.testing.assert_allclose(blocks[i + 1], sign * blocks[i], atol=1e-6)
    long = preamble.samples[preamble.long_start :]
    np.testing.assert_array_equal(long[:n], long[n:])
    assert np.mean(np.abs(preamble.samples) ** 2) == pytest.approx(2 * config.occupied / n, rel=0.05)
