"""A tiny, untrained llava-hf/llava-1.5-7b-hf: its files, their keys, and the names of weights of its release.

Particular to it: a Llama tokenizer of pieces with the space in front and 256 bytes for what has no piece, ``<image>``
and ``<pad>`` added behind them and a table padded beyond; a CLIP tower of which the last layer but one is taken,
without its class token; a chat template that marks what the assistant says.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.support.hub_files import rename_shards, write_json
from tests.support.miniatures import SENTENCES

IMAGE_SIDE, PATCH = 28, 14
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# "USER: <image>\nQuery ASSISTANT:", as the published one renders our message.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava_7b(directory: Path, shard_size: str = "40KB") -> Path:
    """Write it; return its directory."""
    torch.manual_seed(2)
    directory.mkdir(parents=True, exist_ok=True)
    words = _tokenizer(directory)
    rows = -(-(words + 2) // 64) * 64  # as published, padded to a multiple of 64
    vision = CLIPVisionConfig(
        hidden_size=16,
        image_size=IMAGE_SIDE,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        patch_size=PATCH,
        projection_dim=12,
    )
    language = LlamaConfig(
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=words,
        pad_token_id=words + 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).half().save_pretrained(directory, max_shard_size=shard_size)
    rename_shards(directory, {"vision_tower.": "vision_tower.vision_model."})
    write_json(
        directory / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": words,
            "model_type": "llava",
            "pad_token_id": words + 1,
            "projector_hidden_act": "gelu",
            "text_config": {
                "_name_or_path": "lmsys/vicuna-7b-v1.5",
                "architectures": ["LlamaForCausalLM"],
                "max_position_embeddings": 256,
                "model_type": "llama",
                "rms_norm_eps": 1e-05,
                "torch_dtype": "float16",
                "vocab_size": rows,
                # The published file leaves these to Llama's defaults of 4096 and 32.
                **{key: getattr(language, key) for key in ("hidden_size", "intermediate_size")},
                **{key: getattr(language, key) for key in ("num_hidden_layers", "num_attention_heads")},
                "num_key_value_heads": language.num_key_value_heads,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.36.0.dev0",
            "vision_config": {
                "hidden_size": 16,
                "image_size": IMAGE_SIDE,
                "intermediate_size": 16,
                "model_type": "clip_vision_model",
                "num_attention_heads": 2,
                "num_hidden_layers": 3,
                "patch_size": PATCH,
                "projection_dim": 12,
                "vocab_size": 32000,
            },
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vocab_size": rows,
        },
    )
    write_json(
        directory / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": words + 1,
            "transformers_version": "4.36.0.dev0",
        },
    )
    write_json(
        directory / "preprocessor_config.json",
        {
            "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": IMAGE_SIDE},
        },
    )
    write_json(
        directory / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    write_json(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return directory


def _tokenizer(directory: Path) -> int:
    """Write the tokenizer's six files; returns the number of words without the two added ones."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = sorted({letter for sentence in SENTENCES for letter in sentence if letter != " "})
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + len(BYTES) + 60,
        special_tokens=[*SPECIAL, *BYTES],
        initial_alphabet=letters,
        show_progress=False,
    )
    learnt.train_from_iterator(SENTENCES, trainer)
    model = json.loads(learnt.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    words = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in (*SPECIAL, "<image>", "<pad>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    _sentencepiece(directory / "tokenizer.model", vocabulary)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {"0": "<unk>", "1": "<s>", "2": "</s>", str(words): "<image>", str(words + 1): "<pad>"}
    write_json(directory / "added_tokens.json", {"<image>": words, "<pad>": words + 1})
    write_json(
        directory / "special_tokens_map.json",
        {
            "bos_token": {"content": "<s>", **plain},
            "eos_token": {"content": "</s>", **plain},
            "image_token": "<image>",
            "pad_token": "<pad>",
            "unk_token": {"content": "<unk>", **plain},
        },
    )
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": None,
            "added_tokens_decoder": {
                index: {"content": word, **plain, "special": True} for index, word in added.items()
            },
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "extra_special_tokens": {"image_token": "<image>"},
            "image_token": "<image>",
            "legacy": False,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<pad>",
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "trust_remote_code": False,
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
    )
    return words


def _sentencepiece(file: Path, vocabulary: dict[str, int]) -> None:
    """Write the same words as a SentencePiece model, which the published checkpoint has besides.

    A protocol buffer by hand (sentencepiece_model.proto): nothing here reads the file.
    """
    normal, unknown, control, byte = 1, 2, 3, 6
    model = b""
    for word, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        kind = unknown if word == "<unk>" else byte if word in BYTES else control if word in SPECIAL else normal
        piece = _field(1, word.encode()) + _key(2, 5) + struct.pack("<f", -float(index)) + _field(3, kind)
        model += _field(1, piece)
    byte_pairs, byte_fallback = 2, 1
    trainer = _field(3, byte_pairs) + _field(4, len(vocabulary)) + _field(35, byte_fallback)
    file.write_bytes(model + _field(2, trainer))


def _field(number: int, value: int | bytes) -> bytes:
    """A whole number or a run of bytes as a field of a protocol buffer."""
    if isinstance(value, int):
        return _key(number, 0) + _varint(value)
    return _key(number, 2) + _varint(len(value)) + value


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    digits = []
    while value >= 128:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
