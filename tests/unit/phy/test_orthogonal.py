"""Orthogonal channels: the mapping loses nothing and keeps the streams apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.errors import BadInputError
from multisc.phy.config import ORTHOGONAL_MODES, PhyConfig
from multisc.phy.orthogonal import Multiplexer, fits, payload_symbols, spread_order, walsh
from tests.support.phy import make_streams, noisy, one_burst, receive, silence


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(ORTHOGONAL_MODES),
    counts=st.lists(st.integers(0, 3000), min_size=1, max_size=16),
    carriers=st.sampled_from([88, 176, 352]),
    seed=st.integers(0, 1000),
)
def test_map_and_unmap_are_inverse(mode: str, counts: list[int], carriers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    streams = [(rng.standard_normal(n) + 1j * rng.standard_normal(n)).astype(np.complex64) for n in counts]
    symbols = payload_symbols(mode, counts, carriers)
    multiplexer = Multiplexer(mode, tuple(counts), symbols, carriers)
    payload = multiplexer.map(streams)
    assert payload.shape == (symbols, carriers)
    back = multiplexer.unmap(payload, np.full(payload.shape, 0.5, np.float32))
    for sent, (values, variance) in zip(streams, back, strict=True):
        np.testing.assert_allclose(values, sent, atol=1e-5)
        np.testing.assert_allclose(variance, 0.5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(mode=st.sampled_from(ORTHOGONAL_MODES), counts=st.lists(st.integers(0, 5000), min_size=1, max_size=16))
def test_payload_is_as_short_as_it_can_be(mode: str, counts: list[int]) -> None:
    symbols = payload_symbols(mode, counts, 176)
    assert fits(mode, counts, symbols, 176)
    assert symbols == 0 or not fits(mode, counts, symbols - 1, 176)


def test_streams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInputError, match="do not fit"):
        Multiplexer("fdm", (177,), 1, 176)


@pytest.mark.parametrize("units", [1, 2, 7, 16, 128, 176])
def test_spread_order_is_a_permutation(units: int) -> None:
    assert sorted(spread_order(units)) == list(range(units))


def test_walsh_matrix_is_orthonormal_and_symmetric() -> None:
    np.testing.assert_allclose(walsh() @ walsh(), np.eye(16), atol=1e-6)


@pytest.mark.parametrize("mode", ORTHOGONAL_MODES)
def test_leakage_between_streams_is_below_40_db_with_synchronisation_on(mode: str) -> None:
    """Two receptions that differ in one stream's symbols only: what the other streams change by is leakage."""
    config = PhyConfig(orthogonal=mode, max_payload_symbols=64)
    rng = np.random.default_rng(3)
    sizes = [2000, 2000, 2000, 2000, 2000]
    streams = make_streams(rng, sizes)
    other = [*streams[:2], make_streams(rng, [1, 1, 2000])[2], *streams[3:]]
    received = []
    for chosen in (streams, other):
        burst = one_burst(config, chosen)
        delayed = np.concatenate([silence(500), burst, silence(50)])
        echo = np.convolve(delayed, [1, 0, 0, 0.3j, 0, 0.1])[: delayed.size]
        samples = noisy(np.random.default_rng(4), echo, 35.0, cfo=0.7)
        (got,), _ = receive(samples, config)
        received.append(got)
    first, second = received
    for i in (0, 1, 3, 4):
        difference = first.segments[i].symbols - second.segments[i].symbols
        leakage_db = 10 * np.log10(np.mean(np.abs(difference) ** 2))
        assert leakage_db < -40.0, f"{mode}: stream {i} leaks {leakage_db:.1f} dB"
    changed = first.segments[2].symbols - second.segments[2].symbols
    assert np.mean(np.abs(changed) ** 2) > 1.0


@pytest.mark.parametrize("mode", ORTHOGONAL_MODES)
def test_each_stream_has_the_snr_its_power_gives(mode: str) -> None:
    config = PhyConfig(orthogonal=mode)
    rng = np.random.default_rng(8)
    powers = [0.0, -6.0, -12.0, 3.0]
    streams = make_streams(rng, [3000] * 4, power_db=powers)
    (got,), _ = receive(noisy(rng, np.concatenate([silence(300), one_burst(config, streams)]), 15.0), config)
    for power, segment, stream in zip(powers, got.segments, streams, strict=True):
        error = float(np.mean(np.abs(segment.symbols - stream.symbols) ** 2))
        stated = float(np.mean(segment.noise_variance))
        assert -10 * np.log10(error) == pytest.approx(15.0 + power, abs=0.5)
        assert -10 * np.log10(stated) == pytest.approx(15.0 + power, abs=0.5)
