# SPDX-License-Identifier: GPL-3.0-or-later
"""CIDEr-D, how well a caption agrees with several people's (Vedantam et al., CVPR 2015, section 5)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # of the penalty on another length, in words
_WORD = re.compile(r"[a-z0-9']+")

Grams = list[Counter[tuple[str, ...]]]


def cider_d(answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return CIDEr-D of each answer, 0 to 10; the usual figure is the mean.

    Document frequencies are those of the references given, as in the published evaluation code. Words are letters,
    digits and apostrophes in lower case, without stemming.

    Args:
        answers: one a picture.
        references: sentences of each picture, at least one.

    Raises:
        ValueError: when the numbers differ or a picture has no reference.
    """
    if len(answers) != len(references) or not all(references):
        raise ValueError(f"{len(answers)} answers, {len(references)} pictures: each needs references")
    spoken = [[_grams(text) for text in texts] for texts in references]
    frequency = [Counter[tuple[str, ...]]() for _ in ORDERS]
    for texts in spoken:
        for counts, order in zip(frequency, range(len(ORDERS)), strict=True):
            counts.update({gram for grams in texts for gram in grams[order]})
    scores = np.zeros(len(answers))
    for index, (answer, texts) in enumerate(zip(answers, spoken, strict=True)):
        said = _grams(answer)
        for other in texts:
            length = sum(said[0].values()) - sum(other[0].values())
            penalty = math.exp(-(length**2) / (2 * SIGMA**2))
            for one, two, known in zip(said, other, frequency, strict=True):
                scores[index] += penalty * _cosine(one, two, known, len(answers))
        scores[index] *= 10.0 / len(texts) / len(ORDERS)
    return scores


def _grams(text: str) -> Grams:
    words = _WORD.findall(text.lower())
    return [Counter(zip(*(words[k:] for k in range(order)), strict=False)) for order in ORDERS]


def _cosine(
    answer: Counter[tuple[str, ...]],
    reference: Counter[tuple[str, ...]],
    frequency: Counter[tuple[str, ...]],
    documents: int,
) -> float:
    """The cosine of the two vectors of weighted counts, in the product the answer's counts clipped to the other's."""

    def weighted(counts: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: n * math.log(documents / max(1, frequency[gram])) for gram, n in counts.items()}

    one, two = weighted(answer), weighted(reference)
    norm = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in two.values()))
    if norm == 0.0:
        return 0.0
    return sum(min(value, two[gram]) * two[gram] for gram, value in one.items() if gram in two) / norm
