"""Training of the embedded LLaVA (paper section III-B): language model, vision tower, then all together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
)

from multisc.models.captioner import PAPER_QUERY, Captioner
from multisc.training.captioning import measure, write_block_captions
from multisc.training.data import CaptionData, load_caption_data, load_pixels
from multisc.training.device import CPU, Device
from multisc.training.distil import distil, principal_features, teacher_features
from multisc.training.loop import Schedule, fit
from multisc.training.sentences import encode_captions, next_words, pad, train_on_sentences
from multisc.training.tokenizers import IMAGE_TOKEN, qwen2_tokenizer, train_bpe
from multisc.training.views import WHOLE, pixel_values, random_view

VOCABULARY = 1500
# What the language model sees before a caption; chat template and training agree on it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{{ '\n' }}"
)


@dataclass(frozen=True)
class LlavaRecipe:
    """Sizes, lengths and rates of the embedded LLaVA.

    Args:
        image_size: side of the square that pictures are squeezed to, in pixels.
        patch_size: side of a patch.
        seed: of weights, batches and views.
        batch: sentences or views a step while language model and tower are trained apart.
        caption_batch: captioned views a step while all is trained together.
        trained_rate: factor on the learning rate of what was trained before, in that last stage.
        wrong_words: share of the words before that are blotted out in that stage: what cannot be guessed from
            words must be seen.
        consensus_samples, consensus_temperature: how descriptions are found in the end, see ``Captioner``; chosen on
            160 of the training photographs.
        language, tower, captions: the stages.
    """

    image_size: int = 96
    patch_size: int = 16
    seed: int = 1
    batch: int = 64
    caption_batch: int = 32
    trained_rate: float = 0.1
    wrong_words: float = 0.2
    consensus_samples: int = 32
    consensus_temperature: float = 0.45
    language: Schedule = field(default_factory=lambda: Schedule(steps=2500, learning_rate=3e-3, save_every=250))
    tower: Schedule = field(default_factory=lambda: Schedule(steps=8000, learning_rate=6e-4))
    captions: Schedule = field(default_factory=lambda: Schedule(steps=1600, learning_rate=3e-3, save_every=100))


def make_tokenizer(sentences: list[str]) -> Qwen2Tokenizer:
    """Return the tokenizer of the embedded LLaVA, trained on the captions and the paper's query."""
    # The query precedes every caption; seen a thousand times its words become single tokens.
    corpus = [*sentences, *[f"\n{PAPER_QUERY}\n"] * 1000]
    return qwen2_tokenizer(*train_bpe(corpus, VOCABULARY), max_length=128)


def make_model(tokenizer: Qwen2Tokenizer, recipe: LlavaRecipe) -> LlavaForConditionalGeneration:
    """Return an untrained LLaVA with a small CLIP tower and a small Qwen2."""
    torch.manual_seed(recipe.seed)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        projection_dim=128,
    )
    language = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.encode(IMAGE_TOKEN)[0],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(recipe.image_size // recipe.patch_size) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def train_language_model(
    model: LlavaForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    sentences: list[str],
    held_out: list[str],
    recipe: LlavaRecipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train the language model alone on sentences; see ``fit`` for what it returns and leaves in ``work``."""
    start, end = tokenizer.encode("\n"), tokenizer.eos_token_id
    train, test = (encode_captions(tokenizer, texts, start, end) for texts in (sentences, held_out))
    language = _LanguageModel(model)
    return train_on_sentences(
        "language", language, language, end, train, test, recipe.language, recipe.batch, work, recipe.seed, place
    )


class _LanguageModel(torch.nn.Module):
    """The parts of a LLaVA that the language stage trains, as one module."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.head = model.lm_head

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, L, V) after each of the token ids (B, L)."""
        return self.head(self.language_model(input_ids=ids).last_hidden_state)


def make_processor(tokenizer: Qwen2Tokenizer, recipe: LlavaRecipe) -> LlavaProcessor:
    """Return the processor that turns pictures and the query into the model's inputs."""
    # The whole picture squeezed to a square, rather than its middle: what is at the sides counts too.
    size = {"height": recipe.image_size, "width": recipe.image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=recipe.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def train_captions(
    model: LlavaForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    data: CaptionData,
    recipe: LlavaRecipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train tower, projection and language model together on captioned photographs.

    The embedding table stays as it is: it is the code book of the text channel, on which BART is trained meanwhile.
    See ``fit`` for what is returned and left in ``work``.
    """
    model.get_input_embeddings().weight.requires_grad_(False)
    images = [load_pixels(data.root, image.path, 192) for image in data.train]
    end = tokenizer.eos_token_id
    captions = [encode_captions(tokenizer, image.captions, [], end) for image in data.train]
    usable = [i for i, rows in enumerate(captions) if rows]
    patches = (recipe.image_size // recipe.patch_size) ** 2
    prompt = np.asarray(
        [tokenizer.encode(IMAGE_TOKEN)[0]] * patches + tokenizer.encode(f"\n{PAPER_QUERY}\n"), dtype=np.int64
    )
    sentences = encode_captions(tokenizer, data.sentences, tokenizer.encode("\n"), end)
    language = _LanguageModel(model)

    def nll(pixels: Tensor, chosen: list[NDArray[np.int64]], wrong: float = 0.0) -> Tensor:
        """Cross-entropy of captions, one a picture, given the pictures and the words before, some of them wrong."""
        ids = pad([np.concatenate([prompt, caption]) for caption in chosen], end)
        labels = pad(chosen, -100).to(place.device)
        said = ids[:, len(prompt) :]
        said[torch.rand(said.shape) < wrong] = end
        with place.autocast():
            hidden = model.model(
                input_ids=ids[:, :-1].to(place.device), pixel_values=pixels.to(place.device)
            ).last_hidden_state
            logits = model.lm_head(hidden[:, len(prompt) - 1 :])
        return functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100)

    def language_nll(chosen: list[NDArray[np.int64]]) -> Tensor:
        with place.autocast():
            logits = language(pad(chosen, end)[:, :-1].to(place.device))
        return next_words(logits, chosen)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        chosen = rng.choice(usable, recipe.caption_batch, replace=False)
        views = [random_view(rng, 0.5) for _ in chosen]
        pixels = pixel_values([images[i] for i in chosen], views, recipe.image_size)
        value = nll(pixels, [captions[i][rng.integers(len(captions[i]))] for i in chosen], recipe.wrong_words)
        # Sentences without pictures keep the language from narrowing to that of 900 photographs.
        others = [sentences[i] for i in rng.integers(len(sentences), size=recipe.caption_batch)]
        return value + 0.3 * language_nll(others)

    test = [(image, encode_captions(tokenizer, image.captions, [], end)) for image in data.held_out]
    test_pixels = pixel_values(
        [load_pixels(data.root, image.path, 192) for image, _ in test], [WHOLE] * len(test), recipe.image_size
    )
    test_captions = [rows[0] for _, rows in test]

    def evaluate() -> dict[str, float]:
        return {
            "held_out_nll": float(nll(test_pixels, test_captions)),
            "held_out_nll_shuffled": float(nll(test_pixels.roll(7, dims=0), test_captions)),
        }

    def rate(name: str) -> float:
        # The projection is new, the rest is trained: let it learn to look before the others learn by heart.
        return 1.0 if "projector" in name else recipe.trained_rate

    return fit("captions", model, loss, recipe.captions, work, evaluate, recipe.seed, rate, place=place)


def train(data: Path, work: Path, output: Path, recipe: LlavaRecipe = LlavaRecipe(), place: Device = CPU) -> dict:
    """Train all stages, save the checkpoint and its logs, and describe the training photographs.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoints, of the teacher's features, and of ``block_captions.json``.
        output: folder the model is written to.
        recipe: sizes, lengths and rates.
        place: to train on.

    Returns:
        What ``multisc.training.captioning.measure`` found.
    """
    captions = load_caption_data(data)
    tokenizer = make_tokenizer(captions.training_sentences)
    model = make_model(tokenizer, recipe)
    model.set_attn_implementation(place.attention)
    log = train_language_model(
        model, tokenizer, captions.training_sentences, list(captions.held_out_sentences), recipe, work, place
    )
    log += train_tower(model, captions, recipe, work, place)
    log += train_captions(model, tokenizer, captions, recipe, work, place)
    model.config.consensus_samples = recipe.consensus_samples
    model.config.consensus_temperature = recipe.consensus_temperature
    model.cpu().half().save_pretrained(output)
    make_processor(tokenizer, recipe).save_pretrained(output)
    captioner = Captioner.load(output, place.device)
    quality = measure(captioner, captions)
    record = {"recipe": asdict(recipe), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    write_block_captions(captioner, captions, work / "block_captions.json")
    return quality


def train_tower(
    model: LlavaForConditionalGeneration, data: CaptionData, recipe: LlavaRecipe, work: Path, place: Device = CPU
) -> list[dict]:
    """Train the vision tower on the teacher's features; see ``fit`` for what is returned and left in ``work``."""
    photographs = [*data.train, *data.held_out, *data.unlabelled]
    features = teacher_features(data.root, [image.path for image in photographs], work / "teacher.npy")
    held_out = {image.path for image in data.held_out}
    return distil(
        model.model.vision_tower,
        [load_pixels(data.root, image.path, 192) for image in photographs],
        principal_features(features),
        np.array([image.path in held_out for image in photographs]),
        recipe.tower,
        recipe.batch,
        work,
        recipe.seed,
        place,
    )
