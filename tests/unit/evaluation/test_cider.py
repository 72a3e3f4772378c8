# SPDX-License-Identifier: GPL-3.0-or-later
"""CIDEr-D: its limits, what it rewards, and a value worked out by hand."""

from __future__ import annotations

import math

import pytest

from multisc.evaluation.cider import cider_d

REFERENCES = [
    ["a dog runs on the grass.", "the brown dog is running."],
    ["two children sit on a bench.", "kids are sitting outside."],
    ["a man climbs a rock.", "a climber hangs from a cliff."],
]


def test_a_reference_that_all_give_scores_ten() -> None:
    same = [["a dog runs on the grass."] * 5, ["two children sit here now."] * 5]
    assert cider_d([texts[0] for texts in same], same).tolist() == pytest.approx([10.0, 10.0])


def test_own_references_score_higher_than_others() -> None:
    answers = [texts[0] for texts in REFERENCES]
    own, shifted = cider_d(answers, REFERENCES), cider_d(answers[1:] + answers[:1], REFERENCES)
    assert (own > shifted).all()
    assert (shifted < 0.5).all()


def test_words_of_every_picture_count_nothing() -> None:
    assert cider_d(["the the", "the", "the"], [["the dog"], ["the cat"], ["the cow"]]).tolist() == [0.0, 0.0, 0.0]


def test_against_a_value_worked_out_by_hand() -> None:
    # One word of the answer is rare and right, one is wrong; all weights are log 2, one word fewer is said.
    score = cider_d(["dog sun", "cow"], [["dog runs fast"], ["cow"]])[0]
    single = 1.0 / math.sqrt(2 * 3)
    assert score == pytest.approx(10.0 / 4 * math.exp(-1 / 72) * single)


def test_every_picture_needs_references() -> None:
    with pytest.raises(ValueError, match="each needs references"):
        cider_d(["a dog."], [[]])
    with pytest.raises(ValueError, match="2 answers, 1 pictures"):
        cider_d(["a dog.", "a cat."], [["a dog."]])
