"""Tiny, untrained BLIP and BLIP-2 checkpoints and a projection, as `multisc train` writes them.

As the hub has the published ones: ``hub_blip``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    OPTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from multisc.codecs.feature import FeatureStatistics
from multisc.models.generator import load_pipeline
from multisc.training.blip_tokenizers import bert_tokenizer, opt_tokenizer
from multisc.training.vlf import new_projection
from tests.support.miniatures import BPE, SENTENCES

TOKENS, WIDTH = 4, 16
PICTURES = BlipImageProcessorPil(size={"height": 32, "width": 32})
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "initializer_range": 0.2,
}


def write_blip(directory: Path, seed: int = 0) -> Path:
    """Write a BLIP for captions; return its directory."""
    torch.manual_seed(seed)
    tokenizer = bert_tokenizer(SENTENCES, 200, max_length=64)
    text = BlipTextConfig(
        vocab_size=len(tokenizer) + 1,  # as published: a row more than the tokenizer has words
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=len(tokenizer) - 1,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=BlipVisionConfig(**VISION)))
    model.half().save_pretrained(directory)
    BlipProcessor(PICTURES, tokenizer).save_pretrained(directory)
    return directory


def write_blip2(directory: Path, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Write a BLIP-2 with an OPT; return its directory."""
    torch.manual_seed(seed)
    tokenizer = opt_tokenizer(*BPE, max_length=64)
    former = Blip2QFormerConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, initializer_range=0.5
    )
    language = OPTConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=96,
        init_std=0.5,
        eos_token_id=tokenizer.encode("\n")[0],  # as published: a caption ends with its line
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION),
        qformer_config=former,
        text_config=language,
        num_query_tokens=TOKENS,
        image_token_index=len(tokenizer) - 1,
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    torch.nn.init.normal_(model.language_projection.weight)
    with torch.no_grad():  # so that no caption is empty
        model.get_input_embeddings().weight[[*tokenizer.all_special_ids, language.eos_token_id]] = 0.0
    model.half().save_pretrained(directory, max_shard_size=shard_size)
    Blip2Processor(PICTURES, tokenizer, num_query_tokens=TOKENS).save_pretrained(directory)
    return directory


def write_projection(directory: Path, stable_diffusion: str, tokens: int = TOKENS, width: int = WIDTH) -> Path:
    """Write an untrained projection for a diffusion model; return its directory."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, tokens, width)) * np.exp(-np.arange(width) / 4.0)
    statistics = FeatureStatistics.measure(features.astype(np.float32))
    new_projection(load_pipeline(stable_diffusion).unet, statistics, {"stable_diffusion": "sd"}, 0).save(directory)
    return directory
