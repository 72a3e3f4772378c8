"""Train Stable Diffusion and its IP-Adapter from scratch, jointly, on the autoencoder's latents (eq. 8 to 11).

The text and the image encoder come from ``multisc.training.clip`` and stay as they are. The UNet is told of the slice
in two ways: its embedding, through the adapter, and its latents in their place with the level of their noise.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multisc.models.feature_prompt import cross_attentions
from multisc.models.generator import ADAPTER_FOLDER, ADAPTER_WEIGHTS, IMAGE_ENCODER_FOLDER
from multisc.models.known import TOLD, KnownRegion, told
from multisc.models.prompts import BLOCKS, encode_prompts, prompts_of
from multisc.models.regions import regional_attention
from multisc.training import clip
from multisc.training.clip import SLICE_SIDE, TOKENS, WIDTH, normalise, tokenize
from multisc.training.data import CaptionData, CaptionedImage, load_caption_data, load_pixels
from multisc.training.device import CPU, Device
from multisc.training.ema import ExponentialMovingAverage
from multisc.training.loop import Schedule, fit
from multisc.training.vae import CELL, LATENT_CHANNELS, to_tensor

# Latent (height, width); about 32 x 32 places each, as ``Generator.working_size`` makes them.
SHAPES = ((28, 40), (40, 28), (28, 36), (36, 28), (32, 32))
IMAGE_TOKENS = 4
SMALL = 128  # side of the square thumbnails that slices are cut from
ENCODED_AT_ONCE = 16
SQUASHED = "flickr8k"  # photographs of unknown aspect, in squares: most were taken across
SQUASHED_SHARES = (0.4, 0.1, 0.2, 0.1, 0.2)  # of ``SHAPES`` that they are stretched to


@dataclass(frozen=True)
class DiffusionTraining:
    """How the diffusion model is trained.

    Args:
        steps: optimiser steps.
        batch: latents per step.
        rate: peak learning rate.
        decay: of the moving average of the weights, which is what is saved.
        drop_text: share of pictures trained without captions.
        drop_slice: share of pictures trained without the subject.
        drop_block: share of single block captions left out.
        whole: share of batches with one caption of the whole picture rather than four of its blocks.
        regional: share of the other batches whose cross-attention is regional.
        clean: share of slices without noise.
        noise: mean deviation of the noise of the other slices' latents.
        seed: of weights, order and noise.
        encoders: how the encoders of text and slice are trained before.
    """

    steps: int = 900
    batch: int = 32
    rate: float = 2e-3
    decay: float = 0.996
    drop_text: float = 0.12
    drop_slice: float = 0.15
    drop_block: float = 0.05
    whole: float = 0.15
    regional: float = 0.8
    clean: float = 0.35
    noise: float = 0.3
    seed: int = 3
    encoders: clip.ClipTraining = field(default_factory=clip.ClipTraining)


@dataclass(frozen=True)
class Example:
    """One photograph, encoded.

    Args:
        latents: float16 (C, h, w), scaled to unit deviation.
        small: uint8 (``SMALL``, ``SMALL``, 3), the picture squeezed to a square.
        captions: what is said of the whole.
        blocks: what the captioner says of the four blocks; None where it was not asked.
        subject: left, top, right, bottom of the subject, in fractions; None where it is not known.
    """

    latents: NDArray[np.float16]
    small: NDArray[np.uint8]
    captions: tuple[str, ...]
    blocks: tuple[str, ...] | None
    subject: tuple[float, float, float, float] | None


class Conditioned(nn.Module):
    """UNet with adapter, which are trained, and the encoders of text and image, which are not."""

    def __init__(self, text_encoder: CLIPTextModel, image_encoder: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.text_encoder = text_encoder.requires_grad_(False)
        self.image_encoder = image_encoder.requires_grad_(False)
        self.unet = UNet2DConditionModel(
            sample_size=32,  # the square of about as many places as SHAPES have
            layers_per_block=1,
            in_channels=2 * LATENT_CHANNELS + TOLD,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(48, 96, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
            # The captions' gist goes into every layer, as the step does.
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        )
        self.unet._load_ip_adapter_weights([self._new_adapter()], low_cpu_mem_usage=False)

    def use_eager_attention(self) -> None:
        """Replace fused attention, whose backward pass in bfloat16 is slow on the CPU; the weights stay."""
        for name, processor in self.unet.attn_processors.items():
            attention = self.unet.get_submodule(name.removesuffix(".processor"))
            if "attn2" not in name:
                attention.set_processor(AttnProcessor())
                continue
            eager = IPAdapterAttnProcessor(attention.to_q.out_features, WIDTH, (IMAGE_TOKENS,))
            eager.load_state_dict(processor.state_dict())
            attention.set_processor(eager)

    def _new_adapter(self) -> dict[str, dict[str, Tensor]]:
        """Untrained weights of an IP-Adapter for this UNet: projection of the image's embedding, keys and values."""
        projection = nn.Linear(WIDTH, IMAGE_TOKENS * WIDTH)
        state = {
            "proj.weight": projection.weight.detach(),
            "proj.bias": projection.bias.detach(),
            "norm.weight": torch.ones(WIDTH),
            "norm.bias": torch.zeros(WIDTH),
        }
        attention = {}
        for number, name in cross_attentions(self.unet):
            width = self.unet.get_submodule(name).to_k.out_features
            for key in ("to_k_ip", "to_v_ip"):
                attention[f"{number}.{key}.weight"] = nn.Linear(WIDTH, width, bias=False).weight.detach()
        return {"image_proj": state, "ip_adapter": attention}

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        known: KnownRegion,
        ids: Tensor,
        pixels: Tensor,
        with_image: Tensor,
        regional: bool,
    ) -> Tensor:
        """Predict the velocity of eq. 11's diffusion, with lambda = 1."""
        with torch.no_grad():
            text = encode_prompts(self.text_encoder, ids)
            image = self.image_encoder(pixels).image_embeds * with_image[:, None]
        taken = told(self.unet, noisy, known).contiguous(memory_format=torch.channels_last)
        with regional_attention(self.unet, (noisy.shape[2], noisy.shape[3])) if regional else nullcontext():
            return self.unet(taken, times, text, added_cond_kwargs={"image_embeds": [image[:, None]]}).sample

    def adapter(self) -> dict[str, Tensor]:
        """The IP-Adapter's tensors in the layout of its published checkpoints."""
        projection = self.unet.encoder_hid_proj.image_projection_layers[0]
        tensors = {
            "image_proj.proj.weight": projection.image_embeds.weight,
            "image_proj.proj.bias": projection.image_embeds.bias,
            "image_proj.norm.weight": projection.norm.weight,
            "image_proj.norm.bias": projection.norm.bias,
        }
        for number, name in cross_attentions(self.unet):
            processor = self.unet.get_submodule(name).processor
            tensors[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight
            tensors[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight
        return tensors

    def plain_unet(self) -> UNet2DConditionModel:
        """The UNet without the adapter."""
        config = {k: v for k, v in self.unet.config.items() if k != "encoder_hid_dim_type"}
        plain = UNet2DConditionModel.from_config(config)
        state = self.unet.state_dict()
        plain.load_state_dict({name: state[name] for name in plain.state_dict()})
        return plain


def load_examples(
    images: list[CaptionedImage], spoken: dict[str, list[str]], vae: AutoencoderKL, root: Path, cache: Path, seed: int
) -> list[Example]:
    """Encode photographs, or take what ``cache`` keeps of them, with what is said of them.

    Args:
        images: the photographs.
        spoken: path -> captions of the whole and the four blocks, by the captioner that is used in the end, so that
            its mistakes are known; may lack photographs.
        vae: the autoencoder.
        root: the data directory.
        cache: .npz file.
        seed: of the shapes of squashed photographs.
    """
    shapes = [_shape(image, root, np.random.default_rng([seed, k])) for k, image in enumerate(images)]
    if not cache.exists():
        _encode(images, shapes, vae, root, cache)
    kept = np.load(cache)
    flat, small = kept["latents"], kept["small"]
    sizes = [LATENT_CHANNELS * SHAPES[shape][0] * SHAPES[shape][1] for shape in shapes]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    examples = []
    for k, image in enumerate(images):
        latents = parts[k].reshape(LATENT_CHANNELS, *SHAPES[shapes[k]])
        said = spoken.get(image.path)
        captions = (*image.captions, said[0]) if said else image.captions
        examples.append(
            Example(latents, small[k], captions, tuple(said[1:]) if said else None, _subject(image, root))
        )
    return examples


def _shape(image: CaptionedImage, root: Path, rng: np.random.Generator) -> int:
    if image.path.startswith(SQUASHED):
        return int(rng.choice(len(SHAPES), p=SQUASHED_SHARES))
    with Image.open(root / image.path) as file:
        aspect = file.width / file.height
    return min(range(len(SHAPES)), key=lambda k: abs(np.log(SHAPES[k][1] / SHAPES[k][0] / aspect)))


def _subject(image: CaptionedImage, root: Path) -> tuple[float, float, float, float] | None:
    """The box of the largest class, where the photograph has a mask of VOC classes."""
    if not image.path.startswith("voc_subjects"):
        return None
    with Image.open(root / "voc_subjects" / "masks" / f"{Path(image.path).stem}.png") as file:
        mask = np.asarray(file)
    counts = np.bincount(mask.ravel(), minlength=256)[1:21]
    rows, columns = np.nonzero(mask == 1 + int(counts.argmax()))
    height, width = mask.shape
    return columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height


def _encode(images: list[CaptionedImage], shapes: list[int], vae: AutoencoderKL, root: Path, cache: Path) -> None:
    """Write the latents, scaled, end to end, and the thumbnails."""
    latents: dict[int, NDArray[np.float16]] = {}
    small = np.empty((len(images), SMALL, SMALL, 3), np.uint8)
    order = sorted(range(len(images)), key=lambda k: shapes[k])
    vae = vae.to(memory_format=torch.channels_last)
    waiting: list[tuple[int, NDArray[np.uint8]]] = []
    for place, k in enumerate(tqdm(order, desc=cache.stem, mininterval=10)):
        rows, columns = SHAPES[shapes[k]]
        picture = Image.fromarray(load_pixels(root, images[k].path, 512))
        small[k] = np.asarray(picture.resize((SMALL, SMALL), Image.Resampling.LANCZOS))
        waiting.append((k, np.asarray(picture.resize((columns * CELL, rows * CELL), Image.Resampling.LANCZOS))))
        last = place + 1 == len(order) or shapes[order[place + 1]] != shapes[k]
        if last or len(waiting) == ENCODED_AT_ONCE:
            batch = to_tensor(np.stack([picture for _, picture in waiting])).to(vae.device)
            with torch.inference_mode(), torch.autocast(vae.device.type, torch.bfloat16):
                found = vae.encode(batch.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            found = (found.float() * vae.config.scaling_factor).half().cpu()
            latents |= {k: row.numpy() for (k, _), row in zip(waiting, found, strict=True)}
            waiting = []
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, latents=np.concatenate([latents[k].ravel() for k in range(len(images))]), small=small)


def random_box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box such as a segmenter finds, in fractions of the picture: left, top, right, bottom."""
    area, stretch = np.exp(rng.uniform(np.log(0.02), np.log(0.6))), np.exp(rng.normal(0.0, 0.5))
    width, height = min(1.0, np.sqrt(area) * stretch), min(1.0, np.sqrt(area) / stretch)
    left, top = (1.0 - width) * rng.beta(1.5, 1.5), (1.0 - height) * rng.beta(1.5, 1.5)
    return left, top, left + width, top + height


@dataclass(frozen=True)
class Batch:
    """A training batch: latents (B, C, h, w), the slices, ids (B, prompts, tokens), pixels, image flags (B,)."""

    latents: Tensor
    known: KnownRegion
    ids: Tensor
    pixels: Tensor
    with_image: Tensor
    regional: bool


class Batches:
    """Draws training batches of latents of one shape, with prompts and slices, some of which are left out."""

    def __init__(self, examples: list[Example], tokenizer: CLIPTokenizer, setup: DiffusionTraining) -> None:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            by_shape.setdefault(example.latents.shape, []).append(index)
        self._groups = list(by_shape.values())
        self._share = np.array([len(group) for group in self._groups]) / len(examples)
        self.tokenizer = tokenizer
        self._examples, self._setup = examples, setup

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draw a batch."""
        setup = self._setup
        group = self._groups[int(rng.choice(len(self._groups), p=self._share))]
        chosen = [self._examples[group[k]] for k in rng.integers(len(group), size=setup.batch)]
        whole = rng.random() < setup.whole
        prompts, masks, pieces = [], [], []
        for example in chosen:
            drawn = self._prompts(example, whole, rng)
            prompts += [""] * len(drawn) if rng.random() < setup.drop_text else drawn
            box = example.subject if example.subject and rng.random() < 0.7 else random_box(rng)
            masks.append(_mask(box, example.latents.shape[1:]))
            pieces.append(_piece(example.small, box))
        latents = torch.from_numpy(np.stack([example.latents for example in chosen]).astype(np.float32))
        present = rng.random(setup.batch) >= setup.drop_slice
        levels = np.where(rng.random(setup.batch) < setup.clean, 0.0, rng.exponential(setup.noise, setup.batch))
        noise = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
        level = torch.from_numpy(np.where(present, levels, 0.0).astype(np.float32))
        mask = torch.from_numpy(np.stack(masks) & present[:, None, None])[:, None]
        known = KnownRegion(latents + level[:, None, None, None] * noise, mask, level)
        grain = rng.normal(0.0, 1.0, (setup.batch, SLICE_SIDE, SLICE_SIDE, 3)) * (20.0 * levels[:, None, None, None])
        pixels = normalise((np.stack(pieces) + grain).clip(0, 255).astype(np.uint8))
        ids = tokenize(self.tokenizer, prompts).reshape(setup.batch, -1, TOKENS)
        with_image = torch.from_numpy(present.astype(np.float32))
        return Batch(latents, known, ids, pixels, with_image, not whole and rng.random() < setup.regional)

    def _prompts(self, example: Example, whole: bool, rng: np.random.Generator) -> list[str]:
        """One prompt of the whole picture, or four of its blocks."""
        said = example.captions or ("",)
        if whole:
            return prompts_of([said[int(rng.integers(len(said)))]])
        blocks = example.blocks if example.blocks and rng.random() < 0.6 else None
        captions = blocks or [said[int(rng.integers(len(said)))] for _ in range(BLOCKS)]
        return prompts_of([c if rng.random() >= self._setup.drop_block else "" for c in captions])


def _mask(box: tuple[float, float, float, float], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The places at least half of which the box covers; at least one."""
    height, width = size
    left, top, right, bottom = box
    down = np.clip(
        np.minimum(np.arange(1, height + 1), bottom * height) - np.maximum(np.arange(height), top * height), 0, 1
    )
    across = np.clip(
        np.minimum(np.arange(1, width + 1), right * width) - np.maximum(np.arange(width), left * width), 0, 1
    )
    share = np.outer(down, across)
    return share >= min(0.5, share.max())


def _piece(small: NDArray[np.uint8], box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """The slice as the image encoder sees it, before its colours are normalised."""
    left, top, right, bottom = (SMALL * value for value in box)
    corners = (left, top, right, bottom)
    picture = Image.fromarray(small).resize((SLICE_SIDE, SLICE_SIDE), Image.Resampling.BILINEAR, corners)
    return np.asarray(picture)


def make_scheduler() -> DDIMScheduler:
    """The scheduler: 1,000 steps, linear, prediction of the velocity."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,  # the generator switches it on, because of the range
        clip_sample_range=4.0,  # deviations
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def train(
    data: Path,
    work: Path,
    looked: Path,
    vae: Path,
    output: Path,
    adapter: Path,
    block_captions: Path | None = None,
    setup: DiffusionTraining = DiffusionTraining(),
    place: Device = CPU,
) -> dict[str, float]:
    """Train the encoders, then the UNet with its adapter, save pipeline and adapter, and measure.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoints and of what is computed once.
        looked: folder that keeps what the pretrained encoder sees, shared with the captioners' training.
        vae: the trained autoencoder.
        output: the pipeline's directory.
        adapter: the IP-Adapter's directory.
        block_captions: JSON, path below ``data`` -> captions of the whole and the four blocks.
        setup: steps, batch, rate, seed.
        place: to train on.

    Returns:
        What ``measure`` found of the encoders and of the diffusion model.
    """
    encoders, tokenizer, met = clip.train(data, work, looked, setup.encoders, place)
    torch.manual_seed(setup.seed)
    found = load_caption_data(data)
    spoken = json.loads(block_captions.read_text()) if block_captions and block_captions.is_file() else {}
    autoencoder = AutoencoderKL.from_pretrained(vae, dtype=torch.float32).to(place.device).eval()
    seen = Batches(_load(found, spoken, autoencoder, work, False, setup.seed), tokenizer, setup)
    unseen = Batches(_load(found, spoken, autoencoder, work, True, setup.seed), tokenizer, setup)
    scheduler = make_scheduler()
    trainee = ExponentialMovingAverage(Conditioned(encoders.text, encoders.image))
    if place.attention == "eager":
        for model in (trainee.online, trainee.average):
            model.use_eager_attention()
    trainee.online.unet.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        trainee.update(step, setup.decay)
        rng = np.random.default_rng([setup.seed, step])
        return l_simple(trainee.online, scheduler, seen.draw(rng), rng, place)

    schedule = Schedule(setup.steps, setup.rate, warm_up=100, weight_decay=0.01, save_every=100)
    log = fit("diffusion", trainee, loss, schedule, work, seed=setup.seed, place=place)
    model = trainee.average.eval()
    quality = met | measure(model, scheduler, unseen, place=place)
    processor = CLIPImageProcessorPil(size={"height": SLICE_SIDE, "width": SLICE_SIDE}, do_center_crop=False)
    save(model.cpu(), tokenizer, processor, autoencoder.cpu(), scheduler, output, adapter)
    record = {"setup": asdict(setup), "block_captions": len(spoken), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def _load(
    data: CaptionData, spoken: dict[str, list[str]], vae: AutoencoderKL, work: Path, held_out: bool, seed: int
) -> list[Example]:
    images = data.held_out if held_out else (*data.train, *data.named, *data.unlabelled)
    cache = work / ("latents_held_out.npz" if held_out else "latents.npz")
    return load_examples(list(images), spoken, vae, data.root, cache, seed)


def l_simple(
    model: Conditioned, scheduler: DDIMScheduler, batch: Batch, rng: np.random.Generator, place: Device = CPU
) -> Tensor:
    """The mean squared error of the predicted velocity at random steps (eq. 11)."""
    latents = batch.latents
    noise = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
    times = torch.from_numpy(rng.integers(scheduler.config.num_train_timesteps, size=len(latents)))
    noisy, target = scheduler.add_noise(latents, noise, times), scheduler.get_velocity(latents, noise, times)
    known = KnownRegion(
        *(tensor.to(place.device) for tensor in (batch.known.latents, batch.known.mask, batch.known.noise))
    )
    given = [tensor.to(place.device) for tensor in (noisy, times, batch.ids, batch.pixels, batch.with_image)]
    with place.autocast():
        predicted = model(given[0], given[1], known, *given[2:], batch.regional)
    return functional.mse_loss(predicted.float(), target.to(place.device))


@torch.inference_mode()
def measure(
    model: Conditioned, scheduler: DDIMScheduler, batches: Batches, count: int = 24, place: Device = CPU
) -> dict[str, float]:
    """Mean L_simple over held-out photographs: as trained, without text, with another's text, without image."""
    sums = dict.fromkeys(("loss", "loss_no_text", "loss_wrong_text", "loss_no_image"), 0.0)
    for number in range(count):
        batch = batches.draw(np.random.default_rng([99, number]))
        empty = tokenize(batches.tokenizer, [""])[0].expand_as(batch.ids)
        changed = {
            "loss": batch,
            "loss_no_text": replace(batch, ids=empty),
            "loss_wrong_text": replace(batch, ids=batch.ids.roll(1, 0)),
            "loss_no_image": replace(batch, with_image=torch.zeros_like(batch.with_image)),
        }
        for key, variant in changed.items():
            sums[key] += l_simple(model, scheduler, variant, np.random.default_rng([7, number]), place).item() / count
    return {key: round(value, 5) for key, value in sums.items()}


def save(
    model: Conditioned,
    tokenizer: CLIPTokenizer,
    processor: CLIPImageProcessorPil,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    output: Path,
    adapter: Path,
) -> None:
    """Write the pipeline and, in the layout of ``h94/IP-Adapter``, the adapter with its image encoder; float16."""
    pipeline = StableDiffusionPipeline(
        vae=deepcopy(vae).half(),
        text_encoder=deepcopy(model.text_encoder).half(),
        tokenizer=tokenizer,
        unet=model.plain_unet().half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=processor,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(output, safe_serialization=True)
    folder = adapter / ADAPTER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.adapter().items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    deepcopy(model.image_encoder).half().save_pretrained(folder / IMAGE_ENCODER_FOLDER)
