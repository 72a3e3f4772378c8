# SPDX-License-Identifier: GPL-3.0-or-later
"""BLIP and BLIP-2 whose vision tower is the shared encoder, in place of the transformers of their own.

Everything behind the tower is the published classes': ``BlipForConditionalGeneration``'s text decoder, BLIP-2's
Q-Former, projection and language model. ``vision_encoder`` in ``config.json`` asks for these classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipVisionConfig,
)

from multisc.models.efficientnet_lite import FEATURES, EfficientNetLiteConfig, EfficientNetLiteModel


def unused_tower(kind: type[BlipVisionConfig] | type[Blip2VisionConfig], encoder: EfficientNetLiteConfig) -> Any:
    """Return the smallest configuration of a tower that makes vectors of the encoder's width; it is replaced."""
    return kind(
        hidden_size=FEATURES,
        intermediate_size=1,
        num_hidden_layers=0,
        num_attention_heads=1,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size // 4,
    )


class EncoderBlip(BlipForConditionalGeneration):
    """A BLIP that sees through the encoder that ``config.vision_encoder`` describes."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = EfficientNetLiteModel(EfficientNetLiteConfig(**config.vision_encoder))


class EncoderBlip2(Blip2ForConditionalGeneration):
    """A BLIP-2 that sees through the encoder that ``config.vision_encoder`` describes."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = EfficientNetLiteModel(EfficientNetLiteConfig(**config.vision_encoder))


def sees_through_encoder(directory: str) -> bool:
    """Whether a checkpoint asks for the classes above; what is wrong with it is for the loading to tell."""
    try:
        config = json.loads((Path(directory) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get("vision_encoder"), dict)
