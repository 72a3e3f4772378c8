"""A picture's budget: its channel bandwidth ratio (CBR), channel uses over 3 H W (docs/reference/definitions.md)."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from multisc.errors import BadInputError


def parse_cbr(text: str) -> Fraction:
    """Read a channel bandwidth ratio exactly.

    Args:
        text: a fraction such as "1/6" or a decimal number, above 0 and at most 4.

    Raises:
        BadInputError: for anything else.
    """
    # Digits are counted first: a number such as 1e-999999999 would take all memory as a fraction.
    valid = re.fullmatch(r"\d{1,6}(/0*[1-9]\d{0,6}|\.\d{1,9})?", text, re.ASCII)
    ratio = Fraction(text) if valid else Fraction(0)
    if not 0 < ratio <= 4:
        raise BadInputError(f"option cbr is {text!r}: must be a fraction such as 1/6, above 0 and at most 4")
    return ratio


def channel_uses(ratio: Fraction, height: int, width: int) -> int:
    """Channel uses of a picture of a channel bandwidth ratio: floor(ratio * 3 * H * W)."""
    return math.floor(ratio * 3 * height * width)
