"""CRCs of TS 38.212 clause 5.1 against published check values and a bitwise division."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multisc.errors import BadInputError
from multisc.phy.crc import CRC11, CRC16, CRC24A, CRC24B, CRC24C, Crc

ALL = {"11": CRC11, "16": CRC16, "24A": CRC24A, "24B": CRC24B, "24C": CRC24C}
# The generator polynomials as TS 38.212 5.1 writes them: exponents of D.
EXPONENTS = {
    "11": [11, 10, 9, 5, 0],
    "16": [16, 12, 5, 0],
    "24A": [24, 23, 18, 17, 14, 11, 10, 7, 6, 5, 4, 3, 1, 0],
    "24B": [24, 23, 6, 5, 1, 0],
    "24C": [24, 23, 21, 20, 17, 15, 13, 12, 8, 4, 2, 1, 0],
}


def divide(bits: np.ndarray, exponents: list[int]) -> np.ndarray:
    """Long division over GF(2), one bit at a time."""
    length = exponents[0]
    register = np.concatenate([bits, np.zeros(length, np.uint8)])
    divisor = np.zeros(length + 1, np.uint8)
    divisor[[length - e for e in exponents]] = 1
    for i in range(bits.size):
        if register[i]:
            register[i : i + length + 1] ^= divisor
    return register[bits.size :]


def test_published_check_values():
    # Catalogue of parametrised CRC algorithms, check = CRC of "123456789": XMODEM, LTE-A, LTE-B.
    assert CRC16.parity_of_bytes(b"123456789") == 0x31C3
    assert CRC24A.parity_of_bytes(b"123456789") == 0xCDE703
    assert CRC24B.parity_of_bytes(b"123456789") == 0x23EF52


@pytest.mark.parametrize("name", ALL)
@given(bits=st.lists(st.integers(0, 1), min_size=0, max_size=90))
@settings(max_examples=60, deadline=None)
def test_equals_long_division(name, bits):
    word = np.array(bits, np.uint8)
    np.testing.assert_array_equal(ALL[name].parity(word), divide(word, EXPONENTS[name]))


@pytest.mark.parametrize("name", ALL)
def test_batches_equal_single_words_and_attach_checks(name):
    crc = ALL[name]
    words = np.random.default_rng(1).integers(0, 2, (3, 5, 77), np.uint8)
    sent = crc.attach(words)
    assert sent.shape == (3, 5, 77 + crc.length)
    assert crc.check(sent).all()
    for i in np.ndindex(3, 5):
        np.testing.assert_array_equal(sent[i][77:], crc.parity(words[i]))


@pytest.mark.parametrize("name", ALL)
def test_finds_every_burst_no_longer_than_itself(name):
    crc = ALL[name]
    sent = crc.attach(np.random.default_rng(2).integers(0, 2, 200, np.uint8))
    for first in range(sent.size - crc.length):
        for length in (1, 2, crc.length):
            broken = sent.copy()
            broken[first] ^= 1
            broken[first + length - 1] ^= length > 1
            assert not crc.check(broken)


def test_bytes_and_bits_agree():
    data = np.random.default_rng(3).bytes(50)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    assert CRC24A.parity_of_bytes(data) == int("".join(map(str, CRC24A.parity(bits))), 2)


def test_word_shorter_than_parity_is_refused():
    with pytest.raises(BadInputError, match="10 bits"):
        CRC16.check(np.zeros(10, np.uint8))


def test_equal_polynomials_are_equal():
    assert Crc(16, 0x1021) == CRC16
    assert CRC24A != CRC24B
