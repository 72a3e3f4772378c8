"""Rebuild a picture from captions and the subject's slice: IP-Adapter on Stable Diffusion (Multi-SC eq. 6 and 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multisc.codecs.pixels import Box
from multisc.errors import BadInputError, ModelError
from multisc.models.checkpoint import check_directory, check_memory, enough_memory, explained, find
from multisc.models.known import KnownRegion, is_told, keep_known_region, told
from multisc.models.placement import paste, scale_box
from multisc.models.profile import precision
from multisc.models.prompts import BLOCKS, encode_prompts, prompts_of
from multisc.models.regions import regional_attention

# The layout of h94/IP-Adapter.
ADAPTER_FOLDER = "models"
ADAPTER_WEIGHTS = "ip-adapter_sd15.safetensors"
IMAGE_ENCODER_FOLDER = "image_encoder"

MAX_ASPECT = 3.0  # of the working picture; beyond it the result is stretched
MAX_STEPS = 1000
# Share of each step's noise that is drawn anew (DDIM's eta). With none, the first steps, which hardly see the slice,
# fix the picture; with all of it, the generated part goes on adapting to the slice until the end.
ETA = 1.0

# How strongly captions and slice steer the denoising. Around a slice: chosen from 2, 4 and 6 on held-out training
# photographs, for the highest cosine with the source.
GUIDANCE = 2.0
GUIDANCE_AROUND_SLICE = 6.0

# How far towards pure noise the denoising starts when there is a slice. Around the slice it starts from the slice's
# border, drawn outward: what is left of it in the noise gives the surroundings their colours.
STRENGTH = 0.55

# Deviation of the error of a slice's latents for each unit of its pixels' root mean square error, of full scale. An
# estimate: latents have about unit deviation, photographs a third of full scale. It matters to a told UNet alone.
NOISE_OF_ERROR = 3.0

MAX_BATCH = 8  # pictures denoised at once, which bounds the memory


@dataclass(frozen=True)
class GenerationRequest:
    """A picture to generate.

    Args:
        captions: four, of the blocks top left, top right, bottom left, bottom right; or one; or none.
        subject: the received slice, uint8 (h, w, 3); None when there is none.
        box: where it belongs, (x, y, width, height) in pixels of the full picture; None without a slice.
        size: (width, height) of the full picture in pixels.
        seed: of the noise.
        error: expected root mean square of the slice's error, of full scale; 0 to 1.

    Raises:
        BadInputError: for values that contradict each other or their range.
    """

    captions: Sequence[str]
    subject: NDArray[np.uint8] | None
    box: Box | None
    size: tuple[int, int]
    seed: int = 0
    error: float = 0.0

    def __post_init__(self) -> None:
        subject, size = self.subject, self.size
        if len(self.captions) not in (0, 1, 4):
            raise BadInputError(f"{len(self.captions)} captions: must be 4 (one a block), 1 or none")
        if min(size) < 1:
            raise BadInputError(f"picture size {size[0]}x{size[1]}: must be at least 1x1")
        if not 0.0 <= self.error <= 1.0:
            raise BadInputError(f"error of the subject's slice {self.error}: must be 0 to 1")
        if (subject is None) != (self.box is None):
            raise BadInputError("the subject's slice and its box must be given together")
        if subject is not None and (subject.ndim != 3 or subject.shape[2] != 3 or not subject.size):
            raise BadInputError(
                f"the subject's slice has shape {subject.shape}: must be (height, width, 3), not empty"
            )
        if self.box is not None:
            x, y, w, h = self.box
            if min(x, y) < 0 or min(w, h) < 1 or x + w > size[0] or y + h > size[1]:
                raise BadInputError(f"subject box {self.box}: must lie inside the picture of {size[0]}x{size[1]}")


class Generator:
    """Generates pictures. Made by ``Generator.load``.

    Args:
        pipeline: Stable Diffusion with an IP-Adapter loaded.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._pipeline = pipeline
        # One-step solvers alone let the known region be put back between steps. Predictions are clipped where the
        # checkpoint gives a range for latents; the default range is meant for pixels.
        config = pipeline.scheduler.config
        bounded = config.get("clip_sample_range", 1.0) > 1.0
        self._scheduler = DDIMScheduler.from_config(config, clip_sample=bounded)

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
        regional: bool = True,
    ) -> NDArray[np.uint8]:
        """Generate a picture. On the CPU the same arguments give the same picture, bit for bit.

        Args:
            captions, subject, box, size, seed: see ``GenerationRequest``.
            ip_scale, steps, guidance, paste_subject, regional: see ``generate_all``.

        Returns:
            uint8 (height, width, 3).

        Raises:
            BadInputError: for an argument outside its range.
        """
        order = GenerationRequest(captions, subject, box, size, seed)
        return self.generate_all([order], ip_scale, steps, guidance, paste_subject, regional)[0]

    def generate_all(
        self,
        orders: Sequence[GenerationRequest],
        ip_scale: float = 1.0,
        steps: int = 25,
        guidance: float | None = None,
        paste_subject: bool = True,
        regional: bool = True,
    ) -> list[NDArray[np.uint8]]:
        """Generate pictures, those of one working size at once; each is what ``generate`` makes, but for rounding.

        The slice enters in three ways: as the image prompt (eq. 9), as latents that its place in the picture is tied
        to while the rest is denoised around them, and, with ``paste_subject``, as the received pixels themselves.

        Args:
            orders: any number.
            ip_scale: lambda of eq. 10, 0 or more; 0 leaves the image prompt out.
            steps: denoising steps, 1 to 1000.
            guidance: classifier-free guidance; 1 is none, None for what suits a picture with or without a slice.
            paste_subject: whether the received pixels replace the generated ones inside the box, with a soft seam.
            regional: whether each quarter of the picture attends to the caption of its own block before the others.

        Returns:
            uint8 (height, width, 3), one for each order.

        Raises:
            BadInputError: for an argument outside its range.
        """
        _check(ip_scale, steps)
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for index, order in enumerate(orders):
            kind = (self.working_size(order.size), order.subject is None, len(prompts_of(order.captions)))
            kinds.setdefault(kind, []).append(index)
        pictures: dict[int, NDArray[np.uint8]] = {}
        for alike in kinds.values():
            for start in range(0, len(alike), MAX_BATCH):
                chosen = alike[start : start + MAX_BATCH]
                alike_orders = [orders[i] for i in chosen]
                made = self._generate_alike(alike_orders, ip_scale, steps, guidance, paste_subject, regional)
                pictures |= zip(chosen, made, strict=True)
        return [pictures[index] for index in range(len(orders))]

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
        _check(1.0, steps)
        condition = self._condition([GenerationRequest([], None, None, size)], 1.0, image)
        height, width = self.working_size(size)
        known = None
        if sketch is not None:
            start = self._known([(sketch, (0, 0, width, height), 0.0)], (width, height))
            known = replace(start, mask=torch.zeros_like(start.mask))
        return _enlarge(self._denoise(condition, known, (height, width), [seed], steps, guidance)[0], size)

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

    def _generate_alike(
        self,
        orders: list[GenerationRequest],
        ip_scale: float,
        steps: int,
        guidance: float | None,
        paste_subject: bool,
        regional: bool,
    ) -> list[NDArray[np.uint8]]:
        """Generate pictures of one working size, all with a slice or all without, in one batch."""
        height, width = self.working_size(orders[0].size)
        slices = [(o.subject, o.box, o) for o in orders if o.subject is not None and o.box is not None]
        known = None
        if slices:
            placed = [(subject, scale_box(box, o.size, (width, height)), o.error) for subject, box, o in slices]
            known = self._known(placed, (width, height))
        if guidance is None:
            guidance = GUIDANCE_AROUND_SLICE if slices else GUIDANCE
        condition = self._condition(orders, ip_scale)
        seeds = [order.seed for order in orders]
        regional = regional and len(prompts_of(orders[0].captions)) == BLOCKS
        drawn = self._denoise(condition, known, (height, width), seeds, steps, guidance, regional)
        pictures = [_enlarge(picture, order.size) for picture, order in zip(drawn, orders, strict=True)]
        if slices and paste_subject:
            pictures = [
                paste(picture, subject, box) for picture, (subject, box, _) in zip(pictures, slices, strict=True)
            ]
        return pictures

    @torch.inference_mode()
    def _condition(
        self, orders: list[GenerationRequest], ip_scale: float, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The pipeline's arguments for text and image prompt, each with its empty counterpart for the guidance."""
        pipeline = self._pipeline
        prompts = [prompts_of(order.captions) for order in orders]
        flat = [prompt for of_one in prompts for prompt in of_one]
        length = pipeline.tokenizer.model_max_length
        both = [
            pipeline.tokenizer(p, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            for p in (flat, [""] * len(flat))
        ]
        ids = torch.cat([tokens.input_ids for tokens in both]).reshape(2 * len(orders), len(prompts[0]), -1)
        text = encode_prompts(pipeline.text_encoder, ids.to(pipeline.device))
        subjects = [order.subject for order in orders if order.subject is not None]
        pipeline.set_ip_adapter_scale(ip_scale if subjects or image is not None else 0.0)
        if image is not None:
            image = image.to(pipeline.device, pipeline.unet.dtype)
        elif subjects:
            image = torch.cat([self.embed(subject) for subject in subjects])
        else:
            width = pipeline.image_encoder.config.projection_dim
            image = torch.zeros(len(orders), width, device=pipeline.device, dtype=pipeline.image_encoder.dtype)
        return {"text": text[: len(orders)], "no_text": text[len(orders) :], "image": image}

    @torch.inference_mode()
    def _known(self, slices: list[tuple[NDArray[np.uint8], Box, float]], size: tuple[int, int]) -> KnownRegion:
        """Place each slice on a canvas of ``size`` = (width, height) and encode it."""
        pipeline, (width, height) = self._pipeline, size
        cell = pipeline.vae_scale_factor
        canvases, masks = [], []
        for subject, (x, y, w, h), _ in slices:
            small = np.asarray(Image.fromarray(subject).resize((w, h), Image.Resampling.LANCZOS))
            canvases.append(np.pad(small, ((y, height - y - h), (x, width - x - w), (0, 0)), mode="edge"))
            inside = np.zeros((height, width), np.float32)
            inside[y : y + h, x : x + w] = 1.0
            share = inside.reshape(height // cell, cell, width // cell, cell).mean((1, 3))
            masks.append((share >= min(0.5, share.max()))[None])
        pixels = torch.from_numpy(np.stack(canvases).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0)
        pixels = pixels.to(pipeline.device, pipeline.vae.dtype)
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        noise = torch.tensor([NOISE_OF_ERROR * error for _, _, error in slices])
        return KnownRegion(latents, torch.from_numpy(np.stack(masks)).to(pipeline.device), noise.to(pipeline.device))

    @torch.inference_mode()
    def _denoise(
        self,
        condition: dict[str, Tensor],
        known: KnownRegion | None,
        size: tuple[int, int],
        seeds: list[int],
        steps: int,
        guidance: float,
        regional: bool = False,
    ) -> NDArray[np.uint8]:
        pipeline, scheduler, cell = self._pipeline, self._scheduler, self._pipeline.vae_scale_factor
        # Drawn on the CPU, so that the device does not change the picture more than its rounding does; and by a
        # generator for each picture, so that the others of its batch do not.
        random = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = (pipeline.vae.config.latent_channels, size[0] // cell, size[1] // cell)
        noise = torch.stack([torch.randn(shape, generator=own) for own in random])
        noise = noise.to(pipeline.device, pipeline.unet.dtype)
        # Starting from what is known serves a UNet that is not told of it; its own mask says that nothing stays.
        outward = known is not None and not (is_told(pipeline.unet) and known.mask.any())
        scheduler.set_timesteps(math.ceil(steps / STRENGTH) if outward else steps, device=pipeline.device)
        times = scheduler.timesteps[-steps:]
        latents = noise * scheduler.init_noise_sigma
        if outward and known is not None:
            latents = scheduler.add_noise(known.latents, noise, times[:1])
        text, image = condition["text"], condition["image"][:, None]
        if guidance > 1.0:
            text, image = torch.cat([condition["no_text"], text]), torch.cat([torch.zeros_like(image), image])
        regions = regional_attention(pipeline.unet, shape[1:]) if regional else nullcontext()
        with regions:
            for number, time in enumerate(times):
                given = told(pipeline.unet, scheduler.scale_model_input(latents, time), known)
                repeated = given.repeat(len(text) // len(given), 1, 1, 1)
                prompts = {"image_embeds": [image]}
                predicted = pipeline.unet(repeated, time, text, added_cond_kwargs=prompts).sample
                if guidance > 1.0:
                    without, predicted = predicted.chunk(2)
                    predicted = without + guidance * (predicted - without)
                latents = scheduler.step(predicted, time, latents, ETA, generator=random).prev_sample
                if known is not None:
                    later = times[number + 1] if number + 1 < len(times) else -1
                    latents = keep_known_region(known, scheduler, latents, later, noise)
        pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        pictures = (pictures.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return (pictures * 255).round().astype(np.uint8)


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


def _check(ip_scale: float, steps: int) -> None:
    if not (math.isfinite(ip_scale) and ip_scale >= 0):
        raise BadInputError(f"image prompt weight {ip_scale}: must be 0 or more")
    if not 1 <= steps <= MAX_STEPS:
        raise BadInputError(f"{steps} denoising steps: must be 1 to {MAX_STEPS}")


def _enlarge(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


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
