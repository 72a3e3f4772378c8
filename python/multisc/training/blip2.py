"""Training of the embedded BLIP-2: language model, then the feature y of the Q-Former, then captions from y.

y must serve two receivers, so it is taught both: what a caption says, and what a picture looks like. In the second
stage each of its tokens stands for one field of a square grid over the picture, whose colours and whose features of
the encoder it must tell; all through noise, since y will be sent.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2Config, Blip2Processor, Blip2QFormerConfig, Blip2VisionConfig, GPT2Tokenizer, OPTConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from multisc.models.efficientnet_lite import DEVIATION, MEAN, EfficientNetLiteConfig
from multisc.models.encoder_blip import EncoderBlip2, unused_tower
from multisc.models.shared_encoder import DIRECTORY, load_encoder, save_without_encoder
from multisc.training.blip_tokenizers import opt_tokenizer
from multisc.training.captioned import Batch, CaptionedBatches, CaptionedViews, groups_of, look_at_all, paths_of
from multisc.training.data import load_caption_data
from multisc.training.device import CPU, Device
from multisc.training.llava import VOCABULARY
from multisc.training.looks import Viewing, thumbnails
from multisc.training.loop import Schedule, fit
from multisc.training.sentences import encode_captions, next_words, pad, train_on_sentences
from multisc.training.tokenizers import IMAGE_TOKEN, train_bpe

THUMBNAIL = 2  # pixels a side of the thumbnail's part that one token of y tells
COMPONENTS = 64  # of the encoder's features that y must tell
SNR_DB = (-2.0, 20.0)
TESTED = 200  # held-out photographs that the logs measure on


@dataclass(frozen=True)
class Blip2Recipe:
    """Sizes, lengths and rates of the embedded BLIP-2.

    Args:
        grid: side of the square that the tokens of y stand for; there are ``grid`` squared of them.
        width: of a token of y.
        viewing: which views of the photographs it sees.
        seed: of weights, batches and noise.
        batch: sentences or views a step.
        named: views of a batch of which only the classes are known.
        blur: see ``CaptionedBatches``.
        trained_rate: factor on the learning rate of what was trained before, in the last stage.
        wrong_words: share of the words before that are blotted out in the last stage.
        look: weight of the second stage's losses in the last one.
        language, feature, captions: the stages.
    """

    grid: int = 4
    width: int = 128
    viewing: Viewing = field(default_factory=Viewing)
    seed: int = 5
    batch: int = 64
    named: int = 12
    blur: float = 0.1
    trained_rate: float = 0.3
    wrong_words: float = 0.15
    look: float = 0.3
    language: Schedule = field(default_factory=lambda: Schedule(steps=800, learning_rate=2e-3, save_every=100))
    feature: Schedule = field(default_factory=lambda: Schedule(steps=1500, learning_rate=2e-3, save_every=250))
    captions: Schedule = field(default_factory=lambda: Schedule(steps=3000, learning_rate=1.5e-3, save_every=250))


class Trainee(nn.Module):
    """A BLIP-2 with what its feature is tested by, kept together for resumable checkpoints.

    Args:
        model: BLIP-2.
        components: of the encoder's features that y must tell.
    """

    def __init__(self, model: EncoderBlip2, components: int) -> None:
        super().__init__()
        self.model = model
        width = model.config.qformer_config.hidden_size
        self.colours = nn.Linear(width, 3 * THUMBNAIL**2)
        self.fields = nn.Linear(width, components)
        self.whole = nn.Linear(width, components)

    def feature(self, vectors: Tensor) -> Tensor:
        """Return y (B, N, D) of the encoder's vectors (B, tokens, 1280)."""
        queries = self.model.query_tokens.expand(len(vectors), -1, -1)
        return self.model.qformer(query_embeds=queries, encoder_hidden_states=vectors).last_hidden_state

    def language(self, feature: Tensor, ids: Tensor) -> Tensor:
        """Return the logits (B, L, V) after each of the token ids (B, L), said of y (B, N, D)."""
        words = self.model.get_input_embeddings()(ids)
        prefix = self.model.language_projection(feature).to(words.dtype)
        hidden = self.model.language_model.model(inputs_embeds=torch.cat([prefix, words], 1)).last_hidden_state
        return self.model.language_model.lm_head(hidden[:, prefix.shape[1] :])


def noisy(feature: Tensor, snr_db: Tensor) -> Tensor:
    """Add noise to y (B, N, D) at signal-to-noise ratios (B,) in dB; the signal is what differs between pictures."""
    power = (feature - feature.mean(0)).detach().square().mean()
    drawn, ratio = torch.randn(feature.shape).to(feature.device), 10 ** (-snr_db.to(feature.device) / 10)
    return feature + drawn * (power * ratio).sqrt()[:, None, None]


def random_snr(count: int) -> Tensor:
    """Draw ``count`` ratios in dB, evenly over ``SNR_DB``."""
    return torch.empty(count).uniform_(*SNR_DB)


def make_tokenizer(sentences: list[str]) -> GPT2Tokenizer:
    """Return the tokenizer of the embedded BLIP-2."""
    return opt_tokenizer(*train_bpe(sentences, VOCABULARY), max_length=64)


def make_model(tokenizer: GPT2Tokenizer, recipe: Blip2Recipe) -> EncoderBlip2:
    """Return an untrained BLIP-2 with a small OPT behind the shared encoder, whose weights are not loaded."""
    torch.manual_seed(recipe.seed)
    vision = EfficientNetLiteConfig(grid=recipe.grid, shared=DIRECTORY)
    former = Blip2QFormerConfig(
        hidden_size=recipe.width,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=3 * recipe.width,
        encoder_hidden_size=vision.hidden_size,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    language = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        word_embed_proj_dim=192,
        ffn_dim=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=96,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = Blip2Config(
        vision_config=unused_tower(Blip2VisionConfig, vision),
        qformer_config=former,
        text_config=language,
        num_query_tokens=recipe.grid**2,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_encoder={"grid": vision.grid, "image_size": vision.image_size, "shared": vision.shared},
    )
    model = EncoderBlip2(config)
    model.vision_model.requires_grad_(False)
    # The class starts with equal queries, which would stay equal.
    nn.init.normal_(model.query_tokens)
    return model


def make_processor(tokenizer: GPT2Tokenizer, image_size: int, recipe: Blip2Recipe) -> Blip2Processor:
    """Return the processor that squeezes pictures to the encoder's square."""
    size = {"height": image_size, "width": image_size}
    pictures = BlipImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)
    return Blip2Processor(pictures, tokenizer, num_query_tokens=recipe.grid**2)


def train_language_model(
    trainee: Trainee,
    train: list[NDArray[np.int64]],
    test: list[NDArray[np.int64]],
    recipe: Blip2Recipe,
    work: Path,
    place: Device = CPU,
) -> list[dict]:
    """Train the language model alone on sentences; see ``fit`` for what it returns and leaves in ``work``."""
    language, first = trainee.model.language_model, recipe.grid**2

    def logits(ids: Tensor) -> Tensor:
        # The places behind y, where the words will stand.
        places = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
        return language(input_ids=ids, position_ids=places, use_cache=False).logits

    name, filler = "blip2-language", language.config.pad_token_id
    return train_on_sentences(
        name, language, logits, filler, train, test, recipe.language, recipe.batch, work, recipe.seed, place
    )


class Targets:
    """What y must tell of a view: the colours of its fields, and the encoder's features of them.

    Args:
        groups: encoded views of the photographs.
        colours: thumbnails of the same views, uint8 (photographs, views, side, side, 3) each.
        components: of the features that are kept, the strongest ones.
        place: where batches go.
    """

    def __init__(
        self,
        groups: dict[str, CaptionedViews],
        colours: dict[str, NDArray[np.uint8]],
        components: int,
        place: Device = CPU,
    ) -> None:
        self.place = place
        self._colours = colours
        vectors = groups["train"].looks.vectors
        cells = vectors[:: max(1, len(vectors) // 500), 0, 2:].astype(np.float32).reshape(-1, vectors.shape[-1])
        self._mean = torch.from_numpy(cells.mean(axis=0))
        values, basis = np.linalg.eigh(np.cov(cells.T))
        self._basis = torch.from_numpy((basis[:, ::-1][:, :components] / np.sqrt(values[-1])).astype(np.float32))

    def of(self, vectors: Tensor, origin: list[tuple[str, int, int]]) -> tuple[Tensor, Tensor]:
        """Return thumbnails (B, 3, side, side), 0 to 1, and features of the fields (B, N, components)."""
        small = np.stack([self._colours[name][row, view] for name, row, view in origin])
        colours = torch.from_numpy(small.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
        device = self.place.device
        return colours.to(device), ((vectors[:, 2:] - self._mean) @ self._basis).to(device)


def errors(trainee: Trainee, feature: Tensor, targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Squared errors, each relative to always answering the mean, of what y as received tells."""
    colours, fields = targets
    side = round(feature.shape[1] ** 0.5)
    said = trainee.colours(feature).float().unflatten(1, (side, side)).unflatten(3, (3, THUMBNAIL, -1))
    said = said.permute(0, 3, 1, 4, 2, 5).reshape(colours.shape)
    whole = fields.mean(1)
    spread = whole.std(0) + 1e-3

    def relative(found: Tensor, expected: Tensor) -> Tensor:
        return functional.mse_loss(found.float(), expected) / expected.square().mean()

    return {
        "colours": functional.mse_loss(said, colours) / (colours - colours.mean((0, 2, 3), True)).square().mean(),
        "fields": relative(trainee.fields(feature), fields),
        "whole": relative(trainee.whole(feature.mean(1)), whole / spread),
    }


def _sum(parts: dict[str, Tensor]) -> Tensor:
    return 2.0 * parts["colours"] + parts["fields"] + parts["whole"]


@dataclass(frozen=True)
class Test:
    """Held-out views: the encoder's vectors, what y must tell of them, and a sentence of each."""

    vectors: Tensor
    targets: tuple[Tensor, Tensor]
    sentences: list[NDArray[np.int64]]


def make_test(views: CaptionedViews, targets: Targets) -> Test:
    """Take the first ``TESTED`` held-out photographs that have a sentence."""
    rows = views.usable[:TESTED]
    vectors = views.looks.whole(rows)
    found = targets.of(vectors, [("held_out", int(row), 0) for row in rows])
    return Test(vectors.to(targets.place.device), found, [views.sentences[row][0] for row in rows])


def train_feature(
    trainee: Trainee, batches: CaptionedBatches, targets: Targets, test: Test, recipe: Blip2Recipe, work: Path
) -> list[dict]:
    """Train the Q-Former to tell what pictures show; see ``fit`` for what it returns and leaves in ``work``."""
    trainee.model.language_model.requires_grad_(False)
    place = targets.place

    def loss(step: int) -> Tensor:
        batch = batches.draw(np.random.default_rng([recipe.seed, step]))
        with place.autocast():
            feature = trainee.feature(batch.vectors.to(place.device))
            received = noisy(feature.float(), random_snr(len(feature)))
            return _sum(errors(trainee, received, targets.of(batch.vectors, batch.origin)))

    def evaluate() -> dict[str, float]:
        feature = trainee.feature(test.vectors)
        torch.manual_seed(recipe.seed)
        at_5_db = noisy(feature, torch.full((len(feature),), 5.0))
        clean, received = (errors(trainee, y, test.targets) for y in (feature, at_5_db))
        return {f"explained_{key}": 1.0 - float(value) for key, value in clean.items()} | {
            "explained_colours_5_db": 1.0 - float(received["colours"])
        }

    log = fit("blip2-feature", trainee, loss, recipe.feature, work, evaluate, recipe.seed, place=place)
    trainee.model.language_model.requires_grad_(True)
    return log


def train_captions(
    trainee: Trainee,
    batches: CaptionedBatches,
    targets: Targets,
    test: Test,
    sentences: list[NDArray[np.int64]],
    recipe: Blip2Recipe,
    work: Path,
) -> list[dict]:
    """Train all on captioned views, and on sentences; see ``fit`` for what it returns and leaves in ``work``."""
    model, place = trainee.model, targets.place
    model.get_input_embeddings().weight.requires_grad_(False)
    filler = model.config.text_config.pad_token_id

    def nll(feature: Tensor, rows: list[NDArray[np.int64]], wrong: float = 0.0) -> Tensor:
        ids = pad(rows, filler)[:, :-1]
        blotted = torch.rand(ids.shape) < wrong
        blotted[:, 0] = False
        ids[blotted] = filler
        return next_words(trainee.language(feature, ids.to(place.device)), rows)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        batch: Batch = batches.draw(rng)
        with place.autocast():
            feature = trainee.feature(batch.vectors.to(place.device)).float()
            received = noisy(feature, random_snr(len(feature)))
            look = _sum(errors(trainee, received, targets.of(batch.vectors, batch.origin)))
            value = nll(received, [said[0] for said in batch.sentences], recipe.wrong_words)
            # Sentences without pictures keep the language from narrowing to that of the photographs.
            others = [sentences[i] for i in rng.integers(len(sentences), size=recipe.batch // 4)]
            value = value + 0.1 * nll(torch.zeros_like(feature[: len(others)]), others)
        return value + recipe.look * look

    def evaluate() -> dict[str, float]:
        feature = trainee.feature(test.vectors)
        torch.manual_seed(recipe.seed)
        received = noisy(feature, torch.full((len(feature),), 5.0))
        return {
            "held_out_nll": float(nll(feature, test.sentences)),
            "held_out_nll_5_db": float(nll(received, test.sentences)),
            "held_out_nll_shuffled": float(nll(feature.roll(7, dims=0), test.sentences)),
        }

    def rate(name: str) -> float:
        return 1.0 if "language_projection" in name else recipe.trained_rate

    return fit("blip2-captions", trainee, loss, recipe.captions, work, evaluate, recipe.seed, rate, place=place)


def train(
    data: Path, work: Path, encoder: Path, output: Path, recipe: Blip2Recipe = Blip2Recipe(), place: Device = CPU
) -> dict:
    """Train all stages; save the checkpoint and its logs.

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
    tokenizer = make_tokenizer(captions.training_sentences)
    model = make_model(tokenizer, recipe)
    model.vision_model.encoder = load_encoder(encoder)
    model.set_attn_implementation(place.attention)
    end, viewing = tokenizer.eos_token_id, recipe.viewing
    views = look_at_all(model.vision_model, captions, viewing, work, tokenizer, [end], end)
    colours = {
        name: thumbnails(
            data, paths_of(images), work / f"thumbnails_{name}.npy", viewing.of_group(name), recipe.grid * THUMBNAIL
        )
        for name, images in groups_of(captions).items()
    }
    sentences, further, unseen = (
        encode_captions(tokenizer, texts, [end], end)
        for texts in (captions.training_sentences, captions.sentences, captions.held_out_sentences)
    )
    trainee, targets = Trainee(model, COMPONENTS), Targets(views, colours, COMPONENTS, place)
    batches = CaptionedBatches(views, recipe.batch, recipe.named, recipe.blur, every=False)
    test = make_test(views["held_out"], targets)
    logs = [
        train_language_model(trainee, sentences, unseen, recipe, work, place),
        train_feature(trainee, batches, targets, test, recipe, work),
        train_captions(trainee, batches, targets, test, further, recipe, work),
    ]
    save_without_encoder(model.cpu(), output)
    make_processor(tokenizer, model.vision_model.config.image_size, recipe).save_pretrained(output)
    quality = {log[0]["stage"]: log[-1] for log in logs}
    record = {"recipe": asdict(recipe), "held_out": quality, "log": [row for log in logs for row in log]}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    return quality
