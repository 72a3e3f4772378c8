"""The corrector, on a miniature in the hub's format and on the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import write_bart

from multisc.models.captioner import Captioner
from multisc.models.corrector import BATCH, Corrector
from multisc.models.profile import load_profile
from multisc.training.channel import NoisyCaptions

CAPTIONS = [
    "a man in a red shirt is standing on the street.",
    "two dogs are running through the grass.",
    "a little girl in a pink dress is playing in the water.",
    "a group of people are sitting at a table.",
    "a brown dog is jumping over a log in the woods.",
    "a man is riding a bicycle down a hill.",
    "a boy in a blue shirt jumps into a swimming pool.",
    "two children are playing soccer on a field.",
    "a woman and a child walk along the beach.",
    "a person climbs a rock wall.",
]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Corrector:
    return Corrector.load(write_bart(tmp_path_factory.mktemp("bart")))


@pytest.fixture(scope="module")
def embedded() -> Corrector:
    return Corrector.load(load_profile("embedded").bart)


@pytest.fixture(scope="module")
def channel() -> NoisyCaptions:
    return NoisyCaptions(Captioner.load(load_profile("embedded").llava))


def test_answers_keep_the_order_over_several_batches(miniature: Corrector) -> None:
    texts = [CAPTIONS[i % 10][: 5 + 3 * (i % 7)] for i in range(BATCH + 5)]
    answers = miniature.correct(texts)
    assert len(answers) == len(texts)
    assert answers == miniature.correct(texts)
    by_text = dict(zip(texts, answers, strict=True))
    assert all(by_text[text] == answer for text, answer in zip(texts, answers, strict=True))


def test_empty_texts_stay_empty(miniature: Corrector) -> None:
    assert miniature.correct([]) == []
    assert miniature.correct(["", "  "]) == ["", "  "]


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=400))
def test_any_text_gives_a_text_of_bounded_length(miniature: Corrector, text: str) -> None:
    answer = miniature.correct([text])[0]
    assert len(miniature.tokenizer(answer)["input_ids"]) <= 2 * miniature.model.config.max_position_embeddings


def test_embedded_repairs_what_0_db_does(embedded: Corrector, channel: NoisyCaptions) -> None:
    rng = np.random.default_rng(0)
    sent = CAPTIONS * 4
    received = [channel.receive(text, 0.0, rng) for text in sent]
    before = sacrebleu.corpus_bleu(received, [sent]).score
    after = sacrebleu.corpus_bleu(embedded.correct(received), [sent]).score
    assert before < 95.0
    assert after > before


def test_embedded_leaves_clean_captions_alone(embedded: Corrector, channel: NoisyCaptions) -> None:
    received = [channel.receive(text, 20.0, np.random.default_rng(0)) for text in CAPTIONS]
    assert received == CAPTIONS
    assert embedded.correct(CAPTIONS) == CAPTIONS


def test_embedded_checkpoint_is_small() -> None:
    directory = Path(load_profile("embedded").bart)
    assert sum(file.stat().st_size for file in directory.iterdir()) < 4_200_000
