"""Codes by name: the transport block chain of TS 38.212, the Gallager codes, no code, and refused specifications."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.errors import BadInputError
from multisc.phy.crc import CRC16, CRC24A, CRC24B
from multisc.phy.fec import RATES, check_code, make_code
from multisc.phy.ldpc.transport import TransportBlock, segment

SPECS = ["none", *(f"nr:{rate}" for rate in RATES), pytest.param("pyldpc:120:3:6", marks=pytest.mark.slow)]


def soft(bits: np.ndarray, magnitude: float = 6.0) -> np.ndarray:
    return (magnitude * (1.0 - 2.0 * bits)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
@given(payload=st.integers(1, 700), qm=st.sampled_from([1, 2, 4, 6, 8]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_round_trip(spec, payload, qm, seed):
    code = make_code(spec, payload, qm)
    bits = np.random.default_rng(seed).integers(0, 2, payload, np.uint8)
    coded = code.encode(bits)
    assert code.payload_bits == payload
    assert coded.shape == (code.coded_bits,)
    assert coded.dtype == np.uint8
    assert code.coded_bits % qm == 0
    decoded = code.decode(soft(coded))
    np.testing.assert_array_equal(decoded.bits, bits)
    if spec == "none":
        assert decoded.crc_ok is None
        assert decoded.blocks_ok is None
    else:
        assert decoded.crc_ok is True
        assert decoded.blocks_ok.all()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("payload", [3824, 3825, 8424, 8425, 20_001, 100_003])
def test_large_blocks_over_noise(rate, payload):
    """3 dB above the Shannon limit of the rate everything arrives."""
    code = make_code(f"nr:{rate}", payload, 2)
    rng = np.random.default_rng(payload)
    bits = rng.integers(0, 2, payload, np.uint8)
    coded = code.encode(bits)
    efficiency = 2 * RATES[rate]
    esn0 = (2**efficiency - 1) * 10**0.3
    # QPSK: two real channels of half the energy each.
    amplitude, sigma = np.sqrt(0.5), np.sqrt(0.5 / esn0)
    received = amplitude * (1.0 - 2.0 * coded) + rng.normal(size=coded.size) * sigma
    decoded = code.decode((2 * amplitude * received / sigma**2).astype(np.float32))
    assert decoded.crc_ok is True
    np.testing.assert_array_equal(decoded.bits, bits)


@pytest.mark.parametrize(
    ("transport_bits", "graph", "blocks", "block_bits"),
    [
        (8448, 1, 1, 8448),
        (8449, 1, 2, 4249),
        (16848, 1, 2, 8448),
        (16849, 1, 3, 5641),
        (3840, 2, 1, 3840),
        (3841, 2, 2, 1945),
        (7632, 2, 2, 3840),
        # Transport block sizes of TS 38.214 Table 5.1.3.2 divide evenly: 30216 + 24 bits into 4 blocks.
        (30216 + 24, 1, 4, 7584),
    ],
)
def test_segmentation(transport_bits, graph, blocks, block_bits):
    result = segment(transport_bits, graph)
    assert (result.blocks, result.block_bits) == (blocks, block_bits)
    assert (result.block_crc is None) == (blocks == 1)
    assert block_bits <= (8448 if graph == 1 else 3840)


def test_transport_block_is_built_as_the_standard_says():
    """CRC-24A over the payload, equal blocks each with CRC-24B, systematic bits behind two punctured columns."""
    block = TransportBlock(30216, 0.5, 1)
    assert block.segmentation.blocks == 4
    bits = np.random.default_rng(1).integers(0, 2, 30216, np.uint8)
    coded = block.encode(bits).reshape(4, -1)
    words = CRC24B.attach(CRC24A.attach(bits).reshape(4, -1))
    z = 352  # 22 * 352 = 7744 is the smallest that holds 7584
    np.testing.assert_array_equal(coded[:, : 7584 - 2 * z], words[:, 2 * z :])
    assert coded.shape[1] == 2 * 7584


def test_small_transport_block_has_a_16_bit_crc():
    block = TransportBlock(3824, 0.5, 1)
    bits = np.random.default_rng(2).integers(0, 2, 3824, np.uint8)
    z = 384
    np.testing.assert_array_equal(block.encode(bits)[: 3840 - 2 * z], CRC16.attach(bits)[2 * z :])
    assert block.coded_bits == 2 * 3840


@pytest.mark.parametrize(("rate", "payload"), [("1/2", 30216), ("2/3", 50_000), ("8/9", 12_345)])
@pytest.mark.parametrize("qm", [1, 4, 6])
def test_rate_is_kept(rate, payload, qm):
    transport = TransportBlock(payload, RATES[rate], qm)
    coded = transport.segmentation.blocks * transport.segmentation.block_bits
    assert coded / RATES[rate] <= transport.coded_bits + 1e-6 < coded / RATES[rate] + qm


def test_erased_symbols_are_repaired():
    code = make_code("nr:1/3", 5000, 2)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2, 5000, np.uint8)
    llr = soft(code.encode(bits))
    llr[rng.random(llr.size) < 0.4] = 0.0
    decoded = code.decode(llr)
    np.testing.assert_array_equal(decoded.bits, bits)
    assert decoded.crc_ok is True


@pytest.mark.parametrize("spec", ["nr:1/2", "nr:1/5", "pyldpc:120:3:6"])
@pytest.mark.parametrize("payload", [10, 5000, 12_000])
def test_nothing_received_is_not_a_payload_of_zeros(spec, payload):
    code = make_code(spec, payload, 2)
    decoded = code.decode(np.zeros(code.coded_bits, np.float32))
    assert decoded.crc_ok is False
    assert not decoded.blocks_ok.any()


def test_lost_block_is_named_and_the_others_are_delivered():
    code = make_code("nr:1/2", 25_000, 2)
    bits = np.random.default_rng(4).integers(0, 2, 25_000, np.uint8)
    llr = soft(code.encode(bits))
    blocks = code.decode(llr).blocks_ok.size
    assert blocks == 3
    third = llr.size // 3
    llr[third : 2 * third] *= np.random.default_rng(5).choice([-1, 1], third)
    decoded = code.decode(llr)
    assert decoded.crc_ok is False
    assert decoded.blocks_ok.tolist() == [True, False, True]
    np.testing.assert_array_equal(decoded.bits[:8000], bits[:8000])
    np.testing.assert_array_equal(decoded.bits[-8000:], bits[-8000:])


def test_noise_alone_never_passes_the_crc():
    rng = np.random.default_rng(6)
    for payload in (40, 4000):
        code = make_code("nr:1/2", payload, 2)
        for _ in range(200):
            assert code.decode(rng.normal(size=code.coded_bits).astype(np.float32) * 4).crc_ok is False


def test_codes_are_shared():
    assert make_code("nr:1/2", 1000, 2) is make_code("nr:1/2", 1000, 2)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "nr",
        "nr:",
        "nr:7/8",
        "nr:1/2:3",
        "nr:0.5",
        "none:1",
        "turbo:1/3",
        "pyldpc",
        "pyldpc:120:3",
        "pyldpc:120:3:7",
        "pyldpc:120:6:3",
        "pyldpc:-120:3:6",
        "pyldpc:120:3:6:1",
        "pyldpc:999999:3:6",
        "pyldpc:99999:3:9",
        "pyldpc:１２０:3:6",
        "NR:1/2",
        " none",
    ],
)
def test_unknown_specifications_are_refused(spec):
    with pytest.raises(BadInputError, match="code"):
        make_code(spec, 100, 2)
    with pytest.raises(BadInputError, match="code"):
        check_code(spec)


@pytest.mark.parametrize("spec", ["none", "nr:8/9", "pyldpc:4096:2:4096"])
def test_a_specification_is_checked_without_making_the_code(spec, monkeypatch):
    monkeypatch.setattr("multisc.phy.fec._make_code", None)
    check_code(spec)


@given(st.text(max_size=20))
@settings(deadline=None)
def test_any_text_is_a_code_or_bad_input(text):
    try:
        make_code(text, 100, 2)
    except BadInputError:
        return
    assert text.split(":")[0] in ("none", "nr", "pyldpc")


@pytest.mark.parametrize(("payload", "qm"), [(0, 2), (-1, 2), (2**24 + 1, 2), (100, 0), (100, 3)])
def test_numbers_out_of_range_are_refused(payload, qm):
    with pytest.raises(BadInputError):
        make_code("nr:1/2", payload, qm)


@pytest.mark.parametrize("spec", SPECS)
def test_wrong_lengths_are_refused(spec):
    code = make_code(spec, 100, 2)
    with pytest.raises(BadInputError, match="must be"):
        code.encode(np.zeros(99, np.uint8))
    with pytest.raises(BadInputError, match="must be"):
        code.decode(np.zeros(code.coded_bits + 1, np.float32))
