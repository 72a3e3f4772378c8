"""Training of the embedded LLaVA (paper section III-B): language model, vision tower, then all together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, Qwen2Tokenizer

from multisc.models.captioner import PAPER_QUERY
from multisc.training.loop import Schedule, fit
from multisc.training.tokenizers import IMAGE_TOKEN, qwen2_tokenizer, train_bpe

VOCABULARY = 1500
MAX_TOKENS = 22
# What the language model sees before a caption; chat template and training agree on it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{{ '\n' }}"
)


@dataclass(frozen=True)
class LlavaRecipe:
    """Sizes, lengths and rates of the embedded LLaVA."""

    image_size: int = 96
    patch_size: int = 16
    seed: int = 1
    batch: int = 64
    language: Schedule = field(default_factory=lambda: Schedule(steps=2500, learning_rate=3e-3, save_every=250))


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


def encode_captions(tokenizer: Qwen2Tokenizer, sentences: list[str], start: str = "\n") -> list[NDArray[np.int64]]:
    """Return start, caption and end of text as token ids, leaving out captions of more than ``MAX_TOKENS``."""
    first, end = tokenizer.encode(start), [tokenizer.eos_token_id]
    ids = [tokenizer.encode(sentence) for sentence in sentences]
    return [np.asarray(first + caption + end) for caption in ids if len(caption) <= MAX_TOKENS]


def pad(rows: list[NDArray[np.int64]], value: int) -> Tensor:
    """Stack rows of different lengths, filled up with ``value`` on the right; int64 of shape (rows, longest)."""
    out = np.full((len(rows), max(map(len, rows))), value)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(out)


def train_language_model(
    model: LlavaForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    sentences: list[str],
    held_out: list[str],
    recipe: LlavaRecipe,
    work: Path,
) -> list[dict]:
    """Train the language model alone on sentences; see ``fit`` for what it returns and leaves in ``work``."""
    train, test = encode_captions(tokenizer, sentences), encode_captions(tokenizer, held_out)
    language = _LanguageModel(model)

    def nll(rows: list[NDArray[np.int64]]) -> Tensor:
        # Sorted neighbours waste less on padding; the end of text doubles as padding, so mask by length.
        ids, labels = pad(rows, tokenizer.eos_token_id), pad(rows, -100)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model.language_model(input_ids=ids[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden)
        return torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels[:, 1:], ignore_index=-100)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        return nll([train[i] for i in rng.integers(len(train), size=recipe.batch)])

    def evaluate() -> dict[str, float]:
        return {"held_out_nll": float(np.mean([float(nll(test[i : i + 100])) for i in range(0, len(test), 100)]))}

    return fit("language", language, loss, recipe.language, work, evaluate, recipe.seed)


class _LanguageModel(torch.nn.Module):
    """The parts of a LLaVA that the language stage trains, as one module."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.head = model.lm_head
