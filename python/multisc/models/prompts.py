"""How captions become the text condition of the diffusion model, in training and in use alike.

Each caption is encoded by itself and the encodings are joined along the sequence, so that four captions of any
length fit; a caption of one block says first which corner of the picture it is about.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CORNERS = ("top left", "top right", "bottom left", "bottom right")  # in the order of the blocks
BLOCKS = len(CORNERS)


def prompts_of(captions: Sequence[str]) -> list[str]:
    """Return the prompts to encode: four of them, or one.

    Args:
        captions: four captions in the order of ``CORNERS``, one of the whole picture, or none.
    """
    if len(captions) == BLOCKS:
        return [f"{corner}: {caption}" if caption else "" for corner, caption in zip(CORNERS, captions, strict=True)]
    return [captions[0]] if captions else [""]


def encode_prompts(text_encoder: torch.nn.Module, ids: Tensor) -> Tensor:
    """Encode prompts and join them.

    Args:
        text_encoder: a ``CLIPTextModel``.
        ids: token ids, (pictures, prompts, tokens).

    Returns:
        (pictures, prompts * tokens, width).
    """
    pictures, prompts, tokens = ids.shape
    encoded = text_encoder(ids.reshape(-1, tokens)).last_hidden_state
    return encoded.reshape(pictures, prompts * tokens, -1)
