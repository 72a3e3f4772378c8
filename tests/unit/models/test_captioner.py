"""The captioner, on a miniature and on the embedded checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from multisc.codecs.text import EmbeddingCodec
from multisc.errors import BadInputError, ModelError
from multisc.models.captioner import Captioner
from multisc.models.profile import load_profile
from multisc.training.captioning import measure
from multisc.training.data import load_caption_data
from tests.support.miniatures import write_llava
from tests.support.paths import DATA


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner.load(write_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def embedded() -> Captioner:
    return Captioner.load(load_profile("embedded").llava)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_table_is_the_input_embedding_in_single_precision(miniature: Captioner) -> None:
    assert miniature.table.dtype == np.float32
    assert miniature.table.shape == (len(miniature.processor.tokenizer), 32)
    ids = miniature.encode("a dog.")
    rows = miniature.model.get_input_embeddings().weight[ids].detach().numpy()
    np.testing.assert_array_equal(miniature.table[ids], rows)


def test_text_goes_to_tokens_and_back(miniature: Captioner) -> None:
    text = "a man in a red shirt rides a bicycle."
    assert miniature.decode(miniature.encode(text)) == text
    assert miniature.decode([]) == ""


def test_special_tokens_vanish_from_received_text(miniature: Captioner) -> None:
    special = miniature.processor.tokenizer.all_special_ids
    assert miniature.decode([*special, *miniature.encode("a dog."), *special]) == "a dog."


def test_batch_of_pictures_of_any_size(miniature: Captioner) -> None:
    pictures = [noise(1, 1), noise(40, 30), noise(5, 200), noise(64, 64)[:, ::-1]]
    said = miniature.caption(pictures, max_tokens=6)
    assert len(said) == 4
    special = set(miniature.processor.tokenizer.all_special_ids)
    for ids in said:
        assert len(ids) <= 6
        assert not special & set(ids)
    assert miniature.caption(pictures, max_tokens=6) == said
    assert miniature.caption([]) == []


@pytest.fixture(scope="module")
def sampling(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    directory = write_llava(tmp_path_factory.mktemp("sampling"))
    config = json.loads((directory / "config.json").read_text())
    config |= {"consensus_samples": 5, "consensus_temperature": 0.8}
    (directory / "config.json").write_text(json.dumps(config))
    return Captioner.load(directory)


def test_consensus_on_a_picture_does_not_depend_on_its_neighbours(sampling: Captioner, miniature: Captioner) -> None:
    assert (sampling.samples, miniature.samples) == (5, 1)
    pictures = [noise(20, 30, seed) for seed in range(4)]
    together = sampling.caption(pictures, max_tokens=8)
    assert together == [sampling.caption([picture], max_tokens=8)[0] for picture in pictures]
    assert together != miniature.caption(pictures, max_tokens=8)


def test_consensus_is_one_of_the_samples(sampling: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = sampling.model.generate
    monkeypatch.setattr(sampling.model, "generate", lambda **inputs: drawn.append(original(**inputs)) or drawn[-1])
    (said,) = sampling.caption([noise(20, 30)], max_tokens=8)
    assert len(drawn[0]) == 5
    assert len({tuple(row.tolist()) for row in drawn[0]}) > 1
    assert any(said == row[-8:][: len(said)].tolist() for row in drawn[0])


@pytest.mark.parametrize(
    "entries",
    [
        {"consensus_samples": 0},
        {"consensus_samples": 10**9},
        {"consensus_samples": "8"},
        {"consensus_samples": 4, "consensus_temperature": 0},
    ],
)
def test_impossible_sampling_is_refused(entries: dict, tmp_path: Path) -> None:
    directory = write_llava(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(ModelError, match=r"consensus_\w+ .* in config\.json: must be"):
        Captioner.load(directory)


def test_the_query_reaches_the_model(miniature: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = []
    original = miniature.model.generate
    monkeypatch.setattr(
        miniature.model, "generate", lambda **inputs: prompts.append(inputs["input_ids"][0]) or original(**inputs)
    )
    miniature.caption([noise(8, 8)], max_tokens=1)
    miniature.caption([noise(8, 8)], query="What is red?", max_tokens=1)
    texts = [miniature.processor.tokenizer.decode(prompt) for prompt in prompts]
    assert texts[0] == "<image>" * 4 + "\nRelay a brief, clear account of the picture shown.\n"
    assert texts[1].endswith("\nWhat is red?\n")


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.ones((4, 4, 3))],
)
def test_what_is_no_picture(miniature: Captioner, picture: NDArray) -> None:
    with pytest.raises(BadInputError, match=r"must be \(H, W, 3\) uint8"):
        miniature.caption([picture])


@pytest.mark.parametrize("length", [0, 257])
def test_length_outside_its_range(miniature: Captioner, length: int) -> None:
    with pytest.raises(BadInputError, match="must be 1 to 256"):
        miniature.caption([noise(4, 4)], max_tokens=length)


def test_likelihood_of_captions_beside_one_token_at_a_time(embedded: Captioner) -> None:
    import torch

    pictures = [noise(30, 40), noise(64, 20)]
    captions = ["A dog runs.", "Two men in red shirts are playing a game of soccer on a field."]
    together = embedded.log_likelihood(pictures, captions)
    for picture, caption, found in zip(pictures, captions, together, strict=True):
        ids, terms = embedded.encode(caption), []
        inputs = embedded._prompt([picture], "Relay a brief, clear account of the picture shown.")
        for token in ids:
            with torch.inference_mode():
                logits = embedded.model(**inputs).logits[0, -1].float()
            terms.append(float(logits.log_softmax(-1)[token]))
            more = torch.tensor([[token]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
        assert found == pytest.approx(np.mean(terms), abs=2e-3)
    assert embedded.log_likelihood([], []).shape == (0,)


@pytest.mark.parametrize("captions", [["a man"], ["a man", ""], ["a man", "a dog", "a cat"]])
def test_likelihood_needs_a_caption_for_each_picture(miniature: Captioner, captions: list[str]) -> None:
    with pytest.raises(BadInputError, match="each needs one"):
        miniature.log_likelihood([noise(8, 8), noise(8, 8)], captions)


@pytest.mark.slow
def test_embedded_captions_are_short_sentences(embedded: Captioner, photograph: NDArray[np.uint8]) -> None:
    height, width = photograph.shape[0] // 2, photograph.shape[1] // 2
    blocks = [
        photograph[:height, :width],
        photograph[:height, width:],
        photograph[height:, :width],
        photograph[height:, width:],
    ]
    said = embedded.caption(blocks)
    assert said == embedded.caption(blocks)
    for ids in said:
        assert 4 <= len(ids) <= 24
        text = embedded.decode(ids)
        assert text.endswith(".")
        assert text.isascii()
        assert embedded.encode(text) == ids


def test_embedded_table_is_a_code(embedded: Captioner) -> None:
    codec = EmbeddingCodec(embedded.table)
    assert codec.bits_per_id == 28
    assert len(np.unique(codec.rows, axis=0)) == len(embedded.table)


def test_embedded_checkpoint_is_small() -> None:
    directory = Path(load_profile("embedded").llava)
    assert sum(file.stat().st_size for file in directory.iterdir()) < 4_800_000


@pytest.mark.slow
def test_embedded_captions_fit_their_pictures_better_than_others(embedded: Captioner) -> None:
    if not (DATA / "captions.txt").is_file():
        pytest.skip("the training data are not beside this checkout (../shared/data)")
    quality = measure(embedded, load_caption_data(DATA), ["a man is standing."])
    assert quality["bleu"] > quality["bleu_shuffled"]
