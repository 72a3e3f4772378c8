"""Regional cross-attention: each quarter of the picture attends to the caption of its own block before the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multisc.models.feature_prompt import cross_attentions
from multisc.models.prompts import BLOCKS

# Logarithm of the weight of another block's caption against one's own: small, so that quarters still agree.
OTHERS = -2.0


@contextmanager
def regional_attention(unet: nn.Module, size: tuple[int, int]) -> Iterator[None]:
    """Within this context the UNet's cross-attention is regional wherever it is given the prompts of four blocks.

    Args:
        unet: ``UNet2DConditionModel``, with or without an adapter; its image prompt is not regional.
        size: (height, width) of the latents.
    """

    def bias(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        context = kwargs["encoder_hidden_states"]
        text = context[0] if isinstance(context, tuple) else context
        added = attention_bias(args[0].shape[1], size, text.shape[1]).to(args[0])
        return args, {**kwargs, "attention_mask": added.expand(len(args[0]), -1, -1)}

    layers = [unet.get_submodule(name) for _, name in cross_attentions(unet)]
    hooks = [layer.register_forward_pre_hook(bias, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attention_bias(queries: int, size: tuple[int, int], tokens: int) -> Tensor:
    """What is added to the attention's scores.

    Args:
        queries: places of the layer, row by row: those of the latents, or of every second row and column, ...
        size: (height, width) of the latents.
        tokens: of the four prompts together, of equal length.

    Returns:
        float32 (queries, tokens): 0 for the own block's tokens, ``OTHERS`` for those of the other three.
    """
    shrink = round(math.sqrt(size[0] * size[1] / queries))
    rows, columns = -(-size[0] // shrink), -(-size[1] // shrink)
    down = (torch.arange(rows) * 2 >= rows).long()
    across = (torch.arange(columns) * 2 >= columns).long()
    block = (2 * down[:, None] + across).flatten()
    own = torch.arange(BLOCKS).repeat_interleave(tokens // BLOCKS)
    return torch.where(block[:, None] == own, 0.0, OTHERS)
