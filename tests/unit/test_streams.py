"""Streams refuse what does not fit together."""

from __future__ import annotations

import numpy as np
import pytest

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError
from multisc.streams import Encoded, Stream

BITS = np.zeros(8, np.uint8)
FEATURES = np.zeros(8, np.float32)


def test_coefficients_become_bits_by_their_quantiser() -> None:
    stream = Stream("slice", FEATURES, "qpsk", "none", Quantiser(6, 1.0))
    assert stream.kind == "digital"
    assert stream.bits().size == 48


def test_an_analog_stream_has_no_bits() -> None:
    with pytest.raises(BadInputError, match="analog"):
        Stream("features", FEATURES, "analog").bits()


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "Slice", "a b", "tränen"])
def test_names_are_short_and_plain(name: str) -> None:
    with pytest.raises(BadInputError, match="name"):
        Stream(name, BITS)


@pytest.mark.parametrize(
    ("data", "modulation", "code", "quantiser"),
    [
        (FEATURES, "qpsk", "none", None),
        (BITS, "qpsk", "none", Quantiser(4, 1.0)),
        (BITS, "analog", "none", None),
        (FEATURES, "analog", "nr:1/2", None),
        (FEATURES, "analog", "none", Quantiser(4, 1.0)),
        (BITS.reshape(2, 4), "qpsk", "none", None),
        (BITS, "8psk", "none", None),
    ],
)
def test_parts_that_do_not_fit_are_refused(data, modulation, code, quantiser) -> None:
    with pytest.raises(BadInputError):
        Stream("s", data, modulation, code, quantiser)


def test_an_image_has_at_least_one_stream_and_distinct_names() -> None:
    with pytest.raises(BadInputError, match="1 to 16"):
        Encoded([])
    with pytest.raises(BadInputError, match="same name"):
        Encoded([Stream("a", BITS), Stream("a", BITS)])
    with pytest.raises(BadInputError, match="64"):
        Encoded([Stream("a", BITS)], bytes(65))
