"""Training of the embedded BLIP-2: language model, then the feature y of the Q-Former, then captions from y.

y must serve two receivers, so it is taught both: what a caption says, and what a picture looks like. In the second
stage each of its tokens stands for one field of a square grid over the picture, whose colours and whose teacher's
features (``multisc.training.distil``) it must tell; all through noise, since y will be sent.
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
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    CLIPVisionModel,
    GPT2Tokenizer,
    OPTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from multisc.models.captioner import Captioner
from multisc.training.blip_tokenizers import opt_tokenizer
from multisc.training.data import CaptionData, load_caption_data, load_pixels
from multisc.training.device import CPU, Device
from multisc.training.distil import COMPONENTS, principal_features, teacher_features
from multisc.training.llava import VOCABULARY
from multisc.training.loop import Schedule, fit
from multisc.training.sentences import encode_captions, next_words, pad, train_on_sentences
from multisc.training.tokenizers import IMAGE_TOKEN, train_bpe
from multisc.training.towers import copy_tower, vision_config
from multisc.training.views import WHOLE, View, pixel_values, random_view

THUMBNAIL = 2  # pixels a side of the thumbnail's part that one token of y tells
SNR_DB = (-2.0, 20.0)


@dataclass(frozen=True)
class Blip2Recipe:
    """Sizes, lengths and rates of the embedded BLIP-2.

    Args:
        grid: side of the square that the tokens of y stand for; there are ``grid`` squared of them.
        width: of a token of y.
        seed: of weights, batches, views and noise.
        batch: sentences or views a step.
        caption_batch: captioned views a step.
        trained_rate: factor on the learning rate of what was trained before, in the last stage.
        wrong_words: share of the words before that are blotted out in the last stage.
        look: weight of the second stage's losses in the last one.
        language, feature, captions: the stages.
    """

    grid: int = 4
    width: int = 128
    seed: int = 5
    batch: int = 48
    caption_batch: int = 32
    trained_rate: float = 0.2
    wrong_words: float = 0.15
    look: float = 0.3
    language: Schedule = field(default_factory=lambda: Schedule(steps=1300, learning_rate=3e-3, save_every=100))
    feature: Schedule = field(default_factory=lambda: Schedule(steps=2500, learning_rate=1e-3, save_every=250))
    captions: Schedule = field(default_factory=lambda: Schedule(steps=500, learning_rate=2e-3, save_every=100))


class Trainee(nn.Module):
    """A BLIP-2 with what its feature is tested by, kept together for resumable checkpoints.

    Args:
        model: BLIP-2.
        components: of the teacher's features.
    """

    def __init__(self, model: Blip2ForConditionalGeneration, components: int) -> None:
        super().__init__()
        self.model = model
        width = model.config.qformer_config.hidden_size
        self.colours = nn.Linear(width, 3 * THUMBNAIL**2)
        self.fields = nn.Linear(width, components)
        self.whole = nn.Linear(width, components)
        self.patches = nn.Linear(model.config.vision_config.hidden_size, components)

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tower's tokens (B, P, W), the first one the class token, and y (B, N, D)."""
        seen = self.model.vision_model(pixels).last_hidden_state
        queries = self.model.query_tokens.expand(len(pixels), -1, -1)
        return seen, self.model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

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


def make_model(tokenizer: GPT2Tokenizer, clip: CLIPVisionModel, recipe: Blip2Recipe) -> Blip2ForConditionalGeneration:
    """Return an untrained BLIP-2 with a small OPT, and a tower of the sizes of ``clip``."""
    torch.manual_seed(recipe.seed)
    former = Blip2QFormerConfig(
        hidden_size=recipe.width,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=3 * recipe.width,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    language = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        word_embed_proj_dim=192,
        ffn_dim=448,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=96,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = Blip2Config(
        vision_config=vision_config(clip),
        qformer_config=former,
        text_config=language,
        num_query_tokens=recipe.grid**2,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    model = Blip2ForConditionalGeneration(config)
    # The class starts with equal queries, which would stay equal.
    nn.init.normal_(model.query_tokens)
    return model


def make_processor(tokenizer: GPT2Tokenizer, image_size: int, recipe: Blip2Recipe) -> Blip2Processor:
    """Return the processor that squeezes pictures to the tower's square."""
    pictures = BlipImageProcessorPil(size={"height": image_size, "width": image_size})
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


class Looking:
    """The second stage's losses: how well y and the tower tell what a view shows.

    Args:
        trainee: that looks.
        images: photographs, uint8 (H, W, 3).
        features: of the teacher, (photographs, components, 33, 33).
        grid: side of the square of y's tokens.
        place: where batches go.
    """

    def __init__(
        self,
        trainee: Trainee,
        images: list[NDArray[np.uint8]],
        features: NDArray[np.float16],
        grid: int,
        place: Device = CPU,
    ) -> None:
        self.place = place
        self._trainee, self._images, self._features, self._grid = trainee, images, features, grid
        config = trainee.model.config.vision_config
        self._size, self._patches = config.image_size, config.image_size // config.patch_size
        means = features[:, :, ::4, ::4].astype(np.float32).mean(axis=(2, 3))
        self._spread = torch.from_numpy(means.std(axis=0)).to(place.device)

    def batch(self, rows: NDArray[np.intp], views: list[View]) -> tuple[Tensor, Tensor]:
        """Return pixels (B, 3, side, side) and the teacher's maps (B, components, cells, cells) of views."""
        cells = int(np.lcm(self._grid, self._patches))
        maps = [
            view.cut(torch.from_numpy(self._features[row]), cells, "area")
            for row, view in zip(rows, views, strict=True)
        ]
        pixels = pixel_values([self._images[row] for row in rows], views, self._size)
        return pixels.to(self.place.device), torch.stack(maps).to(self.place.device)

    def errors(self, pixels: Tensor, maps: Tensor, seen: Tensor, feature: Tensor) -> dict[str, Tensor]:
        """Squared errors, each relative to always answering the mean, of the tower's tokens and of y as received."""
        fields = self._grid
        small = functional.adaptive_avg_pool2d(pixels, fields * THUMBNAIL)
        said = self._trainee.colours(feature).float().unflatten(1, (fields, fields)).unflatten(3, (3, THUMBNAIL, -1))
        said = said.permute(0, 3, 1, 4, 2, 5).reshape(small.shape)
        field_maps = functional.adaptive_avg_pool2d(maps, fields).flatten(2).transpose(1, 2)
        patch_maps = functional.adaptive_avg_pool2d(maps, self._patches).flatten(2).transpose(1, 2)
        whole = maps.mean(dim=(2, 3)) / self._spread
        trainee = self._trainee

        def relative(found: Tensor, wanted: Tensor) -> Tensor:
            return functional.mse_loss(found.float(), wanted) / wanted.square().mean()

        return {
            "colours": functional.mse_loss(said, small) / (small - small.mean((0, 2, 3), True)).square().mean(),
            "fields": relative(trainee.fields(feature), field_maps),
            "whole": relative(trainee.whole(feature.mean(1)), whole),
            "patches": relative(trainee.patches(seen[:, 1:]), patch_maps),
        }


def train_feature(
    trainee: Trainee,
    looking: Looking,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    recipe: Blip2Recipe,
    work: Path,
) -> list[dict]:
    """Train tower and Q-Former to tell what pictures show; see ``fit`` for what it returns and leaves in ``work``."""
    trainee.model.language_model.requires_grad_(False)
    place = looking.place

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        rows = rng.choice(train, recipe.batch, replace=False)
        pixels, maps = looking.batch(rows, [random_view(rng, 0.2) for _ in rows])
        with place.autocast():
            seen, feature = trainee.look(pixels)
            errors = looking.errors(pixels, maps, seen, noisy(feature.float(), random_snr(len(rows))))
        return 2.0 * errors["colours"] + errors["fields"] + errors["whole"] + 0.5 * errors["patches"]

    fixed = looking.batch(test, [WHOLE] * len(test))

    def evaluate() -> dict[str, float]:
        seen, feature = trainee.look(fixed[0])
        clean = {key: 1.0 - float(value) for key, value in looking.errors(*fixed, seen, feature).items()}
        torch.manual_seed(recipe.seed)
        at_5_db = looking.errors(*fixed, seen, noisy(feature, torch.full((len(feature),), 5.0)))
        return {f"explained_{key}": value for key, value in clean.items()} | {
            "explained_colours_5_db": 1.0 - float(at_5_db["colours"])
        }

    log = fit("blip2-feature", trainee, loss, recipe.feature, work, evaluate, recipe.seed, place=place)
    trainee.model.language_model.requires_grad_(True)
    return log


def train_captions(
    trainee: Trainee, looking: Looking, data: CaptionData, tokenizer: GPT2Tokenizer, recipe: Blip2Recipe, work: Path
) -> list[dict]:
    """Train all on captioned photographs, whose rows in ``looking`` are the first; see ``fit`` for the rest."""
    model, end, place = trainee.model, tokenizer.eos_token_id, looking.place
    trainee.model.get_input_embeddings().weight.requires_grad_(False)
    captions = [encode_captions(tokenizer, image.captions, [end], end) for image in data.train]
    usable = np.flatnonzero([bool(rows) for rows in captions])
    sentences = encode_captions(tokenizer, data.sentences, [end], end)
    tests = [encode_captions(tokenizer, image.captions, [end], end)[0] for image in data.held_out]
    test_rows = np.arange(len(data.train), len(data.train) + len(tests))
    pixels_of_tests, _ = looking.batch(test_rows, [WHOLE] * len(tests))

    def nll(feature: Tensor, rows: list[NDArray[np.int64]], wrong: float = 0.0) -> Tensor:
        ids = pad(rows, model.config.text_config.pad_token_id)[:, :-1]
        blotted = torch.rand(ids.shape) < wrong
        blotted[:, 0] = False
        ids[blotted] = model.config.text_config.pad_token_id
        return next_words(trainee.language(feature, ids.to(place.device)), rows)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        chosen = rng.choice(usable, recipe.caption_batch, replace=False)
        pixels, maps = looking.batch(chosen, [random_view(rng, 0.5) for _ in chosen])
        said = [captions[i][rng.integers(len(captions[i]))] for i in chosen]
        with place.autocast():
            seen, feature = trainee.look(pixels)
            feature = noisy(feature.float(), random_snr(len(chosen)))
            errors = looking.errors(pixels, maps, seen, feature)
            value = nll(feature, said, recipe.wrong_words)
            # Sentences without pictures keep the language from narrowing to that of 900 photographs.
            others = [sentences[i] for i in rng.integers(len(sentences), size=recipe.caption_batch // 2)]
            value = value + 0.2 * nll(torch.zeros_like(feature[: len(others)]), others)
        return value + recipe.look * (2.0 * errors["colours"] + errors["fields"] + errors["whole"])

    def evaluate() -> dict[str, float]:
        _, feature = trainee.look(pixels_of_tests)
        torch.manual_seed(recipe.seed)
        received = noisy(feature, torch.zeros(len(feature)))
        return {
            "held_out_nll": float(nll(feature, tests)),
            "held_out_nll_0_db": float(nll(received, tests)),
            "held_out_nll_shuffled": float(nll(feature.roll(7, dims=0), tests)),
        }

    def rate(name: str) -> float:
        return 1.0 if "language_projection" in name else recipe.trained_rate

    return fit("blip2-captions", trainee, loss, recipe.captions, work, evaluate, recipe.seed, rate, place=place)


def train(
    data: Path, work: Path, llava: Path, output: Path, recipe: Blip2Recipe = Blip2Recipe(), place: Device = CPU
) -> dict:
    """Train all stages; save the checkpoint and its logs.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoints and of the teacher's features.
        llava: the trained LLaVA, whose tower is where this one begins.
        output: folder the model is written to.
        recipe: sizes, lengths and rates.
        place: to train on.

    Returns:
        The last line of each stage's log.
    """
    captions = load_caption_data(data)
    clip = Captioner.load(llava).model.model.vision_tower
    tokenizer = make_tokenizer(captions.training_sentences)
    model = make_model(tokenizer, clip, recipe)
    model.set_attn_implementation(place.attention)
    photographs = [*captions.train, *captions.held_out, *captions.unlabelled]
    images = [load_pixels(data, image.path, 192) for image in photographs]
    size = clip.config.image_size
    copy_tower(clip, model.vision_model, pixel_values(images[:64], [WHOLE] * len(images[:64]), size))
    features = principal_features(teacher_features(data, [image.path for image in photographs], work / "teacher.npy"))
    trainee = Trainee(model, min(COMPONENTS, features.shape[1]))
    looking = Looking(trainee, images, features, recipe.grid, place)
    held_out = {image.path for image in captions.held_out}
    test = np.array([image.path in held_out for image in photographs])
    end = tokenizer.eos_token_id
    sentences, unseen = (
        encode_captions(tokenizer, texts, [end], end)
        for texts in (captions.training_sentences, captions.held_out_sentences)
    )
    logs = [
        train_language_model(trainee, sentences, unseen, recipe, work, place),
        train_feature(trainee, looking, np.flatnonzero(~test), np.flatnonzero(test), recipe, work),
        train_captions(trainee, looking, captions, tokenizer, recipe, work),
    ]
    model.cpu().half().save_pretrained(output)
    make_processor(tokenizer, size, recipe).save_pretrained(output)
    quality = {log[0]["stage"]: log[-1] for log in logs}
    record = {"recipe": asdict(recipe), "held_out": quality, "log": [row for log in logs for row in log]}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    return quality
