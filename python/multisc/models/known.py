"""What is known of a picture before it is generated: the received slice in its place, and how noisy it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Input channels of a UNet that is told of the slice, besides the latents and the slice's own: its place, its noise.
TOLD = 2


@dataclass(frozen=True)
class KnownRegion:
    """Received slices in their places.

    Args:
        latents: of the working pictures; around the slice its border goes on to the edges. (pictures, C, h, w).
        mask: which latents are the slices' and stay, bool (pictures, 1, h, w).
        noise: deviation of the error of the slices' latents, (pictures,).
    """

    latents: Tensor
    mask: Tensor
    noise: Tensor


def is_told(unet: Any) -> bool:
    """Whether a UNet takes the slice, its place and its noise as further input channels."""
    return unet.config.in_channels == 2 * unet.config.out_channels + TOLD


def told(unet: Any, noisy: Tensor, known: KnownRegion | None) -> Tensor:
    """Return what the UNet takes in for latents (pictures, C, h, w).

    Args:
        unet: ``UNet2DConditionModel``; one that is not told of slices takes the latents alone.
        noisy: the latents at some step of the denoising.
        known: the slices; None for none.
    """
    if not is_told(unet):
        return noisy
    if known is None:
        return torch.cat([noisy, torch.zeros_like(noisy), torch.zeros_like(noisy[:, :TOLD])], 1)
    place = known.mask.to(noisy)
    level = known.noise.to(noisy)[:, None, None, None] * place
    return torch.cat([noisy, known.latents.to(noisy) * place, place, level], 1)


def keep_known_region(
    known: KnownRegion, scheduler: Any, latents: Tensor, time: Tensor | int, noise: Tensor
) -> Tensor:
    """Put the known latents, as noisy as the step is, back into their place.

    A slice that is noisier than the step is left to the denoising: from there on the UNet, which is told of the
    noise, knows better.

    Args:
        known: the slices.
        scheduler: with ``alphas_cumprod``.
        latents: after the step, (pictures, C, h, w).
        time: that the latents are at; below 0 when the denoising has ended.
        noise: of unit deviation, as the latents.
    """
    if time < 0:
        here, deviation = known.latents, 0.0
    else:
        share = scheduler.alphas_cumprod[int(time)].item()
        here = share**0.5 * known.latents + (1.0 - share) ** 0.5 * noise
        deviation = ((1.0 - share) / share) ** 0.5
    holds = known.mask & (known.noise <= deviation)[:, None, None, None]
    return torch.where(holds, here.to(latents), latents)
