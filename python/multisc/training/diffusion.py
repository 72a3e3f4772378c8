"""Train Stable Diffusion and its IP-Adapter from scratch, jointly, on the autoencoder's latents (eq. 8 to 11)."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from tokenizers import trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multisc.codecs.pixels import Box
from multisc.models.feature_prompt import cross_attentions
from multisc.models.generator import ADAPTER_FOLDER, ADAPTER_WEIGHTS, IMAGE_ENCODER_FOLDER
from multisc.models.prompts import BLOCKS, CORNERS, encode_prompts, prompts_of
from multisc.models.segmenter import Segmenter
from multisc.training.device import CPU, Device
from multisc.training.ema import ExponentialMovingAverage
from multisc.training.loop import Schedule, fit
from multisc.training.photographs import Photograph, load_photographs
from multisc.training.tokenizers import words_of
from multisc.training.vae import LATENT_CHANNELS, to_tensor

Crop = tuple[int, int, int, int]  # left, top, right, bottom; a Box is left, top, width, height
SHAPES = ((12, 18), (18, 12), (12, 16), (16, 12), (14, 14))  # latent (height, width); about 216 places
WIDTH = 64  # of text and image conditions
TOKENS = 32  # of a prompt, at most
IMAGE_TOKENS = 4
SLICE_SIDE = 64
CROPS = 2  # of each photograph, besides their mirror images


@dataclass(frozen=True)
class DiffusionTraining:
    """How the diffusion model is trained.

    Args:
        steps: optimiser steps.
        batch: latents per step.
        rate: peak learning rate.
        decay: of the moving average of the weights, which is what is saved.
        drop_text: share of pictures trained without captions.
        drop_image: share of pictures trained without the subject.
        drop_block: share of single block captions left out.
        seed: of weights, order and noise.
    """

    steps: int = 2000
    batch: int = 24
    rate: float = 2e-3
    decay: float = 0.995
    drop_text: float = 0.1
    drop_image: float = 0.2
    drop_block: float = 0.1
    seed: int = 3


@dataclass(frozen=True)
class Example:
    """One crop of one photograph.

    Args:
        source: index of the photograph.
        mirrored: whether it is flipped left to right.
        latents: float16 (C, h, w), scaled to unit deviation.
        subject: uint8 (SLICE_SIDE, SLICE_SIDE, 3), the subject's slice.
    """

    source: int
    mirrored: bool
    latents: NDArray[np.float16]
    subject: NDArray[np.uint8]


def train_tokenizer(sentences: Iterable[str], size: int = 1600) -> CLIPTokenizer:
    """Learn a byte-pair encoding in CLIP's format that can spell any printable ASCII text."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    empty = CLIPTokenizer()
    empty.backend_tokenizer.post_processor = None
    letters = string.digits + string.ascii_lowercase + string.punctuation
    # Each character as a word's end and as its middle.
    corpus = [*(f"{c} {c}{c} " for c in letters for _ in range(3)), *sentences]
    last = sorted({f"{word[-1]}</w>" for word in words_of(empty.backend_tokenizer, corpus)})
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[start, end, *last], end_of_word_suffix="</w>", show_progress=False
    )
    empty.backend_tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(empty.backend_tokenizer.to_str())["model"]
    merges = [(a, b) for a, b in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=TOKENS)


class Conditioned(nn.Module):
    """The parts that are trained together: UNet with adapter, text encoder, image encoder."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                num_hidden_layers=2,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                projection_dim=WIDTH,
                **sizes,
            )
        )
        self.image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(num_hidden_layers=3, image_size=SLICE_SIDE, patch_size=8, projection_dim=WIDTH, **sizes)
        )
        self.unet = UNet2DConditionModel(
            sample_size=15,  # the square of about as many places as SHAPES have
            layers_per_block=1,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(40, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        self.unet._load_ip_adapter_weights([self._new_adapter()], low_cpu_mem_usage=False)

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

    def forward(self, noisy: Tensor, times: Tensor, ids: Tensor, pixels: Tensor, with_image: Tensor) -> Tensor:
        """Predict the noise: eps_theta(x_t, c_t, c_i, t) of eq. 11, with lambda = 1."""
        text = encode_prompts(self.text_encoder, ids)
        image = self.image_encoder(pixels).image_embeds * with_image[:, None]
        return self.unet(noisy, times, text, added_cond_kwargs={"image_embeds": [image[:, None]]}).sample

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


def subject_boxes(photographs: list[Photograph], segmenter: Segmenter, cache: Path) -> list[Box]:
    """The box of each photograph's main subject at a long side of 256 pixels, kept in ``cache`` between runs."""
    if not cache.is_file():
        boxes = [segmenter.segment(photograph.load(256)).box for photograph in photographs]
        cache.write_text(json.dumps(boxes))
    return [(x, y, w, h) for x, y, w, h in json.loads(cache.read_text())]


def make_examples(
    photographs: list[Photograph],
    boxes: list[Box],
    vae: AutoencoderKL,
    processor: CLIPImageProcessorPil,
    seed: int,
) -> list[Example]:
    """Crop, mirror and encode the photographs, with the slice of each one's main subject."""
    examples = []
    for source, (photograph, box) in enumerate(zip(photographs, boxes, strict=True)):
        picture = photograph.load(256)
        rng = np.random.default_rng([seed, source])
        height, width = picture.shape[:2]
        shape = min(SHAPES, key=lambda s: abs(np.log(s[1] / s[0] * height / width)))
        for crop in range(CROPS):
            share = 1.0 if crop == 0 else rng.uniform(0.75, 0.95)
            cut = _cut(width, height, shape, share, rng)
            size = (shape[1] * 8, shape[0] * 8)
            target = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, cut))
            subject = _subject(picture, box, cut, processor)
            both = to_tensor(np.stack([target, target[:, ::-1]]))
            with torch.inference_mode():
                latents = vae.encode(both.to(vae.device)).latent_dist.mean * vae.config.scaling_factor
            for mirrored in (False, True):
                pixels = subject[:, ::-1] if mirrored else subject
                examples.append(Example(source, mirrored, latents[int(mirrored)].half().cpu().numpy(), pixels))
    return examples


def _cut(width: int, height: int, shape: tuple[int, int], share: float, rng: np.random.Generator) -> Crop:
    """A crop of the aspect ratio of ``shape``: central when ``share`` is 1, else random."""
    unit = min(width / shape[1], height / shape[0]) * share
    w, h = round(unit * shape[1]), round(unit * shape[0])
    across, down = (0.5, 0.5) if share == 1.0 else rng.random(2)
    left, top = round((width - w) * across), round((height - h) * down)
    return left, top, left + w, top + h


def _subject(picture: NDArray[np.uint8], box: Box, cut: Crop, processor: CLIPImageProcessorPil) -> NDArray[np.uint8]:
    """The subject's slice as the image encoder sees it, before its colours are normalised."""
    left, top = max(box[0], cut[0]), max(box[1], cut[1])
    right, bottom = min(box[0] + box[2], cut[2]), min(box[1] + box[3], cut[3])
    if right - left < 8 or bottom - top < 8:  # the crop has lost the subject: its middle stands for it
        quarter = ((cut[2] - cut[0]) // 4, (cut[3] - cut[1]) // 4)
        left, top, right, bottom = cut[0] + quarter[0], cut[1] + quarter[1], cut[2] - quarter[0], cut[3] - quarter[1]
    pixels = processor(
        Image.fromarray(picture[top:bottom, left:right]), do_normalize=False, do_rescale=False, return_tensors="np"
    ).pixel_values[0]
    return pixels.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8)


class Captions:
    """Draws the prompts of a training picture.

    Args:
        photographs: the training photographs.
        block_captions: path below the data folder -> captions of the whole and of the four blocks, written by the
            captioner that is used in the end, so that its mistakes are known; may lack photographs.
        names: path below the data folder, per photograph.
    """

    def __init__(self, photographs: list[Photograph], block_captions: dict[str, list[str]], names: list[str]) -> None:
        self._said = [photograph.captions for photograph in photographs]
        self._blocks = [block_captions.get(name) for name in names]

    def draw(self, example: Example, whole: bool, drop_block: float, rng: np.random.Generator) -> list[str]:
        """Return one prompt of the whole picture, or four of its blocks."""
        said, blocks = self._said[example.source], self._blocks[example.source]
        human = [said[int(rng.integers(len(said)))]] if said else []
        if whole:
            choices = human + ([blocks[0]] if blocks else [])
            return prompts_of([choices[int(rng.integers(len(choices)))]] if choices else [])
        corners = list(blocks[1:]) if blocks else (human or [""]) * BLOCKS
        if example.mirrored:
            corners = [_mirrored(corners[k]) for k in (1, 0, 3, 2)]
        return prompts_of([c if rng.random() >= drop_block else "" for c in corners])


def _mirrored(caption: str) -> str:
    swapped = {"left": "right", "right": "left"}
    return " ".join(swapped.get(word, word) for word in caption.split(" "))


class Batches:
    """Draws training batches: latents of one shape, prompts, slices, and what is left out for guidance."""

    def __init__(
        self,
        examples: list[Example],
        captions: Captions,
        tokenizer: CLIPTokenizer,
        processor: CLIPImageProcessorPil,
        setup: DiffusionTraining,
    ) -> None:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(examples):
            by_shape.setdefault(example.latents.shape, []).append(index)
        self._groups = list(by_shape.values())
        self._share = np.array([len(group) for group in self._groups]) / len(examples)
        self.tokenizer = tokenizer
        self._examples, self._captions, self._setup = examples, captions, setup
        self._mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
        self._deviation = torch.tensor(processor.image_std).view(1, 3, 1, 1)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents (B, C, h, w), ids (B, prompts, tokens), pixels (B, 3, side, side), image flags (B,)."""
        setup = self._setup
        group = self._groups[int(rng.choice(len(self._groups), p=self._share))]
        chosen = [self._examples[group[k]] for k in rng.integers(len(group), size=setup.batch)]
        whole = rng.random() < 0.25
        prompts = []
        for example in chosen:
            drawn = self._captions.draw(example, whole, setup.drop_block, rng)
            prompts += [""] * len(drawn) if rng.random() < setup.drop_text else drawn
        ids = tokenize(self.tokenizer, prompts).reshape(setup.batch, -1, TOKENS)
        pixels = to_tensor(np.stack([example.subject for example in chosen])) / 2 + 0.5
        # The slice arrives over a noisy channel.
        noise = torch.from_numpy(rng.normal(0, 1, pixels.shape).astype(np.float32) * rng.exponential(0.05))
        pixels = ((pixels + noise).clamp(0, 1) - self._mean) / self._deviation
        with_image = torch.from_numpy((rng.random(setup.batch) >= setup.drop_image).astype(np.float32))
        latents = torch.from_numpy(np.stack([example.latents for example in chosen]).astype(np.float32))
        return latents, ids, pixels, with_image


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids (prompts, tokens), padded and cut to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def train(
    data: Path,
    work: Path,
    vae: Path,
    fcn: Path,
    output: Path,
    adapter: Path,
    block_captions: Path | None = None,
    setup: DiffusionTraining = DiffusionTraining(),
    place: Device = CPU,
) -> dict[str, float]:
    """Train on the data's photographs and save a pipeline directory and an adapter directory.

    Args:
        data: folder of the photographs.
        work: folder of the resumable checkpoint.
        vae: the trained autoencoder.
        fcn: the trained segmentation network.
        output: the pipeline's directory.
        adapter: the IP-Adapter's directory.
        block_captions: JSON, path below ``data`` -> captions of the whole and the four blocks.
        setup: steps, batch, rate, seed.
        place: to train on.

    Returns:
        What ``measure`` found.
    """
    torch.manual_seed(setup.seed)
    photographs = load_photographs(data)
    names = [str(p.path.relative_to(data)) for p in photographs]
    spoken = json.loads(block_captions.read_text()) if block_captions and block_captions.is_file() else {}
    said = [caption for p in photographs for caption in p.captions] + (data / "captions.txt").read_text().splitlines()
    tokenizer = train_tokenizer([*said, *[f"{corner}:" for corner in CORNERS] * 100])
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SLICE_SIDE}, crop_size={"height": SLICE_SIDE, "width": SLICE_SIDE}
    )
    autoencoder = AutoencoderKL.from_pretrained(vae, dtype=torch.float32).to(place.device).eval()
    boxes = subject_boxes(photographs, Segmenter.load(fcn, place.device), work / "subjects.json")
    examples = make_examples(photographs, boxes, autoencoder, processor, setup.seed)
    captions = Captions(photographs, spoken, names)
    seen = Batches([e for e in examples if not photographs[e.source].held_out], captions, tokenizer, processor, setup)
    unseen = Batches([e for e in examples if photographs[e.source].held_out], captions, tokenizer, processor, setup)
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,  # the generator switches it on, because of the range
        clip_sample_range=2.0,  # deviations; errors at the noisiest steps would else grow without bound
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    trainee = ExponentialMovingAverage(Conditioned(tokenizer))

    def loss(step: int) -> Tensor:
        trainee.update(step, setup.decay)
        rng = np.random.default_rng([setup.seed, step])
        return l_simple(trainee.online, scheduler, seen.draw(rng), rng, place)

    schedule = Schedule(setup.steps, setup.rate, warm_up=200, weight_decay=0.01, save_every=200)
    log = fit("diffusion", trainee, loss, schedule, work, seed=setup.seed, place=place)
    model = trainee.average.eval()
    quality = measure(model, scheduler, unseen, place=place)
    save(model.cpu(), tokenizer, processor, autoencoder.cpu(), scheduler, output, adapter)
    record = {"setup": asdict(setup), "block_captions": len(spoken), "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record) + "\n")
    return quality


def l_simple(
    model: Conditioned,
    scheduler: DDIMScheduler,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    rng: np.random.Generator,
    place: Device = CPU,
) -> Tensor:
    """The mean squared error of the predicted noise at random steps (eq. 11)."""
    latents, ids, pixels, with_image = batch
    noise = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
    times = torch.from_numpy(rng.integers(scheduler.config.num_train_timesteps, size=len(latents)))
    noisy = scheduler.add_noise(latents, noise, times)
    given = (tensor.to(place.device) for tensor in (noisy, times, ids, pixels, with_image))
    with place.autocast():
        predicted = model(*given)
    return functional.mse_loss(predicted.float(), noise.to(place.device))


def measure(
    model: Conditioned, scheduler: DDIMScheduler, batches: Batches, count: int = 24, place: Device = CPU
) -> dict[str, float]:
    """Mean L_simple over ``count`` batches of held-out photographs: as trained, without text, without image."""
    sums = {"loss": 0.0, "loss_no_text": 0.0, "loss_no_image": 0.0}
    for number in range(count):
        rng = np.random.default_rng([99, number])
        latents, ids, pixels, with_image = batches.draw(rng)
        empty = tokenize(batches.tokenizer, [""])[0].expand_as(ids)
        image, none = torch.ones_like(with_image), torch.zeros_like(with_image)
        for key, words, flags in (("loss", ids, image), ("loss_no_text", empty, image), ("loss_no_image", ids, none)):
            with torch.inference_mode():
                batch, again = (latents, words, pixels, flags), np.random.default_rng([7, number])
                value = l_simple(model, scheduler, batch, again, place)
            sums[key] += value.item() / count
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
