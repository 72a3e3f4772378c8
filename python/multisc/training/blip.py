"""Training of the embedded BLIP: text decoder on sentences, then on what the shared encoder sees of photographs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipProcessor, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from multisc.models.efficientnet_lite import DEVIATION, MEAN, EfficientNetLiteConfig
from multisc.models.encoder_blip import EncoderBlip, unused_tower
from multisc.models.shared_encoder import DIRECTORY, load_encoder, save_without_encoder
from multisc.training.blip_tokenizers import START, bert_tokenizer
from multisc.training.captioned import CaptionedBatches, CaptionedViews, look_at_all
from multisc.training.data import load_caption_data
from multisc.training.device import CPU, Device
from multisc.training.llava import TESTED, VOCABULARY
from multisc.training.looks import Viewing
from multisc.training.loop import Schedule, fit
from multisc.training.sentences import encode_captions, next_words, pad, train_on_sentences


@dataclass(frozen=True)
class BlipRecipe:
    """Sizes, lengths and rates of the embedded BLIP.

    Args:
        grid: cells of the encoder's feature map on a side that the text decoder sees.
        width: of the text decoder.
        viewing: which views of the photographs it sees.
        seed: of weights and batches.
        batch: sentences or views a step.
        named: views of a batch of which only the classes are known.
        blur: see ``CaptionedBatches``.
        wrong_words: share of the words before that are blotted out in the last stage.
        language, captions: the stages.
    """

    grid: int = 4
    width: int = 160
    viewing: Viewing = field(default_factory=Viewing)
    seed: int = 6
    batch: int = 64
    named: int = 12
    blur: float = 0.1
    wrong_words: float = 0.15
    language: Schedule = field(default_factory=lambda: Schedule(steps=600, learning_rate=2e-3, save_every=100))
    captions: Schedule = field(default_factory=lambda: Schedule(steps=2500, learning_rate=1e-3, save_every=250))


def make_model(tokenizer: BertTokenizer, recipe: BlipRecipe) -> EncoderBlip:
    """Return an untrained BLIP with a small text decoder behind the shared encoder, whose weights are not loaded."""
    torch.manual_seed(recipe.seed)
    vision = EfficientNetLiteConfig(grid=recipe.grid, shared=DIRECTORY)
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        encoder_hidden_size=vision.hidden_size,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=2,
        num_attention_heads=5,
        max_position_embeddings=64,
        bos_token_id=tokenizer.convert_tokens_to_ids(START),
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = BlipConfig(
        text_config=text,
        vision_config=unused_tower(BlipVisionConfig, vision),
        vision_encoder={"grid": vision.grid, "image_size": vision.image_size, "shared": vision.shared},
    )
    model = EncoderBlip(config)
    model.vision_model.requires_grad_(False)
    return model


def train_language_model(
    model: EncoderBlip,
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
    model: EncoderBlip,
    views: dict[str, CaptionedViews],
    sentences: list[NDArray[np.int64]],
    mask: int,
    recipe: BlipRecipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train the text decoder on captioned views; see ``fit`` for what is returned.

    Args:
        model: trained in place.
        views: what the encoder sees of the photographs, as ``look_at_all`` returns it.
        sentences: further ones, without pictures.
        mask: token id that stands for a blotted word.
        recipe: sizes, lengths and rates.
        work: directory for checkpoint and log.
        place: to train on.
    """
    filler = model.config.text_config.pad_token_id
    batches = CaptionedBatches(views, recipe.batch, recipe.named, recipe.blur, every=False)
    rows = views["held_out"].usable[:TESTED]
    test_vectors = views["held_out"].looks.whole(rows).to(place.device)
    tests = [views["held_out"].sentences[row][0] for row in rows]

    def nll(seen: Tensor | None, said: list[NDArray[np.int64]], wrong: float = 0.0) -> Tensor:
        ids = pad(said, filler)[:, :-1]
        blotted = torch.rand(ids.shape) < wrong
        blotted[:, 0] = False
        ids[blotted] = mask
        decoder, ids = model.text_decoder, ids.to(place.device)
        return next_words(decoder(input_ids=ids, encoder_hidden_states=seen, use_cache=False).logits, said)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        batch = batches.draw(rng)
        # Sentences without pictures keep the language from narrowing to that of the photographs.
        others = [sentences[i] for i in rng.integers(len(sentences), size=recipe.batch // 4)]
        with place.autocast():
            seen = batch.vectors.to(place.device)
            return nll(seen, [said[0] for said in batch.sentences], recipe.wrong_words) + 0.1 * nll(None, others)

    def evaluate() -> dict[str, float]:
        return {
            "held_out_nll": float(nll(test_vectors, tests)),
            "held_out_nll_shuffled": float(nll(test_vectors.roll(7, dims=0), tests)),
        }

    return fit("blip-captions", model, loss, recipe.captions, work, evaluate, recipe.seed, place=place)


def train(
    data: Path, work: Path, encoder: Path, output: Path, recipe: BlipRecipe = BlipRecipe(), place: Device = CPU
) -> dict:
    """Train both stages; save the checkpoint and its logs.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoints and of the encoder's vectors.
        encoder: directory of the shared encoder; ``output`` must stand beside it.
        output: folder the model is written to.
        recipe: sizes, lengths and rates.
        place: to train on.

    Returns:
        The last line of each stage's log.
    """
    captions = load_caption_data(data)
    tokenizer = bert_tokenizer(captions.training_sentences, VOCABULARY, max_length=64)
    model = make_model(tokenizer, recipe)
    model.vision_model.encoder = load_encoder(encoder)
    start, end = [model.config.text_config.bos_token_id], tokenizer.sep_token_id
    sentences, further, unseen = (
        encode_captions(tokenizer, texts, start, end)
        for texts in (captions.training_sentences, captions.sentences, captions.held_out_sentences)
    )
    views = look_at_all(model.vision_model, captions, recipe.viewing, work, tokenizer, start, end)
    logs = [
        train_language_model(model, sentences, unseen, recipe, work, place),
        train_captions(model, views, further, tokenizer.mask_token_id, recipe, work, place),
    ]
    save_without_encoder(model.cpu(), output)
    size = model.vision_model.config.image_size
    pictures = BlipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3
    )
    BlipProcessor(pictures, tokenizer).save_pretrained(output)
    quality = {log[0]["stage"]: log[-1] for log in logs}
    record = {"recipe": asdict(recipe), "held_out": quality, "log": [row for log in logs for row in log]}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    return quality
