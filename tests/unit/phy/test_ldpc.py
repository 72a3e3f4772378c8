"""One code block: rate matching, the decoders against plain ones, and frame error rates on published curves."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.errors import BadInputError
from multisc.phy.ldpc import decoder as decoder_module
from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.ldpc.decoder import ALGORITHMS, SCHEDULES, Decoder
from multisc.phy.ldpc.gallager import GallagerBlock
from multisc.phy.ldpc.graph import graph_of_matrix
from multisc.phy.montecarlo import Link
from tests.support.ldpc_reference import channel_of, receive
from tests.support.ldpc_reference import decode as plain_decode


def random_bits(rng, *shape):
    return rng.integers(0, 2, shape, np.uint8)


# Only versions 0 and 3 are self-decodable at high rates: versions 1 and 2 start deep in the parity.
@pytest.mark.parametrize(
    ("k", "n", "versions"),
    [
        (20, 40, (0, 3)),
        (640, 800, (0,)),
        (512, 1024, (0, 3)),
        (4000, 6000, (0, 3)),
        (1, 20, (0,)),
        (100, 500, (0, 1, 2, 3)),
        (700, 3000, (0, 1, 2, 3)),
        (30, 999, (0, 1, 2, 3)),
        (8448, 25344, (0, 1, 2, 3)),
    ],
)
def test_round_trip_with_redundancy_versions(k, n, versions):
    rng = np.random.default_rng(k)
    bits = random_bits(rng, 3, k)
    for rv in versions:
        block = NrLdpcBlock(k, n, rv)
        result = block.decode(receive(block.encode(bits), 1.0, 12.0, rng), iterations=50)
        np.testing.assert_array_equal(result.bits, bits)
        assert result.parity_ok.all()


@pytest.mark.parametrize(("graph", "units", "starts"), [(1, 66, (0, 17, 33, 56)), (2, 50, (0, 13, 25, 43))])
def test_redundancy_versions_start_where_the_table_says(graph, units, starts):
    z = 16
    k = (22 if graph == 1 else 10) * z
    whole = NrLdpcBlock(k, units * z, 0, graph=graph, transport_bits=10_000)
    bits = random_bits(np.random.default_rng(1), 1, k)
    buffer = whole.encode(bits)[0]
    np.testing.assert_array_equal(buffer[: k - 2 * z], bits[0, 2 * z :])
    for rv, start in enumerate(starts):
        part = NrLdpcBlock(k, units * z, rv, graph=graph, transport_bits=10_000).encode(bits)[0]
        np.testing.assert_array_equal(part, np.roll(buffer, -start * z))


def test_fillers_are_never_sent():
    block = NrLdpcBlock(512, 1024)
    assert (block.graph, block.kb, block.z) == (2, 8, 64)
    coded = block.encode(np.ones((1, 512), np.uint8))[0]
    # Systematic bits after the two punctured columns, then parity: the 128 fillers at 512..639 are left out.
    assert coded[: 512 - 128].all()
    longer = NrLdpcBlock(512, 50 * 64 - 128).encode(np.ones((1, 512), np.uint8))[0]
    np.testing.assert_array_equal(longer[:1024], coded)


@pytest.mark.slow
def test_repeated_bits_add_up():
    once = NrLdpcBlock(40, 50 * 7 - (70 - 40))
    twice = NrLdpcBlock(40, 2 * once.n)
    rng = np.random.default_rng(4)
    bits = random_bits(rng, 5, 40)
    code = twice.encode(bits)
    np.testing.assert_array_equal(code[:, : once.n], code[:, once.n :])
    llr = receive(code, 40 / twice.n, 1.0, rng)
    combined = llr[:, : once.n] + llr[:, once.n :]
    for algorithm in ("spa", "offset-minsum"):
        a, b = twice.decode(llr, algorithm, "flooding", 8), once.decode(combined, algorithm, "flooding", 8)
        np.testing.assert_array_equal(a.bits, b.bits)
        np.testing.assert_array_equal(a.iterations, b.iterations)


@pytest.mark.parametrize("qm", [2, 4, 6, 8])
def test_bit_interleaver_is_a_row_column_interleaver(qm):
    plain = NrLdpcBlock(100, 240)
    mixed = NrLdpcBlock(100, 240, bits_per_symbol=qm)
    rng = np.random.default_rng(qm)
    bits = random_bits(rng, 2, 100)
    e, f = plain.encode(bits), mixed.encode(bits)
    for i in range(qm):
        for j in range(240 // qm):
            np.testing.assert_array_equal(f[:, i + j * qm], e[:, i * 240 // qm + j])
    llr = receive(f, 100 / 240, 6.0, rng)
    np.testing.assert_array_equal(mixed.decode(llr).bits, bits)


def test_interleaved_repetition_combines_the_right_bits():
    rng = np.random.default_rng(5)
    block = NrLdpcBlock(24, 1200, bits_per_symbol=6)
    bits = random_bits(rng, 4, 24)
    np.testing.assert_array_equal(block.decode(receive(block.encode(bits), 24 / 1200, 4.0, rng)).bits, bits)


@given(
    k=st.integers(1, 900),
    extra=st.integers(1, 2000),
    qm=st.sampled_from([1, 2, 4, 6, 8]),
    rv=st.integers(0, 3),
    blocks=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_any_block_round_trips_without_noise(k, extra, qm, rv, blocks):
    n = -(-(k + extra) // qm) * qm
    # Twice the information leaves room for the systematic bits that rv 1 to 3 start behind.
    n = n if rv == 0 and n >= 1.15 * k + 20 else -(-3 * max(n, 2 * k + 20) // qm) * qm
    block = NrLdpcBlock(k, n, rv, qm)
    rng = np.random.default_rng(k)
    bits = random_bits(rng, blocks, k)
    llr = 8.0 * (1.0 - 2.0 * block.encode(bits)).astype(np.float32)
    np.testing.assert_array_equal(block.decode(llr, iterations=100).bits, bits)


@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_decisions_as_a_plain_decoder(algorithm, schedule, iterations):
    rng = np.random.default_rng(7)
    block = NrLdpcBlock(40, 96)
    bits = random_bits(rng, 150, 40)
    llr = receive(block.encode(bits), 40 / 96, 2.5, rng)
    checks, channel = channel_of(block, llr)
    if algorithm != "spa":
        # The same fixed point, so that only the rule is compared.
        channel = np.floor(channel * 16 + 0.5) / 16
    expected = plain_decode(checks, channel, algorithm, schedule, iterations)[:, :40]
    found = block.decode(llr, algorithm, schedule, iterations, early_stop=False).bits
    # Ties (a posterior of zero) may fall either way, and 0.75 of a magnitude is rounded to the fixed point.
    certain = np.abs(expected) > {"spa": 1e-3, "normalised-minsum": 1.0}.get(algorithm, 1e-9)
    differing = ((expected < 0) != found)[certain].mean()
    assert differing <= (0.005 if algorithm == "normalised-minsum" else 0.0)


def test_early_stop_never_changes_a_word_whose_checks_hold():
    rng = np.random.default_rng(8)
    block = NrLdpcBlock(200, 400)
    bits = random_bits(rng, 200, 200)
    llr = receive(block.encode(bits), 0.5, 2.0, rng)
    for schedule in SCHEDULES:
        stopped = block.decode(llr, "offset-minsum", schedule, 15)
        full = block.decode(llr, "offset-minsum", schedule, 15, early_stop=False)
        assert (full.iterations == 15).all()
        assert stopped.iterations.min() < 8
        assert stopped.iterations.max() == 15
        both = stopped.parity_ok & full.parity_ok
        assert both.mean() > 0.8
        np.testing.assert_array_equal(stopped.bits[both], full.bits[both])
        # A word that fails used all iterations, so nothing stopped it.
        failed = ~stopped.parity_ok
        np.testing.assert_array_equal(stopped.bits[failed], full.bits[failed])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_word_is_decoded_alike_alone_and_in_company(algorithm, schedule):
    rng = np.random.default_rng(9)
    block = NrLdpcBlock(60, 130)
    llr = receive(block.encode(random_bits(rng, 67, 60)), 60 / 130, 2.0, rng)
    together = block.decode(llr, algorithm, schedule, 12)
    for i in (0, 1, 33, 66):
        alone = block.decode(llr[i : i + 1], algorithm, schedule, 12)
        np.testing.assert_array_equal(alone.bits[0], together.bits[i])
        assert alone.iterations[0] == together.iterations[i]
        assert alone.parity_ok[0] == together.parity_ok[i]


def test_threads_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(10)
    block = NrLdpcBlock(512, 1024)
    llr = receive(block.encode(random_bits(rng, 203, 512)), 0.5, 1.75, rng)
    results = []
    for processors in (1, 2, 5):
        monkeypatch.setattr(decoder_module, "_processors", lambda processors=processors: processors)
        results.append(block.decode(llr))
    for other in results[1:]:
        np.testing.assert_array_equal(other.bits, results[0].bits)
        np.testing.assert_array_equal(other.iterations, results[0].iterations)


def test_several_threads_may_decode_at_once():
    rng = np.random.default_rng(11)
    block = NrLdpcBlock(512, 1024)
    bits = random_bits(rng, 64, 512)
    llr = receive(block.encode(bits), 0.5, 4.0, rng)
    right = []
    threads = [
        threading.Thread(target=lambda: right.append(all((block.decode(llr).bits == bits).all() for _ in range(5))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_extreme_and_erased_ratios(algorithm):
    rng = np.random.default_rng(12)
    block = NrLdpcBlock(300, 900)
    bits = random_bits(rng, 4, 300)
    llr = 1e30 * (1.0 - 2.0 * block.encode(bits)).astype(np.float32)
    llr[1] = np.where(np.arange(900) % 3 == 0, 0.0, np.sign(llr[1]) * np.float32(np.inf))
    llr[2, ::5] = np.nan
    llr[3] *= 1e-29
    result = block.decode(llr, algorithm)
    np.testing.assert_array_equal(result.bits, bits)
    assert result.parity_ok.all()


def test_flooding_and_layered_agree_on_the_frame_error_rate():
    """Layered decoding needs about half the iterations for the same frame error rate."""
    counts = {}
    for schedule, iterations in (("flooding", 40), ("layered", 20)):
        link = Link("nr:1024:512", "bpsk", "normalised-minsum", schedule, iterations)
        counts[schedule] = link.simulate(1.5, min_frame_errors=10**9, max_frames=3000, seed=1).fer
    assert counts["layered"] == pytest.approx(counts["flooding"], rel=0.35)


@pytest.mark.parametrize(
    ("code", "decoder", "schedule", "iterations", "ebn0", "frames", "published"),
    [
        # https://github.com/aff3ct/error_rate_references, LDPC/AWGN/BPSK, 5G; 100 frame errors each.
        ("nr:1024:512", "spa", "flooding", 20, 1.50, 4000, 6.23e-2),
        ("nr:1024:512", "spa", "layered", 10, 1.50, 4000, 7.38e-2),
        ("nr:1024:512", "offset-minsum", "layered", 10, 1.50, 3000, 1.86e-1),
        ("nr:40:20", "spa", "flooding", 20, 3.00, 10000, 9.85e-2),
        ("nr:40:20", "offset-minsum", "flooding", 20, 4.00, 20000, 1.99e-2),
        ("nr:12288:6144", "spa", "flooding", 20, 1.10, 250, 1.34e-1),
        ("nr:12288:6144", "offset-minsum", "layered", 10, 1.30, 300, 2.57e-1),
    ],
)
def test_published_frame_error_rates(code, decoder, schedule, iterations, ebn0, frames, published):
    link = Link(code, "bpsk", decoder, schedule, iterations)
    rates = link.simulate(ebn0, min_frame_errors=10**9, max_frames=frames, seed=3)
    # Both sides are estimates: 100 errors there, fer * frames here; three standard deviations of the log ratio.
    spread = 3 * np.sqrt(1 / 100 + 1 / (published * frames))
    assert abs(np.log(rates.fer / published)) < spread
    low, high = rates.ci95
    assert low < rates.fer < high


@pytest.mark.slow
def test_published_waterfall_within_a_tenth_of_a_decibel():
    """Issue's acceptance: N=1024 K=512, flooding sum-product, 20 iterations, down to a frame error rate of 3e-3."""
    link = Link("nr:1024:512", "bpsk", "spa", "flooding", 20)
    ebn0 = np.array([1.50, 1.75, 2.00, 2.25])
    published = np.log([6.23e-2, 1.69e-2, 2.80e-3, 4.08e-4])
    for at in ebn0[:3]:
        rates = link.simulate(at, min_frame_errors=100, max_frames=60_000, seed=5)
        theirs = np.interp(np.log(rates.fer), published[::-1], ebn0[::-1])
        assert abs(theirs - at) < 0.1


def test_gallager_code_decodes_as_pyldpc_does():
    pyldpc = pytest.importorskip("pyldpc")
    block = GallagerBlock(96, 3, 6)
    assert not (block.checks.astype(int) @ block.generator % 2).any()
    rng = np.random.default_rng(13)
    bits = random_bits(rng, 40, block.k)
    code = block.encode(bits)
    np.testing.assert_array_equal(code, bits.astype(int) @ block.generator.T % 2)
    snr_db = 4.0
    # pyldpc takes the received antipodal values and the SNR 1 / sigma^2, and decodes by sum-product flooding.
    variance = 10 ** (-snr_db / 10)
    received = 1.0 - 2.0 * code + rng.normal(size=code.shape) * np.sqrt(variance)
    theirs = np.asarray(pyldpc.decode(block.checks.astype(int), received.T, snr_db, maxiter=30)).T
    ours = block.decode((2 * received / variance).astype(np.float32), "spa", "flooding", 30)
    assert ours.parity_ok.mean() > 0.7
    settled = ours.parity_ok
    np.testing.assert_array_equal(ours.bits[settled], theirs[settled, : block.k])
    wrong_ours, wrong_theirs = (ours.bits != bits).any(1), (theirs[:, : block.k] != bits).any(1)
    assert abs(int(wrong_ours.sum()) - int(wrong_theirs.sum())) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0, "n": 10}, "0 information bits"),
        ({"k": 20, "n": 20}, "coded length must be 21"),
        ({"k": 20, "n": 1 << 21}, "coded length must be"),
        ({"k": 20, "n": 40, "rv": 4}, "redundancy version 4"),
        ({"k": 20, "n": 41, "bits_per_symbol": 2}, "multiple of the 2 bits"),
        ({"k": 9000, "n": 20000}, "1 to 8448"),
        ({"k": 4000, "n": 20000}, "1 to 3840"),
    ],
)
def test_bad_blocks_are_refused(arguments, message):
    with pytest.raises(BadInputError, match=message):
        NrLdpcBlock(**arguments)


def test_bad_calls_are_refused():
    block = NrLdpcBlock(20, 40)
    llr = np.zeros((2, 40), np.float32)
    with pytest.raises(BadInputError, match="must be \\(blocks, 20\\)"):
        block.encode(np.zeros(20, np.uint8))
    with pytest.raises(BadInputError, match="must be \\(blocks, 40\\)"):
        block.decode(llr[:, :39])
    with pytest.raises(BadInputError, match="'viterbi'"):
        block.decode(llr, "viterbi")
    with pytest.raises(BadInputError, match="'random'"):
        block.decode(llr, schedule="random")
    with pytest.raises(BadInputError, match="0 iterations"):
        block.decode(llr, iterations=0)
    with pytest.raises(BadInputError, match="two bits or more"):
        Decoder(graph_of_matrix(np.eye(3)), np.arange(3, dtype=np.int32), 3)
    with pytest.raises(BadInputError, match="Gallager code 10:3:4"):
        GallagerBlock(10, 3, 4)


def test_no_words_give_an_empty_result():
    result = NrLdpcBlock(20, 40).decode(np.zeros((0, 40), np.float32))
    assert result.bits.shape == (0, 20)
    assert result.parity_ok.shape == (0,)
