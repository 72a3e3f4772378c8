"""The text channel: projection, nearest row, and token errors over QPSK."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from multisc.codecs.text import MAX_TOKENS, TextCodec, default_dimensions
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


def over_qpsk(codec: TextCodec, ids: list[int], snr_db: float, rng: np.random.Generator) -> list[int]:
    bits = codec.quantiser.quantise(codec.coefficients(ids))
    noise_variance = 10 ** (-snr_db / 10)
    received = (1.0 - 2.0 * bits) / np.sqrt(2) + rng.standard_normal(bits.size) * np.sqrt(noise_variance / 2)
    return codec.tokens(codec.quantiser.expect(received * 2 * np.sqrt(2) / noise_variance))


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(table())


def test_coefficients_are_centred_white_and_of_unit_variance() -> None:
    codec = TextCodec(table(4000), 24, 4)
    coefficients = codec.coefficients(list(range(MAX_TOKENS))).reshape(-1, 24)
    everything = np.concatenate(
        [codec.coefficients(list(range(i, i + 250))).reshape(-1, 24) for i in range(0, 4000, 250)]
    )
    np.testing.assert_array_equal(coefficients[:250], everything[:250])
    np.testing.assert_allclose(everything.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.cov(everything.T), np.eye(24), atol=2e-2)


@pytest.mark.parametrize(("dimensions", "bits"), [(None, 1), (12, 2), (8, 4), (48, 1), (6, 8)])
def test_every_token_survives_a_clean_channel(dimensions: int | None, bits: int) -> None:
    codec = TextCodec(table(), dimensions, bits)
    for start in range(0, ROWS, 200):
        ids = list(range(start, start + 200))
        sent = codec.quantiser.quantise(codec.coefficients(ids))
        assert len(sent) == 200 * codec.bits_per_token
        assert codec.tokens(codec.quantiser.dequantise(sent)) == ids
        certain = np.where(sent == 0, 40.0, -40.0)
        assert codec.tokens(codec.quantiser.expect(certain)) == ids


def test_token_errors_fall_from_about_one_in_eight_at_0_db_to_none(codec: TextCodec) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(ROWS, size=(40, 50)).tolist()

    def error_rate(snr_db: float) -> float:
        return sum(wrong(over_qpsk(codec, row, snr_db, rng), row) for row in ids) / 2000

    # 2000 tokens: three standard deviations at 0.12 are 0.022.
    assert 0.06 < error_rate(0.0) < 0.2
    assert error_rate(3.0) < 0.03
    assert error_rate(20.0) == 0.0


def test_soft_decisions_beat_hard_ones(codec: TextCodec) -> None:
    rng = np.random.default_rng(2)
    soft = hard = 0
    for _ in range(30):
        ids = rng.integers(ROWS, size=50).tolist()
        sent = 1.0 - 2.0 * codec.quantiser.quantise(codec.coefficients(ids))
        ratios = 4.0 * (sent / np.sqrt(2) + rng.standard_normal(sent.size) * np.sqrt(0.5)) / np.sqrt(2)
        soft += wrong(codec.tokens(codec.quantiser.expect(ratios)), ids)
        bits = (ratios < 0).astype(np.uint8)
        hard += wrong(codec.tokens(codec.quantiser.dequantise(bits)), ids)
    assert soft < 0.7 * hard


def test_shrunk_coefficients_do_not_favour_short_rows() -> None:
    codec = TextCodec(table(), 16, 6)
    ids = list(range(0, ROWS, 4))
    sent = codec.quantiser.dequantise(codec.quantiser.quantise(codec.coefficients(ids)))
    received = codec.tokens(0.4 * sent)
    # What a plain nearest row would make of it.
    rows = codec.codebook
    distance = ((0.4 * sent.reshape(-1, 16)[:, None] - rows[None]) ** 2).sum(axis=2)
    plain = np.mean(distance.argmin(axis=1) == ids)
    assert np.mean(np.asarray(received) == ids) > max(0.9, plain)


def test_whitening_is_stable_against_rounding() -> None:
    rng = np.random.default_rng(3)
    ours = table(300, 32)
    theirs = (ours * (1.0 + 1e-7 * rng.standard_normal(ours.shape))).astype(np.float32)
    sender, receiver = TextCodec(ours, 16, 6), TextCodec(theirs, 16, 6)
    ids = list(range(200))
    np.testing.assert_allclose(sender.coefficients(ids), receiver.coefficients(ids), atol=1e-3)
    bits = sender.quantiser.quantise(sender.coefficients(ids))
    assert receiver.tokens(receiver.quantiser.dequantise(bits)) == ids


def test_a_table_of_150_thousand_rows_is_searched_in_pieces() -> None:
    codec = TextCodec(np.random.default_rng(4).standard_normal((150_000, 64), np.float32))
    assert codec.dimensions == 46
    ids = [0, 16_383, 16_384, 77_777, 149_999]
    assert codec.tokens(codec.quantiser.dequantise(codec.quantiser.quantise(codec.coefficients(ids)))) == ids


def test_rank_deficient_table_is_accepted() -> None:
    thin = table(200, 8) @ np.random.default_rng(5).standard_normal((8, 32))
    codec = TextCodec(thin, 24, 4)
    ids = list(range(200))
    assert codec.tokens(codec.quantiser.dequantise(codec.quantiser.quantise(codec.coefficients(ids)))) == ids


@pytest.mark.parametrize(("tokens", "expected"), [(1502, 28), (151_646, 46), (2, 4)])
def test_default_dimensions(tokens: int, expected: int) -> None:
    assert default_dimensions(tokens) == expected


def test_empty_text(codec: TextCodec) -> None:
    assert codec.coefficients([]).shape == (0,)
    assert codec.tokens(np.zeros(0, np.float32)) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=40).map(
        lambda values: np.asarray(values[: len(values) // 8 * 8], np.float32)
    )
)
def test_any_finite_coefficients_give_tokens_of_the_table(coefficients: NDArray[np.float32]) -> None:
    codec = TextCodec(table(64, 16), 8, 2)
    ids = codec.tokens(coefficients)
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
        TextCodec(*arguments)


def test_bad_tokens_and_coefficients(codec: TextCodec) -> None:
    with pytest.raises(BadInputError, match="outside"):
        codec.coefficients([ROWS])
    with pytest.raises(BadInputError, match="outside"):
        codec.coefficients([-1])
    with pytest.raises(BadInputError, match="at most 256"):
        codec.coefficients([0] * (MAX_TOKENS + 1))
    with pytest.raises(BadInputError, match="do not divide"):
        codec.tokens(np.zeros(codec.dimensions + 1))
    with pytest.raises(BadInputError, match="at most 256"):
        codec.tokens(np.zeros(codec.dimensions * (MAX_TOKENS + 1)))
    with pytest.raises(BadInputError, match="not finite"):
        codec.tokens(np.full(codec.dimensions, np.inf))
