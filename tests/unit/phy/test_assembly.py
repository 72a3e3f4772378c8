"""Images from bursts: lost ones, several transmitters, contradictions, bounded memory."""

from dataclasses import replace

import numpy as np
import pytest

from multisc.errors import BadInputError
from multisc.phy.assembly import Assembler
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import ReceivedBurst
from multisc.phy.transport import modulate
from multisc.streams import Stream
from tests.support.phy import make_streams, noisy, receive, silence

CONFIG = PhyConfig(max_payload_symbols=12)


@pytest.fixture(scope="module")
def bursts() -> list[ReceivedBurst]:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, 6000).astype(np.uint8)
    features = rng.standard_normal(1500).astype(np.float32)
    streams = [modulate(Stream("coded", bits, "qpsk", "nr:1/3")), modulate(Stream("soft", features, "analog"))]
    samples = np.concatenate(BurstTransmitter(CONFIG).transmit(77, streams, b"where", "multi-sc"))
    got, _ = receive(noisy(rng, samples, 15.0, 0.2), CONFIG)
    assert len(got) >= 5
    return got


def test_a_whole_image_is_handed_on_with_its_last_burst(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler()
    done = [assembler.add(b) for b in bursts]
    assert [len(d) for d in done] == [0] * (len(bursts) - 1) + [1]
    (image,) = done[-1]
    assert image.complete
    assert (image.image_id, image.system, image.side_info) == (77, "multi-sc", b"where")
    assert image.bursts_received == image.bursts_total == len(bursts)
    assert image.snr_db == pytest.approx(15.0, abs=0.5)
    assert image.cfo == pytest.approx(0.2, abs=0.01)
    assert assembler.flush() == []


def test_order_does_not_matter_and_duplicates_are_counted(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler()
    shuffled = [bursts[2], bursts[0], bursts[2], *bursts[3:], bursts[1]]
    (image,) = [i for b in shuffled for i in assembler.add(b)]
    assert image.complete
    assert assembler.duplicates == 1
    assert image.receive().streams[0].crc_ok


def test_lost_bursts_leave_the_rest_usable(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler()
    assert [i for b in bursts if b is not bursts[1] for i in assembler.add(b)] == []
    (image,) = assembler.flush()
    assert not image.complete
    assert image.bursts_received == image.bursts_total - 1
    coded, soft = image.receive().streams
    assert coded.crc_ok  # rate 1/3 bears the loss of one burst in five
    assert soft.delivered
    missing = np.isinf(image.streams[1][2])
    assert missing.mean() == pytest.approx(1 / len(bursts), abs=0.05)


def test_transmitters_of_their_own_are_put_together_by_image_id() -> None:
    """Each stream from a transmitter with its own carrier offset and gain, their bursts interleaved in time."""
    rng = np.random.default_rng(2)
    streams = make_streams(rng, [3000, 5000, 4000])
    own = [
        BurstTransmitter(CONFIG).transmit(9, [s], b"", "multi-sc", indices=[i], image_streams=3)
        for i, s in enumerate(streams)
    ]
    parts = []
    for turn in range(max(map(len, own))):
        for i, (cfo, gain) in enumerate([(0.9, 1.0), (-1.3, 0.5), (0.1, 2.0)]):
            if turn < len(own[i]):
                burst = own[i][turn]
                turned = burst * gain * np.exp(2j * np.pi * cfo / 256 * np.arange(burst.size))
                parts += [silence(int(rng.integers(0, 900))), turned]
    got, _ = receive(noisy(rng, np.concatenate(parts), 25.0), CONFIG)
    assembler = Assembler()
    (image,) = [i for b in got for i in assembler.add(b)]
    assert image.complete
    assert image.indices == [0, 1, 2]
    assert image.bursts_total == sum(map(len, own))
    for (_, symbols, variance), sent, gain in zip(image.streams, streams, (1.0, 0.5, 2.0), strict=True):
        assert np.mean(np.abs(symbols - sent.symbols) ** 2) == pytest.approx(10**-2.5 / gain**2, rel=0.25)
        assert np.mean(variance) == pytest.approx(10**-2.5 / gain**2, rel=0.25)


def test_a_missing_transmitter_leaves_the_image_incomplete() -> None:
    rng = np.random.default_rng(3)
    samples = BurstTransmitter(CONFIG).transmit(9, make_streams(rng, [300]), indices=[1], image_streams=2)
    got, _ = receive(np.concatenate(samples), CONFIG)
    assembler = Assembler()
    assert assembler.add(got[0]) == []
    (image,) = assembler.flush()
    assert not image.complete
    assert image.indices == [1]
    assert image.image_streams == 2


def test_contradictions_are_dropped_and_counted(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler()
    assembler.add(bursts[0])
    header = bursts[1].header
    entry = header.streams[0]
    for lie in (
        replace(header, system="other"),
        replace(header, side_info=b"elsewhere"),
        replace(header, image_streams=5),
        replace(header, total=99),
        replace(
            header, streams=(replace(entry, descriptor=replace(entry.descriptor, length=1)), *header.streams[1:])
        ),
    ):
        assert assembler.add(replace(bursts[1], header=lie)) == []
    assert assembler.contradictions == 5
    (image,) = [i for b in bursts[1:] for i in assembler.add(b)]
    assert image.complete


def test_a_stream_whose_description_contradicts_itself_is_not_delivered(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler()
    lies = []
    for burst in bursts:
        entry = burst.header.streams[0]
        lie = replace(entry, descriptor=replace(entry.descriptor, length=entry.descriptor.length * 2))
        header = replace(burst.header, streams=(lie, *burst.header.streams[1:]))
        lies.append(
            replace(burst, header=header, segments=(replace(burst.segments[0], entry=lie), burst.segments[1]))
        )
    (image,) = [i for b in lies for i in assembler.add(b)]
    coded, soft = image.receive().streams
    assert not coded.delivered
    assert coded.data.size == 0
    assert soft.delivered


def test_memory_is_bounded(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler(max_images=3)
    out = []
    for image_id in range(10):
        out += assembler.add(replace(bursts[0], header=replace(bursts[0].header, image_id=image_id)))
    assert [i.image_id for i in out] == list(range(7))
    small = Assembler(max_symbols=1000)
    assert small.add(bursts[0]) == []
    assert small.contradictions == 1
    assert small.flush() == []


def test_an_image_is_given_up_after_a_long_silence(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler(patience=1_000_000)
    assembler.add(bursts[0])
    later = replace(bursts[0], header=replace(bursts[0].header, image_id=1), start=bursts[0].start + 1_000_001)
    (given_up,) = assembler.add(later)
    assert given_up.image_id == 77
    assert not given_up.complete


def test_the_same_image_may_be_sent_again(bursts: list[ReceivedBurst]) -> None:
    assembler = Assembler()
    images = [i for b in bursts * 2 for i in assembler.add(b)]
    assert [i.complete for i in images] == [True, True]


def test_limits_must_be_positive() -> None:
    with pytest.raises(BadInputError):
        Assembler(max_images=0)
