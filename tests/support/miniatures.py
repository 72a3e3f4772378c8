"""Tiny, untrained checkpoints as this release of the libraries writes them, and with them `multisc train`.

As the hub has the published ones, written by older releases: ``hub_miniatures``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)

from multisc.training.llava import CHAT_TEMPLATE
from multisc.training.tokenizers import bart_tokenizer, qwen2_tokenizer, train_bpe

SENTENCES = [
    "a dog runs on the beach.",
    "a man in a red shirt rides a bicycle.",
    "two children play in the water.",
] * 3
BPE = train_bpe(SENTENCES, 160)


def write_llava(directory: Path, shard_size: str = "5GB", seed: int = 0) -> Path:
    """Write a LLaVA with a CLIP tower and a Qwen2 language model; return its directory."""
    torch.manual_seed(seed)
    tokenizer = qwen2_tokenizer(*BPE, max_length=128)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    language = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.encode("<image>")[0],
        image_seq_length=4,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    LlavaForConditionalGeneration(config).half().save_pretrained(directory, max_shard_size=shard_size)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def write_bart(directory: Path, seed: int = 0) -> Path:
    """Write a BART; return its directory."""
    torch.manual_seed(seed)
    tokenizer = bart_tokenizer(*BPE, max_length=32)
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    BartForConditionalGeneration(config).half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
