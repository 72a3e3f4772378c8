"""The text channel: projection, nearest row, and token errors over QPSK."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from multisc.codecs.text import (
    MAX_BYTES,
    MAX_TOKENS,
    TEXT_MODES,
    EmbeddingCodec,
    IndexCodec,
    Reading,
    TextChannel,
    default_dimensions,
)
from multisc.errors import BadInputError

ROWS, WIDTH = 600, 48


def table(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> NDArray[np.float32]:
    """Embeddings as they are in practice: off centre, with a few strong directions and rows of different length."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((width, width)) * np.geomspace(3.0, 0.1, width)[:, None]
    lengths = np.exp(rng.normal(0.0, 0.4, (rows, 1)))
    return (rng.standard_normal((rows, width)) @ directions * lengths + rng.standard_normal(width) * 2.0).astype(
        np.float32
    )


def wrong(received: list[int], sent: list[int]) -> int:
    return sum(a != b for a, b in zip(received, sent, strict=True))


def over_qpsk(codec: EmbeddingCodec, ids: list[int], snr_db: float, rng: np.random.Generator) -> list[int]:
    bits = codec.quantiser.quantise(codec.coefficients(ids))
    noise_variance = 10 ** (-snr_db / 10)
    received = (1.0 - 2.0 * bits) / np.sqrt(2) + rng.standard_normal(bits.size) * np.sqrt(noise_variance / 2)
    return codec.ids(codec.quantiser.expect(received * 2 * np.sqrt(2) / noise_variance))


@pytest.fixture(scope="module")
def codec() -> EmbeddingCodec:
    return EmbeddingCodec(table())


def test_coefficients_are_centred_white_and_of_unit_variance() -> None:
    codec = EmbeddingCodec(table(4000), 24, 4)
    coefficients = codec.coefficients(list(range(MAX_TOKENS))).reshape(-1, 24)
    everything = np.concatenate(
        [codec.coefficients(list(range(i, i + 250))).reshape(-1, 24) for i in range(0, 4000, 250)]
    )
    np.testing.assert_array_equal(coefficients[:250], everything[:250])
    np.testing.assert_allclose(everything.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.cov(everything.T), np.eye(24), atol=2e-2)


@pytest.mark.parametrize(("dimensions", "bits"), [(None, 1), (12, 2), (8, 4), (48, 1), (6, 8)])
def test_every_token_survives_a_clean_channel(dimensions: int | None, bits: int) -> None:
    codec = EmbeddingCodec(table(), dimensions, bits)
    for start in range(0, ROWS, 200):
        ids = list(range(start, start + 200))
        sent = codec.quantiser.quantise(codec.coefficients(ids))
        assert len(sent) == 200 * codec.bits_per_id
        assert codec.ids(codec.quantiser.dequantise(sent)) == ids
        certain = np.where(sent == 0, 40.0, -40.0)
        assert codec.ids(codec.quantiser.expect(certain)) == ids


def test_token_errors_fall_from_about_one_in_eight_at_0_db_to_none(codec: EmbeddingCodec) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(ROWS, size=(40, 50)).tolist()

    def error_rate(snr_db: float) -> float:
        return sum(wrong(over_qpsk(codec, row, snr_db, rng), row) for row in ids) / 2000

    # 2000 tokens: three standard deviations at 0.12 are 0.022.
    assert 0.06 < error_rate(0.0) < 0.2
    assert error_rate(3.0) < 0.03
    assert error_rate(20.0) == 0.0


def test_soft_decisions_beat_hard_ones(codec: EmbeddingCodec) -> None:
    rng = np.random.default_rng(2)
    soft = hard = 0
    for _ in range(30):
        ids = rng.integers(ROWS, size=50).tolist()
        sent = 1.0 - 2.0 * codec.quantiser.quantise(codec.coefficients(ids))
        ratios = 4.0 * (sent / np.sqrt(2) + rng.standard_normal(sent.size) * np.sqrt(0.5)) / np.sqrt(2)
        soft += wrong(codec.ids(codec.quantiser.expect(ratios)), ids)
        bits = (ratios < 0).astype(np.uint8)
        hard += wrong(codec.ids(codec.quantiser.dequantise(bits)), ids)
    assert soft < 0.7 * hard


def test_shrunk_coefficients_do_not_favour_short_rows() -> None:
    codec = EmbeddingCodec(table(), 16, 6)
    ids = list(range(0, ROWS, 4))
    sent = codec.quantiser.dequantise(codec.quantiser.quantise(codec.coefficients(ids)))
    received = codec.ids(0.4 * sent)
    # What a plain nearest row would make of it.
    rows = codec.rows
    distance = ((0.4 * sent.reshape(-1, 16)[:, None] - rows[None]) ** 2).sum(axis=2)
    plain = np.mean(distance.argmin(axis=1) == ids)
    assert np.mean(np.asarray(received) == ids) > max(0.9, plain)


def test_alternatives_are_as_likely_as_bayes_says() -> None:
    """Over QPSK at a known SNR, of the ids given a posterior p, the share p was sent (equal priors)."""
    rng = np.random.default_rng(4)
    codec = EmbeddingCodec(table(200), 10, 1)
    ids = rng.integers(200, size=(40, 100))
    first, sent, total = 0.0, 0, 0
    for row in ids:
        bits = codec.quantiser.quantise(codec.coefficients(row.tolist()))
        received = (1.0 - 2.0 * bits) / np.sqrt(2) + rng.standard_normal(bits.size) * np.sqrt(0.5)
        found, log_likelihoods = codec.likeliest(codec.quantiser.expect(received * 2 * np.sqrt(2)), 200)
        assert found.shape == log_likelihoods.shape == (100, 200)
        assert (np.diff(log_likelihoods, axis=1) <= 0).all()
        assert (log_likelihoods[:, 0] == 0).all()
        posterior = np.exp(log_likelihoods) / np.exp(log_likelihoods).sum(axis=1, keepdims=True)
        first, sent, total = first + posterior[:, 0].sum(), sent + int((found[:, 0] == row).sum()), total + len(row)
    # 4000 draws: three standard deviations of a share are at most 0.024.
    assert 0.2 < sent / total < 0.9
    assert abs(first - sent) / total < 0.024


@pytest.mark.parametrize(("dimensions", "bits"), [(28, 1), (8, 4)])
def test_the_likeliest_are_those_of_a_full_sort(dimensions: int, bits: int) -> None:
    codec = EmbeddingCodec(table(), dimensions, bits)
    noisy = 0.5 * codec.coefficients(list(range(100))) + 0.5 * np.random.default_rng(5).standard_normal(
        100 * dimensions
    ).astype(np.float32)
    noisy = np.clip(noisy, codec.quantiser.levels[0] * 0.99, codec.quantiser.levels[-1] * 0.99)
    few, few_likely = codec.likeliest(noisy, 7)
    everything, likely = codec.likeliest(noisy, 10 * ROWS)
    assert everything.shape == (100, ROWS)
    np.testing.assert_array_equal(few, everything[:, :7])
    np.testing.assert_array_equal(few_likely, likely[:, :7])


def test_whitening_is_stable_against_rounding() -> None:
    rng = np.random.default_rng(3)
    ours = table(300, 32)
    theirs = (ours * (1.0 + 1e-7 * rng.standard_normal(ours.shape))).astype(np.float32)
    sender, receiver = EmbeddingCodec(ours, 16, 6), EmbeddingCodec(theirs, 16, 6)
    ids = list(range(200))
    np.testing.assert_allclose(sender.coefficients(ids), receiver.coefficients(ids), atol=1e-3)
    bits = sender.quantiser.quantise(sender.coefficients(ids))
    assert receiver.ids(receiver.quantiser.dequantise(bits)) == ids


def test_a_table_of_150_thousand_rows_is_searched_in_pieces() -> None:
    codec = EmbeddingCodec(np.random.default_rng(4).standard_normal((150_000, 64), np.float32))
    assert codec.dimensions == 46
    ids = [0, 16_383, 16_384, 77_777, 149_999]
    assert codec.ids(codec.quantiser.dequantise(codec.quantiser.quantise(codec.coefficients(ids)))) == ids


def test_rank_deficient_table_is_accepted() -> None:
    thin = table(200, 8) @ np.random.default_rng(5).standard_normal((8, 32))
    codec = EmbeddingCodec(thin, 24, 4)
    ids = list(range(200))
    assert codec.ids(codec.quantiser.dequantise(codec.quantiser.quantise(codec.coefficients(ids)))) == ids


@pytest.mark.parametrize(("tokens", "expected"), [(1502, 28), (151_646, 46), (2, 4)])
def test_default_dimensions(tokens: int, expected: int) -> None:
    assert default_dimensions(tokens) == expected


def test_empty_text(codec: EmbeddingCodec) -> None:
    assert codec.coefficients([]).shape == (0,)
    assert codec.ids(np.zeros(0, np.float32)) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=40).map(
        lambda values: np.asarray(values[: len(values) // 8 * 8], np.float32)
    )
)
def test_any_finite_coefficients_give_tokens_of_the_table(coefficients: NDArray[np.float32]) -> None:
    codec = EmbeddingCodec(table(64, 16), 8, 2)
    ids = codec.ids(coefficients)
    assert len(ids) == coefficients.size // 8
    assert all(0 <= token < 64 for token in ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(5),), "shape"),
        ((np.zeros((1, 5)),), "shape"),
        ((np.full((4, 4), np.nan),), "not finite"),
        ((table(20, 8), 0), "coefficients per token"),
        ((table(20, 8), 9), "coefficients per token"),
        ((table(20, 8), 4, 0), "quantiser bits"),
        ((table(20, 8), 4, 9), "quantiser bits"),
    ],
)
def test_bad_tables_and_parameters(arguments: tuple, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        EmbeddingCodec(*arguments)


def test_bad_tokens_and_coefficients(codec: EmbeddingCodec) -> None:
    with pytest.raises(BadInputError, match="outside"):
        codec.coefficients([ROWS])
    with pytest.raises(BadInputError, match="outside"):
        codec.coefficients([-1])
    with pytest.raises(BadInputError, match="at most 256"):
        codec.coefficients([0] * (MAX_TOKENS + 1))
    with pytest.raises(BadInputError, match="do not divide"):
        codec.ids(np.zeros(codec.dimensions + 1))
    with pytest.raises(BadInputError, match="at most 256"):
        codec.ids(np.zeros(codec.dimensions * (MAX_TOKENS + 1)))
    with pytest.raises(BadInputError, match="not finite"):
        codec.ids(np.full(codec.dimensions, np.inf))


@pytest.mark.parametrize("count", [2, 96, 256, 1502])
def test_numbers_survive_and_only_existing_ones_are_received(count: int) -> None:
    codec = IndexCodec(count, 50)
    assert 2 ** (codec.bits_per_id - 1) < count <= 2**codec.bits_per_id
    rng = np.random.default_rng(6)
    ids = [0, count - 1, *rng.integers(count, size=40).tolist()]
    bits = codec.quantiser.quantise(codec.coefficients(ids))
    number = bits.reshape(-1, codec.bits_per_id) @ (1 << np.arange(codec.bits_per_id - 1, -1, -1))
    assert number.tolist() == ids
    assert codec.ids(codec.quantiser.dequantise(bits)) == ids
    noise = rng.standard_normal(50 * codec.dimensions).astype(np.float32)
    assert max(codec.ids(noise)) < count


def test_one_bit_decisions_are_the_likeliest(codec: EmbeddingCodec) -> None:
    rng = np.random.default_rng(7)
    ids = rng.integers(ROWS, size=200).tolist()
    bits = codec.quantiser.quantise(codec.coefficients(ids))
    n0 = 10**0.1
    ratios = (
        2.0 * np.sqrt(2.0) / n0 * ((1.0 - 2.0 * bits) / np.sqrt(2) + rng.standard_normal(bits.size) * np.sqrt(n0 / 2))
    )
    # log p(received | row) up to what all rows share: half the sum of +-LLR, + where the row's bit is 0.
    signs = 1.0 - 2.0 * codec.quantiser.quantise(codec.rows).reshape(ROWS, -1)
    likelihood = 0.5 * ratios.reshape(200, -1) @ signs.T
    received = np.asarray(codec.ids(codec.quantiser.expect(ratios)))
    np.testing.assert_allclose(likelihood[np.arange(200), received], likelihood.max(axis=1), rtol=1e-3)


class Alphabet:
    """A language model whose tokens are letters."""

    letters = "abcdefghijklmnopqrstuvwxyz .\n\u00e9"
    table = table(len(letters), 16)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.letters[i] for i in ids)


@pytest.mark.parametrize("mode", TEXT_MODES)
def test_text_survives_a_clean_channel_in_every_mode(mode: str) -> None:
    channel = TextChannel(Alphabet(), mode)
    text = "a dog in a caf\u00e9."
    coefficients = channel.coefficients([Alphabet.letters.index(c) for c in text])
    quantiser = channel.book.quantiser
    assert channel.text(quantiser.dequantise(quantiser.quantise(coefficients))) == text
    assert channel.coefficients([]).size == 0
    assert channel.text(np.zeros(0, np.float32)) == ""


def test_the_last_code_books_of_a_model_are_kept_as_long_as_it_is() -> None:
    """Each picture makes one text channel at the sender and one at the receiver; whitening a large table is slow."""
    model, other = Alphabet(), Alphabet()
    first = TextChannel(model, dimensions=8).book
    second = TextChannel(model, dimensions=9).book
    assert TextChannel(model, dimensions=8).book is first
    assert TextChannel(model, dimensions=8, bits=2).book.quantiser.bits == 2  # the third
    assert TextChannel(model, dimensions=8).book is first
    again = TextChannel(model, dimensions=9).book
    assert again is not second
    np.testing.assert_array_equal(again.rows, second.rows)
    assert TextChannel(other, dimensions=8).book is not first
    kept = weakref.ref(first)
    del first, model
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("mode", TEXT_MODES)
def test_any_reception_gives_a_line_of_text(mode: str) -> None:
    channel = TextChannel(Alphabet(), mode)
    rng = np.random.default_rng(8)
    for _ in range(20):
        text = channel.text(rng.standard_normal(60 * channel.book.dimensions).astype(np.float32))
        assert text.isprintable()
        assert text == text.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("word",), "one of embedding, token, byte"),
        (("token", 12), "sends 5 coefficients of 1 bit, not 12"),
        (("byte", 8, 2), "sends 8 coefficients of 1 bit"),
    ],
)
def test_modes_and_coefficients_that_do_not_exist(arguments: tuple, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        TextChannel(Alphabet(), *arguments)


def test_bytes_are_limited() -> None:
    channel = TextChannel(Alphabet(), "byte")
    with pytest.raises(BadInputError, match="at most 1024"):
        channel.coefficients([0] * (MAX_BYTES + 1))


@given(st.data())
def test_what_the_channel_heard_of_other_ids(data: st.DataObject) -> None:
    places, ranks = data.draw(st.integers(0, 8)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ids = np.array([rng.permutation(20)[:ranks] for _ in range(places)], np.int64).reshape(places, ranks)
    heard = -np.cumsum(rng.random((places, ranks)), axis=1).astype(np.float32)
    reading = Reading("", ids, heard)
    chosen = [int(rng.integers(20)) for _ in range(places)]
    expected = 0.0
    for place, wanted in enumerate(chosen):
        known = dict(zip(ids[place].tolist(), heard[place].tolist(), strict=True))
        expected += known.get(wanted, heard[place, -1])
    assert reading.log_likelihood(chosen) == pytest.approx(expected, abs=1e-4)
    assert reading.log_likelihood([*chosen, 1]) is None
