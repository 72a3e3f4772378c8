"""The corrector, on a miniature in the hub's format and on the embedded checkpoint."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from multisc.codecs.text import MAX_TOKENS, Reading, letters
from multisc.models.captioner import Captioner
from multisc.models.corrector import BATCH, Corrector
from multisc.models.profile import load_profile
from multisc.training.channel import NoisyCaptions
from tests.support.miniatures import write_bart

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
def captioner() -> Captioner:
    return Captioner.load(load_profile("embedded").llava)


@pytest.fixture(scope="module")
def channel(captioner: Captioner) -> NoisyCaptions:
    return NoisyCaptions(captioner)


@pytest.fixture(scope="module")
def tokens(embedded: Corrector, captioner: Captioner) -> NDArray[np.int64]:
    tokens = embedded.tokens_of(captioner.processor.tokenizer, len(captioner.table))
    assert tokens is not None
    return tokens


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


def corpus_bleu(answers: list[str], sent: list[str]) -> float:
    return sacrebleu.corpus_bleu(answers, [sent]).score / 100.0


@pytest.mark.slow
def test_the_channel_s_view_of_each_token_repairs_more_than_the_text_alone(
    embedded: Corrector, channel: NoisyCaptions, captioner: Captioner, tokens: NDArray[np.int64]
) -> None:
    sent = CAPTIONS * 5
    readings = channel.read_all(sent, -1.5, np.random.default_rng(2))
    received = [reading.text for reading in readings]
    text_alone, both = embedded.correct(received), embedded.correct_readings(readings, tokens, captioner.encode)
    before, between, after = (corpus_bleu(texts, sent) for texts in (received, text_alone, both))
    assert before < 0.7
    assert before + 0.05 < between < after - 0.02
    assert both == embedded.correct_readings(readings, tokens, captioner.encode)


def test_corrections_keep_the_number_of_tokens_that_arrived(
    embedded: Corrector, channel: NoisyCaptions, captioner: Captioner, tokens: NDArray[np.int64]
) -> None:
    readings = channel.read_all(CAPTIONS, -2.0, np.random.default_rng(3))
    answers = embedded.correct_readings(readings, tokens, captioner.encode)
    assert answers != [reading.text for reading in readings]
    # A sentence may be divided into fewer tokens than it was made of, never into more.
    assert all(len(captioner.encode(a)) <= len(r.ids) for a, r in zip(answers, readings, strict=True))


def test_what_the_channel_is_certain_of_stays_however_unlikely(
    embedded: Corrector, channel: NoisyCaptions, captioner: Captioner, tokens: NDArray[np.int64]
) -> None:
    odd = ["dog dog the the purple", "a man in a red shirt is standing on the street street"]
    readings = channel.read_all(odd, 12.0, np.random.default_rng(0))
    assert all(reading.certain for reading in readings)
    assert embedded.correct_readings(readings, tokens, captioner.encode) == odd
    assert embedded.correct_readings(readings, None, captioner.encode) == odd


@pytest.mark.slow
def test_without_a_common_vocabulary_the_channel_chooses_among_the_answers(
    embedded: Corrector, miniature: Corrector, channel: NoisyCaptions, captioner: Captioner
) -> None:
    assert miniature.tokens_of(captioner.processor.tokenizer, len(captioner.table)) is None
    sent = CAPTIONS * 5
    readings = channel.read_all(sent, -1.0, np.random.default_rng(5))
    text_alone = embedded.correct([reading.text for reading in readings])
    weighed = embedded.correct_readings(readings, None, captioner.encode)
    assert corpus_bleu(weighed, sent) > corpus_bleu(text_alone, sent) + 0.02
    assert weighed == embedded.correct_readings(readings, None, captioner.encode)


@pytest.mark.slow
def test_captions_of_more_letters_than_the_model_has_positions(embedded: Corrector, captioner: Captioner) -> None:
    longest = embedded.model.config.max_position_embeddings
    sent = [text for text in CAPTIONS if len(letters(text)) > 0.6 * longest]
    sent = [f"{a[:-1].strip()} and {b}" for a, b in itertools.pairwise(sent)]
    assert all(len(letters(text)) > longest for text in sent)
    received = NoisyCaptions(captioner, "byte").read_all(sent * 4, 8.5, np.random.default_rng(1))
    before = corpus_bleu([reading.text for reading in received], sent * 4)
    after = corpus_bleu(embedded.correct_readings(received, None, letters), sent * 4)
    assert before < 0.9
    assert after > before + 0.03


def test_long_captions_in_letters_are_not_cut(embedded: Corrector, captioner: Captioner) -> None:
    """The model answers in few words what it never saw so long; such answers do not count."""
    sent = [" and ".join(text[:-1] for text in CAPTIONS[k : k + 4]) + "." for k in range(5)]
    sent += [f"{sent[0]} {sent[1]}", "犬" * 30]  # more tokens than positions
    assert all(len(text) > 120 for text in sent[:-1])
    readings = NoisyCaptions(captioner, "byte").read_all(sent, 9.0, np.random.default_rng(1))
    answers = embedded.correct_readings(readings, None, letters)
    for reading, answer in zip(readings, answers, strict=True):
        assert answer == reading.text or abs(len(letters(answer)) - len(reading.ids)) <= len(reading.ids) // 10
    assert answers[-2:] == [reading.text for reading in readings[-2:]]


@pytest.mark.parametrize(("doubt", "word"), [(-0.5, "snow"), (-40.0, "shirt")])
def test_of_two_likely_words_the_channel_chooses(
    embedded: Corrector, captioner: Captioner, doubt: float, word: str
) -> None:
    received, other = (captioner.encode(f"a dog runs through the {seen}.") for seen in ("shirt", "snow"))
    assert len(received) == len(other)
    the = np.full(len(received), captioner.encode("the")[0])
    differs = np.array(received) != np.array(other)
    perhaps = np.where(differs, doubt, np.where(np.arange(len(received)) == 0, -1.0, -40.0))
    alternatives = np.stack([received, np.where(differs, other, the), the + 1], axis=1)
    heard = np.stack([np.zeros(len(received)), perhaps, np.full(len(received), -40.0)], axis=1)
    reading = Reading("a dog runs through the shirt.", alternatives, heard.astype(np.float32))
    assert not reading.certain
    assert word in embedded.correct_readings([reading], None, captioner.encode)[0]


def test_lost_and_overlong_captions_stay_as_they_are(
    embedded: Corrector, channel: NoisyCaptions, captioner: Captioner, tokens: NDArray[np.int64]
) -> None:
    longest = embedded.model.config.max_position_embeddings - 2
    reading = channel.read_all(["a dog"], -1.0, np.random.default_rng(0))[0]
    for places in (longest + 1, MAX_TOKENS):
        rows = np.arange(places) % len(reading.ids)
        long = Reading("a dog " * places, reading.ids[rows], reading.log_likelihoods[rows])
        assert not long.certain
        assert embedded.correct_readings([long, Reading.lost()], tokens, captioner.encode) == [long.text, ""]


def test_embedded_checkpoint_is_small() -> None:
    directory = Path(load_profile("embedded").bart)
    assert sum(file.stat().st_size for file in directory.iterdir()) < 4_200_000
