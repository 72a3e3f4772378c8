"""Training of VLF-MSC's projection: the feature y of BLIP-2 into the cross-attention of a diffusion model.

Both models stay as they are. The projection (``multisc.models.feature_prompt``) learns from photographs by L_simple
(Multi-SC eq. 11), given y as it comes out of the channel at a random SNR and a random number of dimensions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from multisc.codecs.feature import FeatureCodec, FeatureStatistics
from multisc.models.blip2 import Blip2
from multisc.models.feature_prompt import SKETCH, FeatureProjection, add_projection, cross_attentions
from multisc.models.generator import Generator, load_pipeline
from multisc.models.known import told
from multisc.models.prompts import encode_prompts
from multisc.training.data import CaptionData, load_caption_data, load_pixels
from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit
from multisc.training.vae import to_tensor

ASPECTS = (1.5, 1.33, 1.0, 0.75, 0.67)  # width over height that pictures are cut to
ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class VlfRecipe:
    """Length and rates of the projection's training.

    Args:
        crops: of each photograph: the largest, and smaller ones at random.
        batch: latents a step.
        drop: share of pictures trained without y, for the guidance.
        late: exponent of the random time, u**late of the whole; below 1 there are more of the noisy steps, where
            layout and colours are decided.
        snr_db: range of the channel's random Es/N0 in dB.
        ridge: of the regression from y to colours.
        seed: of weights, crops, batches and noise.
        schedule: length and rate.
    """

    crops: int = 1
    batch: int = 16
    drop: float = 0.1
    late: float = 0.7
    snr_db: tuple[float, float] = (-2.0, 20.0)
    ridge: float = 30.0
    seed: int = 7
    schedule: Schedule = field(default_factory=lambda: Schedule(500, 4e-3, weight_decay=0.01, save_every=125))


@dataclass(frozen=True)
class Example:
    """One picture to train on.

    Args:
        latents: float16 (C, h, w), scaled to unit deviation.
        feature: y, float16 (N, D).
        colours: of 8 x 8 fields, float16 (192,), 0 to 1.
    """

    latents: NDArray[np.float16]
    feature: NDArray[np.float16]
    colours: NDArray[np.float16]


class Adapter(nn.Module):
    """The trained parts of a UNet that has a projection; the rest is frozen and not part of this module."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        unet.requires_grad_(False).eval()
        self.project = unet.encoder_hid_proj.image_projection_layers[0]
        self.numbers = [number for number, _ in cross_attentions(unet)]
        layers = [unet.get_submodule(name).processor for _, name in cross_attentions(unet)]
        self.keys = nn.ModuleList(layer.to_k_ip[0] for layer in layers)
        self.values = nn.ModuleList(layer.to_v_ip[0] for layer in layers)
        self.requires_grad_(True)

    def projection(
        self, statistics: FeatureStatistics, colours: NDArray[np.float32], models: dict[str, str]
    ) -> FeatureProjection:
        """Return what is to be saved."""
        inner: Any = self.project
        parts = {"proj.0": inner.ff.net[0].proj, "proj.2": inner.ff.net[2], "proj.3": inner.norm}
        image_proj: dict[str, Tensor] = {
            f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
        }
        ip_adapter: dict[str, Any] = {}
        for number, key, value in zip(self.numbers, self.keys, self.values, strict=True):
            ip_adapter[f"{number}.to_k_ip.weight"] = key.weight
            ip_adapter[f"{number}.to_v_ip.weight"] = value.weight
        return FeatureProjection(statistics, image_proj, ip_adapter, colours, models)


def new_projection(unet: Any, statistics: FeatureStatistics, models: dict[str, str], seed: int) -> FeatureProjection:
    """Return an untrained projection for a UNet."""
    torch.manual_seed(seed)
    width, taken = statistics.width, unet.config.cross_attention_dim
    parts: dict[str, nn.Module] = {"proj.0": nn.Linear(width, width), "proj.2": nn.Linear(width, taken)}
    parts["proj.3"] = nn.LayerNorm(taken)
    image_proj: dict[str, Tensor] = {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }
    ip_adapter = {}
    for number, name in cross_attentions(unet):
        shape = unet.get_submodule(name).to_k.weight.shape
        for key in ("to_k_ip", "to_v_ip"):
            ip_adapter[f"{number}.{key}.weight"] = nn.Linear(shape[1], shape[0], bias=False).weight.detach()
    blank = np.zeros((statistics.tokens + 1, 3 * SKETCH**2), np.float32)
    return FeatureProjection(statistics, image_proj, ip_adapter, blank, models)


def make_examples(
    data: CaptionData, paths: list[str], blip2: Blip2, pipeline: StableDiffusionPipeline, crops: int, seed: int
) -> list[Example]:
    """Cut photographs to the sizes that the diffusion model works at, and encode them."""
    sizes = Generator(pipeline).working_size
    examples = []
    for index, path in enumerate(paths):
        picture = Image.fromarray(load_pixels(data.root, path))
        rng = np.random.default_rng([seed, index])
        aspect = min(ASPECTS, key=lambda a: abs(np.log(a * picture.height / picture.width)))
        height, width = sizes((round(1000 * aspect), 1000))
        cuts = []
        for crop in range(crops):
            share = 1.0 if crop == 0 else rng.uniform(0.6, 0.95)
            unit = share * min(picture.width / width, picture.height / height)
            room = picture.width - unit * width, picture.height - unit * height
            left, top = (0.5 * room[0], 0.5 * room[1]) if crop == 0 else rng.random(2) * room
            box = (max(0.0, left), max(0.0, top), left + unit * width, top + unit * height)
            cuts.append(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box)))
        for start in range(0, len(cuts), ENCODED_AT_ONCE):
            part = cuts[start : start + ENCODED_AT_ONCE]
            features, latents = blip2.feature(part), encode_latents(pipeline, part)
            for cut, latent, feature in zip(part, latents, features, strict=True):
                small = Image.fromarray(cut).resize((SKETCH, SKETCH), Image.Resampling.BOX)
                colours = (np.asarray(small, np.float32) / 255.0).ravel()
                examples.append(Example(latent, feature.astype(np.float16), colours.astype(np.float16)))
        if index % 500 == 0:
            print(f"vlf: {index} of {len(paths)} photographs", flush=True)
    return examples


@torch.inference_mode()
def encode_latents(pipeline: StableDiffusionPipeline, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float16]:
    """Return the scaled latents of pictures of one size, float16 (B, C, h, w)."""
    stacked = to_tensor(np.stack(pictures)).to(pipeline.device, pipeline.vae.dtype)
    latents = pipeline.vae.encode(stacked).latent_dist.mean
    return (latents * pipeline.vae.config.scaling_factor).half().cpu().numpy()


def fit_colours(statistics: FeatureStatistics, examples: list[Example], ridge: float) -> NDArray[np.float32]:
    """Fit the linear map from y to colours by ridge regression; see ``FeatureProjection.colours``."""
    told = max(1, statistics.width // 4)
    known = np.stack([statistics.whiten(example.feature)[:, :told].ravel() for example in examples])
    wanted = np.stack([example.colours for example in examples]).astype(np.float64)
    mean, known = wanted.mean(axis=0), known.astype(np.float64)
    # In the form whose size is the number of pictures or of coefficients, whichever is less.
    if known.shape[0] < known.shape[1]:
        weights = known.T @ np.linalg.solve(known @ known.T + ridge * np.eye(len(known)), wanted - mean)
    else:
        weights = np.linalg.solve(known.T @ known + ridge * np.eye(known.shape[1]), known.T @ (wanted - mean))
    return np.concatenate([weights, mean[None]]).astype(np.float32)


class Channel:
    """y as it arrives: so many dimensions of each token, white Gaussian noise, least-squares estimate.

    Args:
        statistics: of y.
    """

    def __init__(self, statistics: FeatureStatistics) -> None:
        self._statistics = statistics
        dimensions = {max(1, statistics.width // part) for part in (16, 8, 4, 2, 1)}
        self._codecs = [FeatureCodec(statistics, statistics.tokens, d) for d in sorted(dimensions)]

    def pass_on(
        self, feature: NDArray[np.floating], snr_db: tuple[float, float], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return y, (N, D), as received at a ratio in dB and a number of dimensions drawn at random."""
        codec = self._codecs[int(rng.integers(len(self._codecs)))]
        ratio = float(rng.uniform(*snr_db))
        sent = codec.coefficients(np.asarray(feature, np.float32))
        noise = rng.standard_normal(sent.size) * np.sqrt(np.mean(sent**2) * 10.0 ** (-ratio / 10.0))
        return self._statistics.restore(codec.whitened(sent + noise.astype(np.float32), ratio))


class Denoising:
    """L_simple of a frozen diffusion model that is driven by y alone.

    Args:
        pipeline: with a projection loaded.
        recipe: how times are drawn.
        place: that the pipeline is at.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, recipe: VlfRecipe, place: Device = CPU) -> None:
        self._place = place
        self._unet, self._scheduler, self._late = pipeline.unet, pipeline.scheduler, recipe.late
        length = pipeline.tokenizer.model_max_length
        ids = pipeline.tokenizer([""], padding="max_length", max_length=length, return_tensors="pt").input_ids
        with torch.inference_mode():
            text = encode_prompts(pipeline.text_encoder, ids[None].to(place.device))
        self._text = text.clone()

    def loss(self, latents: Tensor, features: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the mean squared error of the prediction at random times.

        Args:
            latents: (B, C, h, w).
            features: y as received, (B, N, D); zeros for none.
            rng: draws noise and times.
        """
        device, config = self._place.device, self._scheduler.config
        noise = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
        steps = config.num_train_timesteps
        drawn = steps * rng.random(len(latents)) ** self._late
        times = torch.from_numpy(drawn.astype(np.int64)).clamp(max=steps - 1)
        noisy = self._scheduler.add_noise(latents, noise, times)
        velocity = config.prediction_type == "v_prediction"
        target = self._scheduler.get_velocity(latents, noise, times) if velocity else noise
        with self._place.autocast():
            predicted = self._unet(
                told(self._unet, noisy.to(device), None),
                times.to(device),
                self._text.expand(len(latents), -1, -1),
                added_cond_kwargs={"image_embeds": [features[:, None].to(device)]},
            ).sample
        return functional.mse_loss(predicted.float(), target.to(device))


class Batches:
    """Draws batches of one latent shape each.

    Args:
        examples: to draw from.
        channel: that y passes.
        recipe: batch, SNR, share without y.
    """

    def __init__(self, examples: list[Example], channel: Channel, recipe: VlfRecipe) -> None:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            groups.setdefault(example.latents.shape, []).append(index)
        self._groups = list(groups.values())
        self._share = np.array([len(group) for group in self._groups]) / len(examples)
        self._examples, self._channel, self._recipe = examples, channel, recipe

    def draw(self, rng: np.random.Generator, drop: float) -> tuple[Tensor, Tensor]:
        """Return latents (B, C, h, w) and y as received (B, N, D), zeros for a share ``drop`` of the pictures."""
        group = self._groups[int(rng.choice(len(self._groups), p=self._share))]
        chosen = [self._examples[group[k]] for k in rng.integers(len(group), size=self._recipe.batch)]
        received = np.stack([self._channel.pass_on(e.feature, self._recipe.snr_db, rng) for e in chosen])
        received[rng.random(len(chosen)) < drop] = 0.0
        latents = np.stack([example.latents for example in chosen]).astype(np.float32)
        return torch.from_numpy(latents), torch.from_numpy(received)


def train(
    data: Path,
    work: Path,
    blip2_source: str,
    stable_diffusion: str,
    output: Path,
    recipe: VlfRecipe = VlfRecipe(),
    place: Device = CPU,
) -> dict[str, float]:
    """Train the projection for a pair of models and save it.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoint.
        blip2_source: the BLIP-2, a directory or a name on the hub.
        stable_diffusion: the diffusion model, a directory or a name on the hub.
        output: directory that the projection is written to.
        recipe: length and rates.
        place: to train on.

    Returns:
        On the held-out photographs: L_simple with y as received, with that of another picture, and without; the share
        of the colours' variance that y tells.
    """
    captions = load_caption_data(data)
    # Both are frozen, but the projection becomes part of the UNet: in single precision, for the optimiser's sake.
    blip2, pipeline = Blip2.load(blip2_source, place.device), load_pipeline(stable_diffusion).to(place.device)
    seen = [image.path for image in (*captions.train, *captions.unlabelled)]
    examples = make_examples(captions, seen, blip2, pipeline, recipe.crops, recipe.seed)
    unseen = make_examples(captions, [i.path for i in captions.held_out], blip2, pipeline, 1, recipe.seed)
    statistics = FeatureStatistics.measure(np.stack([example.feature for example in examples]).astype(np.float32))
    models = {"blip2": Path(blip2_source).name, "stable_diffusion": Path(stable_diffusion).name}
    add_projection(pipeline.unet, new_projection(pipeline.unet, statistics, models, recipe.seed), stable_diffusion)
    adapter = Adapter(pipeline.unet)
    channel, denoising = Channel(statistics), Denoising(pipeline, recipe, place)
    batches, tests = Batches(examples, channel, recipe), Batches(unseen, channel, recipe)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        return denoising.loss(*batches.draw(rng, recipe.drop), rng)

    def evaluate() -> dict[str, float]:
        return measure(denoising, tests, 8)

    log = fit("vlf", adapter, loss, recipe.schedule, work, evaluate, recipe.seed, place=place)
    quality = measure(denoising, tests, 20)
    projection = adapter.cpu().projection(statistics, fit_colours(statistics, examples, recipe.ridge), models)
    projection.save(output)
    quality |= {"explained_colours": explained_colours(projection, unseen)}
    record = {"recipe": asdict(recipe), "models": models, "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    return quality


def explained_colours(projection: FeatureProjection, examples: list[Example]) -> float:
    """Share of the colours' variance over pictures that ``FeatureProjection.sketch`` tells."""
    wanted = np.stack([example.colours for example in examples]).astype(np.float64)
    found = np.stack([projection.sketch(example.feature).ravel() / 255.0 for example in examples])
    return round(float(1.0 - np.mean((found - wanted) ** 2) / np.mean((wanted - wanted.mean(axis=0)) ** 2)), 4)


@torch.inference_mode()
def measure(denoising: Denoising, batches: Batches, count: int) -> dict[str, float]:
    """Mean L_simple over ``count`` batches: with y, with y of another picture, without y."""
    sums = {"loss": 0.0, "loss_shuffled": 0.0, "loss_without": 0.0}
    for number in range(count):
        latents, features = batches.draw(np.random.default_rng([99, number]), 0.0)
        given = (features, features.roll(1, dims=0), torch.zeros_like(features))
        for key, feature in zip(sums, given, strict=True):
            value = denoising.loss(latents, feature, np.random.default_rng([7, number]))
            sums[key] += value.item() / count
    return {key: round(value, 5) for key, value in sums.items()}
