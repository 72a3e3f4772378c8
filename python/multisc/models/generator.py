"""Rebuild a picture from captions and the subject's slice: IP-Adapter on Stable Diffusion (Multi-SC eq. 6 and 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multisc.errors import BadInputError, ModelError
from multisc.models.checkpoint import check_directory, check_memory, enough_memory, explained, find
from multisc.models.profile import precision
from multisc.models.prompts import encode_prompts, prompts_of

# The layout of h94/IP-Adapter.
ADAPTER_FOLDER = "models"
ADAPTER_WEIGHTS = "ip-adapter_sd15.safetensors"
IMAGE_ENCODER_FOLDER = "image_encoder"

MAX_ASPECT = 3.0  # of the working picture; beyond it the result is stretched
FEATHER = 0.08  # of the shorter side of the slice: width of the seam between slice and generated picture
MAX_STEPS = 1000
# Share of each step's noise that is drawn anew (DDIM's eta). With none, the first steps, which hardly see the slice,
# fix the picture; with all of it, the generated part goes on adapting to the slice until the end.
FRESH_NOISE = 1.0

# How strongly captions and slice steer the denoising. Around a slice: chosen from 2, 4 and 6 on held-out training
# photographs, for the highest cosine with the source.
GUIDANCE = 2.0
GUIDANCE_AROUND_SLICE = 6.0

# How far towards pure noise the denoising starts when there is a slice. Around the slice it starts from the slice's
# border, drawn outward: what is left of it in the noise gives the surroundings their colours.
START = 0.55

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Known:
    """The received slice in its place.

    Args:
        canvas: the working picture; around the slice its border goes on to the edges.
        latents: of the canvas, (1, C, h, w).
        mask: which latents are the slice's and stay, bool (1, 1, h, w).
    """

    canvas: Image.Image
    latents: Tensor
    mask: Tensor


class Generator:
    """Generates pictures. Made by ``Generator.load``.

    Args:
        pipeline: Stable Diffusion with an IP-Adapter loaded.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._pipeline = pipeline
        self._outward = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
        # One-step solvers alone let the known region be put back between steps. Predictions are clipped where the
        # checkpoint gives a range for latents; the default range is meant for pixels. Set here, because the
        # pipelines' constructors switch the clipping off.
        config = pipeline.scheduler.config
        bounded = config.get("clip_sample_range", 1.0) > 1.0
        pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=bounded)
        self._outward.scheduler = pipeline.scheduler
        for made in (self._pipeline, self._outward):
            made.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, stable_diffusion: str | Path, ip_adapter: str | Path, device: str = "cpu") -> Generator:
        """Load the pipeline and its adapter.

        Args:
            stable_diffusion: directory of a ``StableDiffusionPipeline``, or its name on the hub.
            ip_adapter: directory with the files of ``h94/IP-Adapter``, or its name on the hub.
            device: "cpu", "cuda", ...; half precision on CUDA, single on the CPU.

        Raises:
            ModelError: when a part is missing, refused, or does not fit the others.
        """
        base, adapter = find(stable_diffusion), find(ip_adapter)
        _check_adapter(Path(adapter.name))
        pipeline = load_pipeline(stable_diffusion, device)
        with explained(adapter):
            pipeline.load_ip_adapter(
                adapter.name,
                subfolder=ADAPTER_FOLDER,
                weight_name=ADAPTER_WEIGHTS,
                image_encoder_folder=IMAGE_ENCODER_FOLDER,
                local_files_only=True,
            )
        given = pipeline.image_encoder.config.projection_dim
        taken = pipeline.unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features
        if given != taken:
            raise ModelError(
                f"model {adapter.name}: its image encoder gives {given} values, its adapter takes {taken}"
            )
        with enough_memory(base.name, device):
            return cls(pipeline.to(device))

    def generate(
        self,
        captions: Sequence[str],
        subject: NDArray[np.uint8] | None,
        box: Box | None,
        size: tuple[int, int],
        ip_scale: float = 1.0,
        seed: int = 0,
        steps: int = 25,
        guidance: float | None = None,
        paste_subject: bool = True,
    ) -> NDArray[np.uint8]:
        """Generate a picture. On the CPU the same arguments give the same picture, bit for bit.

        The slice enters in three ways: as the image prompt (eq. 9), as latents that its place in the picture is tied
        to while the rest is denoised around them, and, with ``paste_subject``, as the received pixels themselves.

        Args:
            captions: four, of the blocks top left, top right, bottom left, bottom right; or one; or none.
            subject: the received slice, uint8 (h, w, 3); None when there is none.
            box: where it belongs, (x, y, width, height) in pixels of the full picture; None without a slice.
            size: (width, height) of the full picture in pixels.
            ip_scale: lambda of eq. 10, 0 or more; 0 leaves the image prompt out.
            seed: of the noise.
            steps: denoising steps, 1 to 1000.
            guidance: classifier-free guidance; 1 is none, None for what suits a picture with or without a slice.
            paste_subject: whether the received pixels replace the generated ones inside the box, with a soft seam.

        Returns:
            uint8 (height, width, 3).

        Raises:
            BadInputError: for an argument outside its range.
        """
        _check(captions, subject, box, size, ip_scale, steps)
        height, width = self.working_size(size)
        condition = self._condition(captions, subject, ip_scale)
        if subject is None or box is None:
            picture = self._denoise(
                condition, None, (height, width), seed, steps, GUIDANCE if guidance is None else guidance
            )
            return _enlarge(picture, size)
        small_box = _scale(box, size, (width, height))
        known = self._known(subject, small_box, (width, height))
        guidance = GUIDANCE_AROUND_SLICE if guidance is None else guidance
        picture = _enlarge(self._denoise(condition, known, (height, width), seed, steps, guidance), size)
        return _paste(picture, subject, box) if paste_subject else picture

    @property
    def embedding_width(self) -> int:
        """Values of an embedding that ``embed`` returns."""
        return self._pipeline.image_encoder.config.projection_dim

    @torch.inference_mode()
    def embed(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return the embedding of a picture, uint8 (H, W, 3), that the adapter takes as image prompt: (1, width)."""
        pipeline = self._pipeline
        pixels = pipeline.feature_extractor(Image.fromarray(picture), return_tensors="pt").pixel_values
        return pipeline.image_encoder(pixels.to(pipeline.device, pipeline.image_encoder.dtype)).image_embeds

    def draw(
        self,
        image: Tensor,
        size: tuple[int, int],
        seed: int = 0,
        steps: int = 25,
        guidance: float = GUIDANCE,
        sketch: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Generate a picture from an image prompt that is there already, without text.

        Args:
            image: what the pipeline's adapter takes as one image's embedding, (1, ...); zeros stand for none.
            size: (width, height) of the picture in pixels.
            seed, steps, guidance: see ``generate``.
            sketch: what the picture looks like from afar, uint8 (h, w, 3) of any size: the denoising starts from it
                rather than from pure noise.

        Returns:
            uint8 (height, width, 3).

        Raises:
            BadInputError: for an argument outside its range.
        """
        _check([], None, None, size, 1.0, steps)
        condition = self._condition([], None, 1.0, image)
        height, width = self.working_size(size)
        known = None
        if sketch is not None:
            start = self._known(sketch, (0, 0, width, height), (width, height))
            known = replace(start, mask=torch.zeros_like(start.mask))
        return _enlarge(self._denoise(condition, known, (height, width), seed, steps, guidance), size)

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) in pixels to work at: the model's trained area at the picture's aspect ratio."""
        unet = self._pipeline.unet.config
        trained = unet.sample_size
        area = trained**2 if isinstance(trained, int) else trained[0] * trained[1]
        unit = 2 ** (len(unet.block_out_channels) - 1)
        aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, size[0] / size[1]))
        width = max(1, round(math.sqrt(area * aspect) / unit)) * unit
        height = max(1, round(math.sqrt(area / aspect) / unit)) * unit
        return height * self._pipeline.vae_scale_factor, width * self._pipeline.vae_scale_factor

    @torch.inference_mode()
    def _condition(
        self, captions: Sequence[str], subject: NDArray[np.uint8] | None, ip_scale: float, image: Tensor | None = None
    ) -> dict[str, Any]:
        """The pipeline's arguments for text and image prompt, each with its empty counterpart for the guidance."""
        pipeline = self._pipeline
        prompts = prompts_of(captions)
        length = pipeline.tokenizer.model_max_length
        both = [
            pipeline.tokenizer(p, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            for p in (prompts, [""] * len(prompts))
        ]
        ids = torch.stack([tokens.input_ids for tokens in both]).to(pipeline.device)
        text = encode_prompts(pipeline.text_encoder, ids)
        pipeline.set_ip_adapter_scale(ip_scale if subject is not None or image is not None else 0.0)
        if image is not None:
            image = image.to(pipeline.device, pipeline.unet.dtype)
        elif subject is None:
            width = pipeline.image_encoder.config.projection_dim
            image = torch.zeros(1, width, device=pipeline.device, dtype=pipeline.image_encoder.dtype)
        else:
            image = self.embed(subject)
        return {"text": text[:1], "no_text": text[1:], "image": image}

    @torch.inference_mode()
    def _known(self, subject: NDArray[np.uint8], box: Box, size: tuple[int, int]) -> Known:
        """Place the slice on a canvas of ``size`` = (width, height) and encode it."""
        pipeline, (width, height), (x, y, w, h) = self._pipeline, size, box
        small = np.asarray(Image.fromarray(subject).resize((w, h), Image.Resampling.LANCZOS))
        canvas = np.pad(small, ((y, height - y - h), (x, width - x - w), (0, 0)), mode="edge")
        pixels = torch.from_numpy(canvas.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1.0)
        pixels = pixels.to(pipeline.device, pipeline.vae.dtype)
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        inside = np.zeros((height, width), np.float32)
        inside[y : y + h, x : x + w] = 1.0
        cell = pipeline.vae_scale_factor
        share = inside.reshape(height // cell, cell, width // cell, cell).mean((1, 3))
        mask = torch.from_numpy((share >= min(0.5, share.max()))[None, None])
        return Known(Image.fromarray(canvas), latents, mask.to(pipeline.device))

    @torch.inference_mode()
    def _denoise(
        self,
        condition: dict[str, Tensor],
        known: Known | None,
        size: tuple[int, int],
        seed: int,
        steps: int,
        guidance: float,
    ) -> NDArray[np.uint8]:
        pipeline, (height, width) = self._pipeline, size
        # Drawn on the CPU, so that the device does not change the picture more than its rounding does.
        random = torch.Generator("cpu").manual_seed(seed)
        image = condition["image"][None]
        common = {
            "prompt_embeds": condition["text"],
            "negative_prompt_embeds": condition["no_text"],
            "ip_adapter_image_embeds": [torch.cat([torch.zeros_like(image), image]) if guidance > 1.0 else image],
            "guidance_scale": guidance,
            "eta": FRESH_NOISE,
            "generator": random,
            "output_type": "np",
        }
        if known is None:
            result = pipeline(height=height, width=width, num_inference_steps=steps, **common)
        else:
            noise = torch.randn(known.latents.shape, generator=random).to(known.latents)
            result = self._outward(
                image=known.canvas,
                strength=START,
                num_inference_steps=math.ceil(steps / START),
                callback_on_step_end=_tie(known, noise),
                **common,
            )
        return (result.images[0] * 255).round().astype(np.uint8)


def load_pipeline(stable_diffusion: str | Path, device: str = "cpu") -> StableDiffusionPipeline:
    """Load Stable Diffusion without an adapter, not yet on the device.

    Args:
        stable_diffusion: directory of a ``StableDiffusionPipeline``, or its name on the hub.
        device: that it is for: half precision for CUDA, single for the CPU.

    Raises:
        ModelError: when a part is missing, refused, or does not fit the others.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    diffusers_logging.disable_progress_bar()
    logging.disable_progress_bar()
    base = find(stable_diffusion)
    _check_pipeline(Path(base.name))
    check_memory(Path(base.name), device)
    with explained(base), enough_memory(base.name, device):
        # Named here, because the default class wants torchvision.
        processor = CLIPImageProcessorPil.from_pretrained(base.name, subfolder="feature_extractor", **base.arguments)
        pipeline = StableDiffusionPipeline.from_pretrained(
            base.name,
            dtype=precision(device),
            use_safetensors=True,
            feature_extractor=processor,
            safety_checker=None,
            requires_safety_checker=False,
            **base.arguments,
        )
    text_width, unet_width = pipeline.text_encoder.config.hidden_size, pipeline.unet.config.cross_attention_dim
    if text_width != unet_width:
        raise ModelError(
            f"model {base.name}: its text encoder gives {text_width} values a token, its UNet takes {unet_width}"
        )
    return pipeline


def _tie(known: Known, noise: Tensor) -> Callable[..., dict[str, Tensor]]:
    """Make the callback that puts the known latents, as noisy as the step is, back into their place."""
    latents, mask = known.latents, known.mask

    def put_back(pipeline: StableDiffusionPipeline, _step: int, time: Tensor, state: dict) -> dict[str, Tensor]:
        later = pipeline.scheduler.timesteps[pipeline.scheduler.timesteps < time]
        here = pipeline.scheduler.add_noise(latents, noise, later[:1]) if len(later) else latents
        return {"latents": torch.where(mask, here.to(state["latents"].dtype), state["latents"])}

    return put_back


def _check(
    captions: Sequence[str],
    subject: NDArray[np.uint8] | None,
    box: Box | None,
    size: tuple[int, int],
    ip_scale: float,
    steps: int,
) -> None:
    if len(captions) not in (0, 1, 4):
        raise BadInputError(f"{len(captions)} captions: must be 4 (one a block), 1 or none")
    if min(size) < 1:
        raise BadInputError(f"picture size {size[0]}x{size[1]}: must be at least 1x1")
    if (subject is None) != (box is None):
        raise BadInputError("the subject's slice and its box must be given together")
    if subject is not None and (subject.ndim != 3 or subject.shape[2] != 3 or not subject.size):
        raise BadInputError(f"the subject's slice has shape {subject.shape}: must be (height, width, 3), not empty")
    if box is not None:
        x, y, w, h = box
        if min(x, y) < 0 or min(w, h) < 1 or x + w > size[0] or y + h > size[1]:
            raise BadInputError(f"subject box {box}: must lie inside the picture of {size[0]}x{size[1]}")
    if not (math.isfinite(ip_scale) and ip_scale >= 0):
        raise BadInputError(f"image prompt weight {ip_scale}: must be 0 or more")
    if not 1 <= steps <= MAX_STEPS:
        raise BadInputError(f"{steps} denoising steps: must be 1 to {MAX_STEPS}")


def _enlarge(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _scale(box: Box, size: tuple[int, int], target: tuple[int, int]) -> Box:
    """The box at another size of the picture; inside it, and at least one pixel large."""
    parts = []
    for start, extent, limit, wanted in zip(box[:2], box[2:], size, target, strict=True):
        low = min(wanted - 1, math.floor(start * wanted / limit + 0.5))
        high = max(low + 1, min(wanted, math.floor((start + extent) * wanted / limit + 0.5)))
        parts.append((low, high - low))
    (x, w), (y, h) = parts
    return x, y, w, h


def _paste(picture: NDArray[np.uint8], subject: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Lay the received pixels over the picture, fading towards the box's borders but not at the picture's edge."""
    x, y, w, h = box
    height, width = picture.shape[:2]
    received = np.asarray(Image.fromarray(subject).resize((w, h), Image.Resampling.LANCZOS), np.float32)
    feather = max(1.0, FEATHER * min(w, h))
    weight = np.minimum.outer(_ramp(h, feather, y > 0, y + h < height), _ramp(w, feather, x > 0, x + w < width))[
        ..., None
    ]
    result = picture.copy()
    under = result[y : y + h, x : x + w].astype(np.float32)
    result[y : y + h, x : x + w] = (weight * received + (1 - weight) * under).round().clip(0, 255).astype(np.uint8)
    return result


def _ramp(length: int, feather: float, fade_start: bool, fade_stop: bool) -> NDArray[np.float32]:
    """Weights over one side of the box that rise from its faded ends to 1."""
    place = np.arange(length, dtype=np.float32) + 0.5
    weight = np.ones(length, np.float32)
    if fade_start:
        weight = np.minimum(weight, place / feather)
    if fade_stop:
        weight = np.minimum(weight, (length - place) / feather)
    return weight


def _check_pipeline(directory: Path) -> None:
    if not (directory / "model_index.json").is_file():
        raise ModelError(f"model directory {directory}: model_index.json is missing; it is no diffusers pipeline")
    for part in ("vae", "unet", "text_encoder"):
        check_directory(directory / part, ("config.json",))
    for file in ("tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"):
        if not (directory / file).is_file():
            raise ModelError(f"model directory {directory}: {file} is missing; copy the whole checkpoint there")


def _check_adapter(directory: Path) -> None:
    if not (directory / ADAPTER_FOLDER / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"model directory {directory}: {ADAPTER_FOLDER}/{ADAPTER_WEIGHTS} is missing; "
            "copy the whole checkpoint there"
        )
    check_directory(directory / ADAPTER_FOLDER / IMAGE_ENCODER_FOLDER, ("config.json",))
