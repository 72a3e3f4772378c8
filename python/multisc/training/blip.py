"""Training of the embedded BLIP: text decoder on sentences, then on captioned photographs, with BLIP-2's tower."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BertTokenizer,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from multisc.training.blip_tokenizers import START, bert_tokenizer
from multisc.training.data import CaptionData, load_caption_data, load_pixels
from multisc.training.device import CPU, Device
from multisc.training.llava import VOCABULARY
from multisc.training.loop import Schedule, fit
from multisc.training.sentences import encode_captions, next_words, pad, train_on_sentences
from multisc.training.towers import vision_sizes
from multisc.training.views import WHOLE, pixel_values, random_view


@dataclass(frozen=True)
class BlipRecipe:
    """Sizes, lengths and rates of the embedded BLIP.

    Args:
        width: of the text decoder.
        seed: of weights, batches and views.
        batch: sentences a step.
        caption_batch: captioned views a step.
        trained_rate: factor on the tower's learning rate.
        wrong_words: share of the words before that are blotted out in the last stage.
        language, captions: the stages.
    """

    width: int = 160
    seed: int = 6
    batch: int = 48
    caption_batch: int = 32
    trained_rate: float = 0.1
    wrong_words: float = 0.15
    language: Schedule = field(default_factory=lambda: Schedule(steps=600, learning_rate=2e-3, save_every=100))
    captions: Schedule = field(default_factory=lambda: Schedule(steps=350, learning_rate=1.5e-3, save_every=50))


def make_model(tokenizer: BertTokenizer, sizes: dict, recipe: BlipRecipe) -> BlipForConditionalGeneration:
    """Return an untrained BLIP with a small text decoder, and a tower of the given sizes."""
    torch.manual_seed(recipe.seed)
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=5 * recipe.width // 2,
        num_hidden_layers=2,
        num_attention_heads=5,
        max_position_embeddings=64,
        bos_token_id=tokenizer.convert_tokens_to_ids(START),
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=BlipVisionConfig(**sizes)))


def train_language_model(
    model: BlipForConditionalGeneration,
    train: list[NDArray[np.int64]],
    test: list[NDArray[np.int64]],
    recipe: BlipRecipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train the text decoder alone on sentences; see ``fit`` for what it returns and leaves in ``work``."""
    decoder, filler = model.text_decoder, model.config.text_config.pad_token_id

    def logits(ids: Tensor) -> Tensor:
        return decoder(input_ids=ids, use_cache=False).logits

    return train_on_sentences(
        "blip-language", decoder, logits, filler, train, test, recipe.language, recipe.batch, work, recipe.seed, place
    )


def train_captions(
    model: BlipForConditionalGeneration,
    data: CaptionData,
    tokenizer: BertTokenizer,
    recipe: BlipRecipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train tower and text decoder on captioned photographs; see ``fit`` for what is returned."""
    start, end, filler = [model.config.text_config.bos_token_id], tokenizer.sep_token_id, tokenizer.pad_token_id
    size = model.config.vision_config.image_size
    images = [load_pixels(data.root, image.path, 192) for image in data.train]
    captions = [encode_captions(tokenizer, image.captions, start, end) for image in data.train]
    usable = np.flatnonzero([bool(rows) for rows in captions])
    sentences = encode_captions(tokenizer, data.sentences, start, end)
    tests = [encode_captions(tokenizer, image.captions, start, end)[0] for image in data.held_out]
    test_images = [load_pixels(data.root, image.path, 192) for image in data.held_out]
    test_pixels = pixel_values(test_images, [WHOLE] * len(tests), size).to(place.device)

    def nll(seen: Tensor | None, rows: list[NDArray[np.int64]], wrong: float = 0.0) -> Tensor:
        ids = pad(rows, filler)[:, :-1]
        blotted = torch.rand(ids.shape) < wrong
        blotted[:, 0] = False
        ids[blotted] = tokenizer.mask_token_id
        decoder, ids = model.text_decoder, ids.to(place.device)
        return next_words(decoder(input_ids=ids, encoder_hidden_states=seen, use_cache=False).logits, rows)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        chosen = rng.choice(usable, recipe.caption_batch, replace=False)
        pixels = pixel_values([images[i] for i in chosen], [random_view(rng, 0.5) for _ in chosen], size)
        said = [captions[i][rng.integers(len(captions[i]))] for i in chosen]
        # Sentences without pictures keep the language from narrowing to that of 900 photographs.
        others = [sentences[i] for i in rng.integers(len(sentences), size=recipe.caption_batch // 2)]
        with place.autocast():
            seen = model.vision_model(pixels.to(place.device)).last_hidden_state
            return nll(seen, said, recipe.wrong_words) + 0.2 * nll(None, others)

    def evaluate() -> dict[str, float]:
        seen = model.vision_model(test_pixels).last_hidden_state
        return {
            "held_out_nll": float(nll(seen, tests)),
            "held_out_nll_shuffled": float(nll(seen.roll(7, dims=0), tests)),
        }

    def rate(name: str) -> float:
        return recipe.trained_rate if name.startswith("vision_model") else 1.0

    return fit("blip-captions", model, loss, recipe.captions, work, evaluate, recipe.seed, rate, place=place)


def train(
    data: Path, work: Path, blip2: Path, output: Path, recipe: BlipRecipe = BlipRecipe(), place: Device = CPU
) -> dict:
    """Train both stages; save the checkpoint and its logs.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoints.
        blip2: the trained BLIP-2, whose tower is where this one begins.
        output: folder the model is written to.
        recipe: sizes, lengths and rates.
        place: to train on.

    Returns:
        The last line of each stage's log.
    """
    captions = load_caption_data(data)
    tower = Blip2ForConditionalGeneration.from_pretrained(blip2, dtype=torch.float32).vision_model
    tokenizer = bert_tokenizer(captions.training_sentences, VOCABULARY, max_length=64)
    model = make_model(tokenizer, vision_sizes(tower), recipe)
    model.vision_model.load_state_dict(tower.state_dict())
    start, end = [model.config.text_config.bos_token_id], tokenizer.sep_token_id
    sentences, unseen = (
        encode_captions(tokenizer, texts, start, end)
        for texts in (captions.training_sentences, captions.held_out_sentences)
    )
    logs = [
        train_language_model(model, sentences, unseen, recipe, work, place),
        train_captions(model, captions, tokenizer, recipe, work, place),
    ]
    model.cpu().half().save_pretrained(output)
    size = model.config.vision_config.image_size
    pictures = BlipImageProcessorPil(size={"height": size, "width": size})
    BlipProcessor(pictures, tokenizer).save_pretrained(output)
    quality = {log[0]["stage"]: log[-1] for log in logs}
    record = {"recipe": asdict(recipe), "held_out": quality, "log": [row for log in logs for row in log]}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    return quality
