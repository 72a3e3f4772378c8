"""Training of the embedded LLaVA (paper section III-B): language model on sentences, then on what the encoder sees.

The vision tower is the pretrained EfficientNet-Lite0 and stays as it is, so its vectors are computed once.
"""

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
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
)

from multisc.models.captioner import PAPER_QUERY, Captioner
from multisc.models.efficientnet_lite import DEVIATION, MEAN, EfficientNetLiteConfig, load_pretrained
from multisc.models.shared_encoder import DIRECTORY, save_encoder, save_without_encoder
from multisc.training.captioned import CaptionedBatches, CaptionedViews, look_at_all
from multisc.training.captioning import measure, write_block_captions
from multisc.training.data import CaptionData, load_caption_data
from multisc.training.device import CPU, Device
from multisc.training.looks import Viewing
from multisc.training.loop import Schedule, fit
from multisc.training.sentences import encode_captions, next_words, pad, train_on_sentences
from multisc.training.tokenizers import IMAGE_TOKEN, qwen2_tokenizer, train_bpe

TESTED = 200  # held-out photographs that the log tells the likelihood of
VOCABULARY = 4094  # and two special tokens: 12 bits
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
        grid: cells of the encoder's feature map on a side that the language model sees.
        viewing: which views of the photographs it sees.
        seed: of weights and batches.
        batch: sentences a step while the language model is trained alone.
        photographs: of which a step of the last stage sees one view each, with all sentences of each.
        named: how many of these have class names in place of sentences.
        trained_rate: factor on the learning rate of what was trained before, in the last stage.
        wrong_words: share of the words before that are blotted out in that stage: what cannot be guessed from
            words must be seen.
        blur: deviation of the noise on the encoder's vectors, over theirs.
        consensus_samples, consensus_temperature: how descriptions are found in the end, see ``Captioner``.
        language, captions: the stages.
    """

    grid: int = 4
    viewing: Viewing = field(default_factory=Viewing)
    seed: int = 1
    batch: int = 128
    photographs: int = 24
    named: int = 3
    trained_rate: float = 0.5
    wrong_words: float = 0.15
    blur: float = 0.1
    consensus_samples: int = 32
    consensus_temperature: float = 0.5
    language: Schedule = field(default_factory=lambda: Schedule(steps=600, learning_rate=2e-3, save_every=100))
    captions: Schedule = field(default_factory=lambda: Schedule(steps=3600, learning_rate=1.5e-3, save_every=200))


def make_tokenizer(sentences: list[str]) -> Qwen2Tokenizer:
    """Return the tokenizer of the embedded LLaVA, trained on the captions and the paper's query."""
    # The query precedes every caption; seen a thousand times its words become single tokens.
    corpus = [*sentences, *[f"\n{PAPER_QUERY}\n"] * 1000]
    return qwen2_tokenizer(*train_bpe(corpus, VOCABULARY), max_length=128)


def make_model(tokenizer: Qwen2Tokenizer, recipe: LlavaRecipe) -> LlavaForConditionalGeneration:
    """Return a LLaVA of the pretrained encoder and an untrained small Qwen2."""
    torch.manual_seed(recipe.seed)
    vision = EfficientNetLiteConfig(grid=recipe.grid, shared=DIRECTORY)
    language = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=320,
        intermediate_size=896,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
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
        vision_feature_select_strategy="full",
        image_seq_length=vision.tokens,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    load_pretrained(model.model.vision_tower.encoder)
    model.model.vision_tower.requires_grad_(False)
    return model


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


def make_processor(tokenizer: Qwen2Tokenizer, model: LlavaForConditionalGeneration) -> LlavaProcessor:
    """Return the processor that turns pictures and the query into the model's inputs."""
    # The whole picture squeezed to a square, rather than its middle: what is at the sides counts too.
    vision = model.config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=size, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3
        ),
        tokenizer=tokenizer,
        patch_size=vision.image_size // vision.grid,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=vision.tokens - vision.grid**2,
        chat_template=CHAT_TEMPLATE,
    )


@dataclass(frozen=True)
class Pack:
    """Several sentences about one picture, in one sequence after one prompt: none sees another.

    Args:
        ids: int64 (B, length), the sentences one after the other, filled up on the right.
        labels: what follows each, -100 where nothing does.
        positions: int64 (B, prompt + length), of prompt and sentences.
        mask: float32 (B, 1, prompt + length, prompt + length), 0 where one may look and very low elsewhere.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


def pack(sentences: list[list[NDArray[np.int64]]], prompt: int, first: int, filler: int) -> Pack:
    """Lay out the sentences of each picture; each is a row of token ids that ends with the end of text.

    Args:
        sentences: of each picture.
        prompt: tokens before them.
        first: the last token of the prompt, from which a sentence's first word is told.
        filler: token id that fills up.
    """
    # A sentence of n tokens takes n places: the prompt's last token again, then its words but the last.
    longest = max(sum(map(len, rows)) for rows in sentences)
    count = len(sentences)
    ids = np.full((count, longest), filler)
    labels = np.full((count, longest), -100)
    positions = np.tile(np.arange(prompt + longest), (count, 1))
    part = np.full((count, prompt + longest), -1)
    part[:, :prompt] = 0
    for b, rows in enumerate(sentences):
        at = 0
        for number, row in enumerate(rows):
            end = at + len(row)
            ids[b, at:end] = [first, *row[:-1]]
            labels[b, at:end] = row
            positions[b, prompt + at : prompt + end] = prompt + np.arange(len(row))
            part[b, prompt + at : prompt + end] = number + 1
            at = end
    causal = np.tri(prompt + longest, dtype=bool)
    same = (part[:, :, None] == part[:, None]) | (part[:, None] == 0)
    allowed = causal & same
    mask = torch.where(torch.from_numpy(allowed)[:, None], 0.0, -1e9)
    return Pack(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(positions), mask)


def train_captions(
    model: LlavaForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    data: CaptionData,
    views: dict[str, CaptionedViews],
    recipe: LlavaRecipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train projection and language model together on captioned photographs.

    The embedding table stays as it is: it is the code book of the text channel, on which BART is trained meanwhile.
    See ``fit`` for what is returned and left in ``work``.

    Args:
        model: trained in place.
        tokenizer: its own.
        data: captions.
        views: what the encoder sees of the photographs, as ``look_at_all`` returns it.
        recipe: sizes, lengths and rates.
        work: directory for checkpoint and log.
        place: to train on.
    """
    model.get_input_embeddings().weight.requires_grad_(False)
    end = tokenizer.eos_token_id
    query = tokenizer.encode(f"\n{PAPER_QUERY}\n")
    # The last token of the query is repeated before each sentence, in the same place.
    prompt = model.config.image_seq_length + len(query) - 1
    start = query[-1]
    sentences = encode_captions(tokenizer, data.sentences, [start], end)
    language = _LanguageModel(model)
    query_ids = torch.tensor(query[:-1], device=place.device)

    def nll(vectors: Tensor, chosen: list[list[NDArray[np.int64]]], wrong: float = 0.0) -> Tensor:
        """Cross-entropy of the sentences, given the pictures and the words before, some of them wrong."""
        batch = pack(chosen, prompt, start, end)
        ids = batch.ids.clone()
        ids[(torch.rand(ids.shape) < wrong) & (batch.positions[:, prompt:] > prompt)] = end
        embed = model.get_input_embeddings()
        with place.autocast():
            seen = model.model.multi_modal_projector(vectors.to(place.device))
            asked = embed(query_ids).expand(len(ids), -1, -1)
            inputs = torch.cat([seen, asked.to(seen), embed(ids.to(place.device)).to(seen)], 1)
            hidden = model.model.language_model(
                inputs_embeds=inputs,
                attention_mask=batch.mask.to(place.device, inputs.dtype),
                position_ids=batch.positions.to(place.device),
                use_cache=False,
            ).last_hidden_state
            known = batch.labels.to(place.device) != -100
            logits = model.lm_head(hidden[:, prompt:][known])
        return functional.cross_entropy(logits.float(), batch.labels.to(place.device)[known])

    batches = CaptionedBatches(views, recipe.photographs, recipe.named, recipe.blur, every=True)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        batch = batches.draw(rng)
        value = nll(batch.vectors, batch.sentences, recipe.wrong_words)
        # Sentences without pictures keep the language from narrowing to that of the photographs.
        others = [sentences[i] for i in rng.integers(len(sentences), size=recipe.photographs)]
        with place.autocast():
            logits = language(pad(others, end)[:, :-1].to(place.device))
        return value + 0.1 * next_words(logits, others)

    test_rows = views["held_out"].usable[:TESTED]
    test_vectors = views["held_out"].looks.whole(test_rows)
    test_captions = [views["held_out"].sentences[i] for i in test_rows]

    def evaluate() -> dict[str, float]:
        return {
            "held_out_nll": float(nll(test_vectors, test_captions)),
            "held_out_nll_shuffled": float(nll(test_vectors.roll(7, dims=0), test_captions)),
        }

    def rate(name: str) -> float:
        # The projection is new, the rest is trained: let it learn to look before the others learn by heart.
        return 1.0 if "projector" in name else recipe.trained_rate

    return fit("captions", model, loss, recipe.captions, work, evaluate, recipe.seed, rate, place=place)


def train(data: Path, work: Path, output: Path, recipe: LlavaRecipe = LlavaRecipe(), place: Device = CPU) -> dict:
    """Train all stages, save the checkpoint and its logs, and describe the training photographs.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoints, of the encoder's vectors, and of ``block_captions.json``.
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
    views = look_at_all(
        model.model.vision_tower, captions, recipe.viewing, work, tokenizer, [], tokenizer.eos_token_id
    )
    log += train_captions(model, tokenizer, captions, views, recipe, work, place)
    model.config.consensus_samples = recipe.consensus_samples
    model.config.consensus_temperature = recipe.consensus_temperature
    save_encoder(model.model.vision_tower.encoder, output.parent / DIRECTORY)
    save_without_encoder(model.cpu(), output)
    make_processor(tokenizer, model).save_pretrained(output)
    captioner = Captioner.load(output, place.device)
    quality = measure(captioner, captions)
    record = {"recipe": asdict(recipe), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    write_block_captions(captioner, captions, work / "block_captions.json")
    return quality
