"""The choice among several descriptions of one picture."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st

from multisc.models.captioner import _Chance
from multisc.models.consensus import agreement, consensus

SAID = [
    "a dog runs on the beach.",
    "a brown dog runs on the sand.",
    "two men sit.",
    "a dog runs along the beach.",
    "the the the the dog.",
]


def test_agreement_is_sentence_bleu() -> None:
    words = [text.split() for text in SAID]
    found = agreement(words)
    for i, answer in enumerate(SAID):
        for j, reference in enumerate(SAID):
            # sacreBLEU's add-k smoothing adds to the matches and the totals from two words on, as we do.
            scorer = sacrebleu.BLEU(smooth_method="add-k", smooth_value=1, tokenize="none", effective_order=True)
            expected = scorer.sentence_score(answer, [reference]).score / 100
            if min(len(words[i]), len(words[j])) >= 4:
                assert found[i, j] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(np.diag(found), 1.0)


def test_the_odd_one_out_is_not_chosen() -> None:
    assert SAID[consensus(SAID)] in {SAID[0], SAID[3]}
    assert consensus(["a man.", "a dog.", "a dog."]) == 1
    assert consensus(["a cat."]) == 0


@given(st.lists(st.text(alphabet="ab .", max_size=12), min_size=1, max_size=6))
def test_any_answers_have_a_consensus(answers: list[str]) -> None:
    values = agreement([answer.split() for answer in answers])
    assert ((values >= 0) & (values <= 1 + 1e-9)).all()
    assert 0 <= consensus(answers) < len(answers)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_chance_draws_words_as_often_as_they_are_likely(temperature: float) -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 0.5, -30.0])
    chance = _Chance([np.zeros((4, 4, 3), np.uint8)], 64, temperature)
    drawn = torch.cat([chance(torch.zeros(64, length), scores.expand(64, -1)).argmax(1) for length in range(1, 101)])
    frequency = torch.bincount(drawn, minlength=5) / len(drawn)
    # 6400 draws: three standard deviations are at most 0.019.
    torch.testing.assert_close(frequency, (scores / temperature).softmax(0), atol=0.02, rtol=0.0)


def test_chance_depends_on_the_picture_alone() -> None:
    scores = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    noisy = _Chance([black, white, black], 5, 0.7)(torch.zeros(15, 4), scores.repeat(3, 1))
    assert torch.equal(noisy[:5], noisy[10:])
    assert not torch.isclose(noisy[:5], noisy[5:10]).any()
    assert torch.equal(noisy[5:10], _Chance([white], 5, 0.7)(torch.zeros(5, 4), scores))
