"""Train the two encoders whose output conditions the diffusion model, before it: text and image, as CLIP does.

Both learn to meet the pretrained encoder's opinion of a view of a photograph (Radford et al. 2021, with a frozen
third party): a caption's vector lies nearest to that of its own view among a batch. So what words mean is learnt in
minutes, and the diffusion model, which never sees that encoder, only learns to draw it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from multisc.models.efficientnet_lite import FEATURES, EfficientNetLiteConfig, EfficientNetLiteModel, load_pretrained
from multisc.models.prompts import CORNERS
from multisc.training.captioned import groups_of, paths_of
from multisc.training.data import CaptionData, load_caption_data
from multisc.training.device import CPU, Device
from multisc.training.looks import Viewing, look, thumbnails
from multisc.training.loop import Schedule, fit
from multisc.training.tokenizers import train_clip_tokenizer

WIDTH = 128  # of a token's state, and of the vectors that meet
TOKENS = 24  # of a prompt, at most
VOCABULARY = 3000
SLICE_SIDE = 64
IMAGE_WIDTH = 64
MEAN_TOKEN = 1  # the encoder's mean over the picture, among its vectors


@dataclass(frozen=True)
class ClipTraining:
    """How the encoders are trained.

    Args:
        steps: optimiser steps.
        batch: views per step.
        named: how many of these are of photographs of which only the classes are known.
        shown: how many of these the image encoder sees; it takes twice the time of the text encoder.
        rate: peak learning rate.
        corner: share of captions that name a corner of the picture first, as those of blocks do.
        views: of each photograph, whose thumbnails the image encoder sees.
        seed: of weights and order.
    """

    steps: int = 1400
    batch: int = 128
    named: int = 32
    shown: int = 64
    rate: float = 1.5e-3
    corner: float = 0.5
    views: int = 4
    seed: int = 6


class Encoders(nn.Module):
    """The text and the image encoder, and the projections in which they meet the pretrained one."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_attention_heads=4,
                num_hidden_layers=2,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                projection_dim=WIDTH,
            )
        )
        self.image = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=IMAGE_WIDTH,
                intermediate_size=4 * IMAGE_WIDTH,
                num_attention_heads=4,
                num_hidden_layers=3,
                image_size=SLICE_SIDE,
                patch_size=8,
                projection_dim=WIDTH,
            )
        )
        self.said = nn.Linear(WIDTH, WIDTH, bias=False)
        self.seen = nn.Linear(FEATURES, WIDTH)
        self.sharpness = nn.Parameter(torch.tensor(2.7))

    def forward(self, ids: Tensor, pixels: Tensor, features: Tensor) -> Tensor:
        """Return the loss: how hard it is to tell which caption, and which thumbnail, is of which view.

        Args:
            ids: of the captions, (B, tokens).
            pixels: thumbnails of every n-th view, (B / n, 3, side, side).
            features: of the views, by the pretrained encoder, (B, 1280).
        """
        seen = functional.normalize(self.seen(features), dim=-1)
        said = functional.normalize(self.said(self.text(ids).pooler_output), dim=-1)
        shown = functional.normalize(self.image(pixels).image_embeds, dim=-1)
        some = slice(None, None, len(ids) // len(pixels))
        scale = self.sharpness.clamp(max=4.6).exp()
        alike = (ids[:, None] == ids[None]).all(-1) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        of_said = _contrast(scale * said @ seen.T, alike)
        return of_said + _contrast(scale * shown @ seen[some].detach().T, torch.zeros_like(alike[some, some]))


def _contrast(scores: Tensor, alike: Tensor) -> Tensor:
    """The mean cross-entropy of both directions; captions of the same words are no rivals."""
    scores = scores.float().masked_fill(alike, -1e4)
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


class Views:
    """Draws captions, thumbnails and what the pretrained encoder sees of the same views.

    Args:
        data: captions and photographs.
        looks: by group, vectors float16 (photographs, views, tokens, 1280).
        small: by group, thumbnails uint8 (photographs, views, side, side, 3).
        tokenizer: of the text encoder.
        setup: batch and shares.
    """

    def __init__(
        self,
        data: CaptionData,
        looks: dict[str, NDArray[np.float16]],
        small: dict[str, NDArray[np.uint8]],
        tokenizer: CLIPTokenizer,
        setup: ClipTraining,
    ) -> None:
        self._captions = {name: [image.captions for image in images] for name, images in groups_of(data).items()}
        self._looks, self._small, self._tokenizer, self._setup = looks, small, tokenizer, setup
        sample = np.concatenate([vectors[:, 0, MEAN_TOKEN] for vectors in looks.values()]).astype(np.float32)
        self._mean, self._deviation = sample.mean(0), sample.std() + 1e-6

    def draw(self, counts: dict[str, int], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids (B, tokens), pixels (B, 3, side, side) and features (B, 1280) of so many views of each group."""
        captions, pixels, features = [], [], []
        for name, count in counts.items():
            known = len(self._captions[name])
            rows = rng.choice(known, count, replace=known < count)
            views = rng.integers(self._small[name].shape[1], size=count)
            for row in rows:
                said = self._captions[name][row]
                text = said[rng.integers(len(said))]
                corner = f"{CORNERS[rng.integers(len(CORNERS))]}: " if rng.random() < self._setup.corner else ""
                captions.append(corner + text)
            pixels.append(self._small[name][rows, views])
            features.append(self._looks[name][rows, views, MEAN_TOKEN].astype(np.float32))
        seen = (np.concatenate(features) - self._mean) / self._deviation
        return (
            tokenize(self._tokenizer, captions),
            normalise(np.concatenate(pixels)),
            torch.from_numpy(seen.astype(np.float32)),
        )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids (prompts, tokens), padded and cut to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def normalise(pictures: NDArray[np.uint8]) -> Tensor:
    """Bring uint8 (B, H, W, 3) to the image encoder's float32 (B, 3, H, W)."""
    mean, deviation = (np.array(values, np.float32) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return torch.from_numpy(((pictures.astype(np.float32) / 255.0 - mean) / deviation).transpose(0, 3, 1, 2).copy())


def train(
    data: Path, work: Path, looked: Path, setup: ClipTraining = ClipTraining(), place: Device = CPU
) -> tuple[Encoders, CLIPTokenizer, dict[str, float]]:
    """Train the encoders.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoint.
        looked: folder that keeps what the pretrained encoder sees, shared with the captioners' training.
        setup: steps, batch, rate, seed.
        place: to train on.

    Returns:
        The encoders in evaluation mode, their tokenizer, and what ``measure`` found.
    """
    torch.manual_seed(setup.seed)
    found = load_caption_data(data)
    tokenizer = train_clip_tokenizer(
        [*found.training_sentences, *[f"{corner}:" for corner in CORNERS] * 100], VOCABULARY, TOKENS
    )
    tower = EfficientNetLiteModel(EfficientNetLiteConfig())
    load_pretrained(tower.encoder)
    viewing = Viewing()
    looks, small = {}, {}
    for name, images in groups_of(found).items():
        paths, seen = paths_of(images), viewing.of_group(name)
        looks[name] = look(tower, data, paths, looked / f"looks_{name}.npy", seen).vectors
        shown = replace(seen, views=min(seen.views, setup.views))
        small[name] = thumbnails(data, paths, work / f"clip_{name}.npy", shown, SLICE_SIDE)
    views_of_all = Views(found, looks, small, tokenizer, setup)
    encoders = Encoders(tokenizer)
    for encoder in (encoders.text, encoders.image):
        encoder.set_attn_implementation(place.attention)

    def loss(step: int) -> Tensor:
        counts = {"train": setup.batch - setup.named, "named": setup.named}
        ids, pixels, features = views_of_all.draw(counts, np.random.default_rng([setup.seed, step]))
        batch = (ids, pixels[:: setup.batch // setup.shown], features)
        with place.autocast():
            return encoders(*(tensor.to(place.device) for tensor in batch))

    schedule = Schedule(setup.steps, setup.rate, warm_up=100, weight_decay=0.1, save_every=250)
    log = fit("clip", encoders, loss, schedule, work, seed=setup.seed, place=place)
    encoders.cpu().eval()
    quality = measure(encoders, views_of_all)
    (work / "clip-quality.json").write_text(json.dumps({"setup": asdict(setup), "held_out": quality, "log": log}))
    return encoders, tokenizer, quality


@torch.inference_mode()
def measure(encoders: Encoders, views: Views, among: int = 100) -> dict[str, float]:
    """How often the own caption, and the own thumbnail, is first among ``among`` of held-out photographs."""
    first = {"clip_text_first": 0.0, "clip_image_first": 0.0}
    rounds = 10
    for number in range(rounds):
        ids, pixels, features = views.draw({"held_out": among}, np.random.default_rng([5, number]))
        seen = functional.normalize(encoders.seen(features), dim=-1)
        vectors = (encoders.said(encoders.text(ids).pooler_output), encoders.image(pixels).image_embeds)
        for key, vector in zip(first, vectors, strict=True):
            best = (seen @ functional.normalize(vector, dim=-1).T).argmax(-1)
            first[key] += float((best == torch.arange(among)).float().mean()) / rounds
    return {key: round(value, 4) for key, value in first.items()}
