"""Tiny, untrained Salesforce/blip-image-captioning-base and Salesforce/blip2-opt-2.7b, as the hub has them.

Particular to BLIP: its weights are a pickle in single precision with two names for the tied table; the table has two
rows more than BERT's tokenizer has words, of which one starts a caption. Neither repository has its image processor
in ``processor_config.json``; BLIP has no such file at all.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from multisc.models.hub import digest
from multisc.models.profile import CATALOGUE, Pickle
from multisc.training.blip_tokenizers import bert_tokenizer
from tests.support.hub_files import write_json, write_slow_tokenizer
from tests.support.miniatures import SENTENCES
from tests.support.miniatures_blip import TOKENS, VISION, write_blip2

PIXELS = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "BlipImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"height": 32, "width": 32},
}
BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}


def pin_blip(file: Path, patch: pytest.MonkeyPatch) -> None:
    """Have the catalogue name this pickle's digest."""
    pinned = dataclasses.replace(CATALOGUE["foundation"]["blip"], pickle=Pickle(file.name, digest(file)))
    for parts in CATALOGUE.values():
        patch.setitem(parts, "blip", pinned)  # type: ignore[arg-type]  # a dictionary, though not meant to change


def blip(directory: Path) -> BlipForConditionalGeneration:
    """Write BLIP; return the model whose weights are in the pickle."""
    torch.manual_seed(3)
    directory.mkdir(parents=True, exist_ok=True)
    words = _bert(directory)
    text = BlipTextConfig(
        vocab_size=words + 2,
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=words,
        eos_token_id=2,
        sep_token_id=3,
        pad_token_id=0,
        initializer_range=0.5,
    )
    config = BlipConfig(text_config=text, vision_config=BlipVisionConfig(**VISION))
    model = BlipForConditionalGeneration(config).eval()
    weights = model.state_dict()
    weights["text_decoder.bert.embeddings.position_ids"] = torch.arange(64)[None]  # a buffer of older releases
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "tf_model.h5").write_bytes(b"not wanted")
    values = json.loads(config.to_json_string())
    values |= {"architectures": ["BlipForConditionalGeneration"], "torch_dtype": "float32"}
    values |= {"transformers_version": "4.26.0.dev0"}
    write_json(directory / "config.json", values)
    write_json(directory / "preprocessor_config.json", PIXELS | {"processor_class": "BlipProcessor"})
    return model


def _bert(directory: Path) -> int:
    """Write BERT's four files; returns the number of words."""
    ours = bert_tokenizer(SENTENCES, 200, max_length=512)
    ours.save_pretrained(directory)
    file = directory / "tokenizer.json"
    values = json.loads(file.read_text())
    words = len(values["model"]["vocab"])
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < words]
    write_json(file, values)
    ordered = sorted(values["model"]["vocab"], key=values["model"]["vocab"].get)
    (directory / "vocab.txt").write_text("\n".join(ordered) + "\n")
    write_json(directory / "special_tokens_map.json", BERT)
    about = {
        "do_basic_tokenize": True,
        "do_lower_case": True,
        "model_max_length": 512,
        "never_split": None,
        "processor_class": "BlipProcessor",
        "special_tokens_map_file": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    write_json(directory / "tokenizer_config.json", BERT | about)
    return words


def blip2(directory: Path) -> Path:
    """Write BLIP-2, in single precision and shards; return its directory."""
    write_blip2(directory, shard_size="20KB")
    for shard in directory.glob("model-*.safetensors"):
        save_file({name: tensor.float() for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    file = directory / "config.json"
    values = json.loads(file.read_text())
    values.pop("dtype")
    values["torch_dtype"] = "float32"
    values["transformers_version"] = "4.47.0.dev0"
    write_json(file, values)
    (directory / "generation_config.json").unlink(missing_ok=True)
    write_slow_tokenizer(directory)
    image = values["image_token_index"]
    write_json(directory / "added_tokens.json", {"<image>": image})
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    write_json(directory / "special_tokens_map.json", special)
    about = {
        "add_bos_token": True,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "errors": "replace",
        "model_max_length": 1000000000000000019884624838656,
        "processor_class": "Blip2Processor",
        "tokenizer_class": "GPT2Tokenizer",
    }
    write_json(directory / "tokenizer_config.json", special | about)
    write_json(directory / "preprocessor_config.json", PIXELS | {"processor_class": "Blip2Processor"})
    write_json(directory / "processor_config.json", {"num_query_tokens": TOKENS, "processor_class": "Blip2Processor"})
    return directory
