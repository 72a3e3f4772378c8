"""The transmitter: segmentation, power, accounting, and what it refuses."""

import numpy as np
import pytest

from multisc.errors import BadInputError
from multisc.phy.burst import BurstTransmitter, burst_uses, channel_uses_total
from multisc.phy.config import ORTHOGONAL_MODES, PhyConfig
from multisc.phy.preamble import preamble_of
from multisc.phy.transport import ModulatedStream, StreamDescriptor
from tests.support.phy import make_streams, receive

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("mode", ORTHOGONAL_MODES)
def test_long_images_are_spread_over_bursts_that_carry_every_symbol_once(mode: str) -> None:
    config = PhyConfig(orthogonal=mode, max_payload_symbols=20)
    streams = make_streams(RNG, [9001, 17, 0, 4000])
    bursts = BurstTransmitter(config).transmit(5, streams, b"x", "sys")
    got, _ = receive(np.concatenate(bursts), config)
    assert [b.header.sequence for b in got] == list(range(len(bursts)))
    assert {b.header.total for b in got} == {len(bursts)}
    for i, stream in enumerate(streams):
        seen = np.full(stream.symbols.size, np.nan, np.complex64)
        for b in got:
            segment = b.segments[i]
            assert np.isnan(seen[segment.offset :: segment.stride]).all()
            seen[segment.offset :: segment.stride] = segment.symbols
        np.testing.assert_allclose(seen, stream.symbols, atol=0.02)


def test_amplitude_scales_and_gap_follows() -> None:
    streams = make_streams(RNG, [500])
    (plain,) = BurstTransmitter(PhyConfig()).transmit(1, streams)
    (other,) = BurstTransmitter(PhyConfig(amplitude=0.25, gap=100)).transmit(1, streams)
    np.testing.assert_array_equal(other[:-100], plain * np.float32(0.25))
    assert not other[-100:].any()


def test_peaks_of_the_preamble_stay_below_the_payload() -> None:
    (burst,) = BurstTransmitter(PhyConfig()).transmit(1, make_streams(RNG, [20000]))
    length = preamble_of(PhyConfig()).length
    assert np.abs(burst[:length]).max() < np.abs(burst[length:]).max()


def test_channel_uses_count_everything() -> None:
    config = PhyConfig(gap=50)
    (burst,) = BurstTransmitter(config).transmit(1, make_streams(RNG, [1760]))
    symbols = (burst.size - 50 - preamble_of(config).length) / 296
    assert symbols == int(symbols)
    training = 192 * (576 + 512) // 256
    assert burst_uses(config, burst) == training + 192 * int(symbols)
    assert channel_uses_total(config, 8, 10) == training + 192 * 18


def test_an_image_without_symbols_is_one_burst_without_payload() -> None:
    (burst,) = BurstTransmitter(PhyConfig()).transmit(1, make_streams(RNG, [0]))
    (got,), _ = receive(burst, PhyConfig())
    assert got.header.payload_symbols == 0
    assert got.segments[0].symbols.size == 0


def test_wrong_use_is_refused() -> None:
    transmitter = BurstTransmitter(PhyConfig())
    streams = make_streams(RNG, [10, 10])
    with pytest.raises(BadInputError, match="positions"):
        transmitter.transmit(1, streams, indices=[0, 0])
    with pytest.raises(BadInputError, match="positions"):
        transmitter.transmit(1, streams, indices=[0])
    with pytest.raises(BadInputError, match="index"):
        transmitter.transmit(1, streams, indices=[0, 2])
    with pytest.raises(BadInputError, match="side information"):
        transmitter.transmit(1, streams, bytes(65))
    with pytest.raises(BadInputError, match="power"):
        transmitter.transmit(1, [ModulatedStream(streams[0].descriptor, streams[0].symbols, 30.0)])
    with pytest.raises(BadInputError, match="descriptor"):
        transmitter.transmit(1, [ModulatedStream(streams[0].descriptor, streams[0].symbols[:5])])
    tiny = BurstTransmitter(PhyConfig(max_payload_symbols=1, fft_size=128, cyclic_prefix=16, occupied=24))
    big = ModulatedStream(
        StreamDescriptor("a", "qpsk", "none", 4_000_000, 2_000_000), np.ones(2_000_000, np.complex64)
    )
    with pytest.raises(BadInputError, match="longer bursts"):
        tiny.transmit(1, [big])
    slots = BurstTransmitter(PhyConfig(orthogonal="tdm", max_payload_symbols=2))
    with pytest.raises(BadInputError, match="longer bursts"):
        slots.transmit(1, make_streams(RNG, [10, 10, 10]))  # one symbol each is one too many
