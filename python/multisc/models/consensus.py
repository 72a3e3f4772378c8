"""Which of several answers agrees best with all of them: minimum Bayes risk decoding (Kumar and Byrne, 2004)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)


def consensus(answers: Sequence[str]) -> int:
    """Return the index of the answer with the highest mean sentence BLEU-4 against all answers.

    A model that samples its answers draws from what it holds possible; this one is the best bet under BLEU.

    Args:
        answers: at least one; equal ones count as often as they occur. Of equally good ones the first wins.
    """
    return int(agreement([answer.split() for answer in answers]).mean(axis=1).argmax())


def agreement(answers: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the sentence BLEU-4 of each answer (row) against each as the one reference (column), 0 to 1.

    Counts of two words and more are smoothed by adding one, after Lin and Och, 2004.

    Args:
        answers: lists of words.
    """
    lengths = np.array([len(words) for words in answers], np.float64)
    log_precision = np.zeros((len(answers), len(answers)))
    for order in ORDERS:
        grams = [Counter(zip(*(words[k:] for k in range(order)), strict=False)) for words in answers]
        index = {gram: i for i, gram in enumerate({gram for counts in grams for gram in counts})}
        table = np.zeros((len(answers), len(index)), np.int64)
        for row, counts in zip(table, grams, strict=True):
            for gram, count in counts.items():
                row[index[gram]] = count
        matches = np.minimum(table[:, None], table[None]).sum(axis=2)
        extra = float(order > 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = (matches + extra) / (table.sum(axis=1)[:, None] + extra)
            log_precision += np.log(np.nan_to_num(precision)) / len(ORDERS)
    brevity = np.minimum(0.0, 1.0 - lengths[None] / np.maximum(lengths[:, None], 1.0))
    return np.exp(log_precision + brevity)
