"""The system bpg-ldpc: budget, scheme, outage; without a flowgraph."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from multisc.codecs import bpg
from multisc.errors import BadInputError
from multisc.phy.transport import demodulate, modulate
from multisc.phy.units import noise_variance
from multisc.streams import Encoded, ReceivedImage, ReceivedStream, Reconstruction
from multisc.systems.bpg_ldpc import CONCEALED, BpgLdpc, BpgLdpcOptions, bpg_ldpc
from multisc.systems.budget import channel_uses
from multisc.systems.mcs import Mcs, choose, threshold_db


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:192, :256]
    waves = [np.sin(x / 9 + c) + np.cos(y / (5 + c)) + np.sin(x * y / 3000) for c in range(3)]
    return np.clip(128 + 35 * np.stack(waves, -1) + rng.normal(0, 6, (192, 256, 3)), 0, 255).astype(np.uint8)


def over_awgn(encoded: Encoded, snr_db: float, seed: int = 0) -> ReceivedImage:
    rng = np.random.default_rng(seed)
    sent = modulate(encoded.streams[0])
    variance = noise_variance(snr_db)
    noise = np.sqrt(variance / 2) * rng.standard_normal(2 * sent.symbols.size).view(complex)
    received = (sent.symbols + noise).astype(np.complex64)
    stream = demodulate(sent.descriptor, received, np.full(received.size, variance, np.float32))
    return ReceivedImage([stream], encoded.side_info)


def send(image: NDArray[np.uint8], at_db: float, **options: object) -> Reconstruction:
    system = BpgLdpc()
    return system.decode(over_awgn(system.encode(image, options), at_db), options)


@pytest.mark.parametrize(
    "options",
    [
        {"cbr": "1/6", "mcs": "1/2:16qam"},
        {"cbr": "1/6", "mcs": "auto", "snr_db": 11},
        {"cbr": 0.25, "mcs": "1/3:qpsk", "chroma": 444},
        {"cbr": "1/6", "mcs": "1/2:qpsk", "code": "pyldpc:648:3:6"},
    ],
)
def test_picture_arrives_and_fits_the_channel_uses(image: NDArray[np.uint8], options: dict[str, object]) -> None:
    system = BpgLdpc()
    encoded = system.encode(image, options)
    uses = channel_uses(Fraction(str(options["cbr"])), 192, 256)
    used = modulate(encoded.streams[0]).symbols.size
    assert 0.4 * uses < used <= uses  # one QP step may halve the size of a picture of noise
    shown = system.decode(over_awgn(encoded, 11.0), options)
    assert np.array_equal(shown.image, encoded.preview["sent"])
    assert shown.outage_reason == ""
    assert encoded.streams[0].code.startswith(str(options.get("code", "nr")))


@pytest.mark.slow
def test_next_better_quality_would_not_fit(image: NDArray[np.uint8]) -> None:
    options = {"cbr": "1/6", "mcs": "1/2:16qam"}
    stream = BpgLdpc().encode(image, options).streams[0]
    data = np.packbits(stream.data).tobytes()
    encoder = bpg.PictureEncoder(image)
    qp = next(qp for qp in range(52) if encoder.encode(qp) == data)
    longer = np.unpackbits(np.frombuffer(encoder.encode(qp - 1), np.uint8))
    better = modulate(type(stream)("bpg", longer, "16qam", "nr:1/2"))
    assert better.symbols.size > channel_uses(Fraction(1, 6), 192, 256)


@pytest.mark.slow
def test_auto_takes_what_the_table_says(image: NDArray[np.uint8]) -> None:
    for snr_db in (1.0, 6.0, 17.0):
        stream = BpgLdpc().encode(image, {"cbr": "1/4", "snr_db": snr_db}).streams[0]
        scheme = choose(snr_db, channel_uses(Fraction(1, 4), 192, 256))
        assert (stream.modulation, stream.code) == (scheme.modulation, scheme.code)
        assert not send(image, snr_db, cbr="1/4", snr_db=snr_db).outage


def test_cliff_lies_at_the_threshold_of_the_scheme(image: NDArray[np.uint8]) -> None:
    scheme = Mcs("1/2", "16qam")
    above = [send(image, threshold_db(scheme) + 0.4, mcs=str(scheme)).outage for _ in range(2)]
    below = [send(image, threshold_db(scheme) - 0.8, mcs=str(scheme)).outage for _ in range(2)]
    assert not any(above)
    assert all(below)


@pytest.mark.parametrize("snr_db", [-15.0, -8.0])
def test_below_every_threshold_there_is_an_outage_and_no_picture(image: NDArray[np.uint8], snr_db: float) -> None:
    shown = send(image, snr_db, cbr="1/6", snr_db=snr_db)
    assert shown.outage
    assert "CRC" in shown.outage_reason
    assert not shown.preview


def test_auto_sends_the_smallest_picture_when_what_gets_through_holds_none(image: NDArray[np.uint8]) -> None:
    smallest = len(bpg.encode(image, 51))
    # One bit per channel use would do, which is 1/2:qpsk; at this SNR only 1/5:qpsk gets through.
    cbr = f"{8 * smallest + 300}/{3 * 192 * 256}"
    stream = BpgLdpc().encode(image, {"cbr": cbr, "snr_db": -2.5}).streams[0]
    assert (stream.modulation, stream.code) == ("qpsk", "nr:1/2")
    assert 8 * smallest <= stream.data.size <= 8 * smallest + 300


def test_concealment_is_labelled_and_stays_an_outage(image: NDArray[np.uint8]) -> None:
    system = BpgLdpc()
    options = {"cbr": "1/6", "mcs": "1/2:qpsk", "conceal": True}
    encoded = system.encode(image, options)
    bits = encoded.streams[0].data.copy()
    bits[-200] ^= 1
    damaged = ReceivedImage([ReceivedStream("bpg", bits, crc_ok=False)], b"")
    shown = system.decode(damaged, options)
    assert shown.outage
    assert list(shown.preview) == [CONCEALED]
    assert shown.preview[CONCEALED].shape == image.shape
    assert not system.decode(damaged, {**options, "conceal": False}).preview
    noise = np.random.default_rng(0).integers(0, 2, bits.size).astype(np.uint8)
    assert not system.decode(ReceivedImage([ReceivedStream("bpg", noise, crc_ok=False)], b""), options).preview


def test_what_did_not_arrive_or_is_no_picture_is_an_outage() -> None:
    system = BpgLdpc()
    options = {"mcs": "1/2:qpsk"}
    nothing = ReceivedStream("bpg", np.zeros(800, np.uint8), delivered=False, crc_ok=False)
    for streams in ([], [nothing]):
        assert "nothing" in system.decode(ReceivedImage(streams, b""), options).outage_reason
    foreign = ReceivedStream("bpg", np.zeros(800, np.uint8), crc_ok=True)
    assert "no picture" in system.decode(ReceivedImage([foreign], b""), options).outage_reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cbr": "1/300", "mcs": "1/2:qpsk"}, "cbr 1/300, mcs 1/2:qpsk: a budget of .* bytes is too small"),
        ({"cbr": "1/3000", "snr_db": 10}, "cbr 1/3000, mcs auto: "),
        ({"mcs": "auto"}, "needs the SNR"),
        ({"cbr": "0"}, "cbr is '0'"),
        ({"cbr": "-1/6"}, "cbr"),
        ({"cbr": "1/0"}, "cbr"),
        ({"cbr": "5"}, "cbr"),
        ({"cbr": "1e-9999999"}, "cbr"),
        ({"cbr": "nan"}, "cbr"),
        ({"chroma": "422"}, "chroma"),
        ({"mcs": "1/2:32qam"}, "mcs 1/2:32qam"),
        ({"mcs": "1/3:qpsk", "code": "pyldpc:648:3:6"}, "has the rate 1/2"),
        ({"mcs": "1/2:qpsk", "code": "turbo"}, "must be nr or pyldpc"),
        ({"mcs": "1/2:qpsk", "code": "pyldpc:1:0:0"}, "pyldpc"),
        ({"code": "pyldpc:648:3:6", "snr_db": 3}, "mcs auto"),
        ({"quality": 3}, "no option 'quality'"),
        ({"conceal": 1}, "conceal"),
    ],
)
def test_refuses_options_in_one_line(image: NDArray[np.uint8], options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        BpgLdpc().encode(image, options)
    assert "\n" not in str(caught.value)


def test_ratio_is_exact() -> None:
    assert BpgLdpcOptions(cbr="1/12", mcs="1/2:qpsk").ratio == Fraction(1, 12)
    assert channel_uses(Fraction(1, 12), 512, 768) == 98304
    assert channel_uses(Fraction(1, 6), 1, 1) == 0


def test_needs_no_torch_and_no_gnuradio() -> None:
    code = (
        "import sys; from multisc.systems.registry import get_system; get_system('bpg-ldpc'); "
        "assert not {'torch', 'gnuradio'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert bpg_ldpc().name == "bpg-ldpc"
