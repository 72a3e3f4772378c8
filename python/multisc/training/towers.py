"""The vision tower of the embedded BLIP and BLIP-2, begun from that of the embedded LLaVA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Blip2VisionConfig


def vision_sizes(clip: Any) -> dict[str, Any]:
    """The sizes of a CLIP vision tower as arguments of ``BlipVisionConfig`` or ``Blip2VisionConfig``."""
    taken = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    sizes = {name: getattr(clip.config, name) for name in (*taken, "patch_size", "hidden_act", "layer_norm_eps")}
    return sizes | {"initializer_range": 0.02}


def vision_config(clip: Any) -> Blip2VisionConfig:
    """The configuration of a BLIP-2 tower as large as a CLIP tower."""
    return Blip2VisionConfig(**vision_sizes(clip))


@torch.no_grad()
def copy_tower(clip: Any, tower: Any, pixels: Tensor) -> None:
    """Copy a CLIP tower's weights into a BLIP or BLIP-2 tower of the same sizes.

    BLIP's tower has no layer norm in front. That of CLIP takes the mean, which a matrix can do, and divides by the
    deviation of each token; here by the mean deviation over some pictures, which further training makes up for.

    Args:
        clip: ``CLIPVisionModel``.
        tower: ``BlipVisionModel`` or ``Blip2VisionModel``, filled in place.
        pixels: pictures, (N, 3, H, W), whose deviations are taken.
    """
    theirs = {name.removeprefix("vision_model."): value for name, value in clip.state_dict().items()}
    ours = tower.state_dict()
    gain, offset = theirs["pre_layrnorm.weight"], theirs["pre_layrnorm.bias"]
    width = len(gain)
    patches, places = theirs["embeddings.patch_embedding.weight"], theirs["embeddings.position_embedding.weight"]
    embedded = torch.nn.functional.conv2d(pixels, patches, stride=patches.shape[-1]).flatten(2).transpose(1, 2)
    deviation = (embedded + places[1:]).std(dim=-1, correction=0).mean()
    first = theirs["embeddings.class_embedding"] + places[0]
    centre = gain[:, None] * (torch.eye(width) - 1.0 / width)
    ours["embeddings.class_embedding"] = torch.zeros(1, 1, width)
    ours["embeddings.patch_embedding.weight"] = torch.einsum("ij,jchw->ichw", centre, patches) / deviation
    ours["embeddings.patch_embedding.bias"] = torch.zeros(width)
    rows = [first @ centre.T / first.std(correction=0), places[1:] @ centre.T / deviation]
    ours["embeddings.position_embedding"] = (torch.cat([rows[0][None], rows[1]]) + offset)[None]
    for name in ours:
        layer, _, part = name.partition("self_attn.")
        if part.startswith("qkv."):
            kind = part.removeprefix("qkv.")
            ours[name] = torch.cat([theirs[f"{layer}self_attn.{p}_proj.{kind}"] for p in "qkv"])
        elif part:
            ours[name] = theirs[f"{layer}self_attn.out_proj.{part.removeprefix('projection.')}"]
        elif name.startswith("encoder."):
            ours[name] = theirs[name]
    tower.load_state_dict(ours)
