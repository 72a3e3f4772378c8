"""Tiny, untrained checkpoints as the hub has them: files, names of weights, shards, and what is not wanted.

What is particular to a repository, such as weights under the names of an older release of the libraries or a
tokenizer without tokenizer.json, is what loading must cope with.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from multisc.training.tokenizers import qwen2_tokenizer, train_clip_tokenizer
from tests.support.hub_blip import blip, blip2
from tests.support.hub_files import rename_shards, rename_weights, write_json, write_slow_tokenizer
from tests.support.hub_llava_7b import llava_7b
from tests.support.miniatures import BPE, SENTENCES, write_bart

CLIP_PROCESSOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
QWEN_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def light_llava(directory: Path, shard_size: str = "20KB") -> Path:
    """llava-hf/llava-interleave-qwen-0.5b-hf: a SigLIP tower without a class token, in the names of its release."""
    torch.manual_seed(0)
    tokenizer = qwen2_tokenizer(*BPE, max_length=128)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    vision.vision_use_head = False
    language = Qwen2Config(
        vocab_size=len(tokenizer) + 7,  # the real table is padded, too
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.5,  # so that it says something, and something else of another picture
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.encode("<image>")[0],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    LlavaForConditionalGeneration(config).half().save_pretrained(directory, max_shard_size=shard_size)
    rename_shards(directory, {"vision_tower.": "vision_tower.vision_model."})
    tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    write_json(directory / "chat_template.json", {"chat_template": QWEN_TEMPLATE})
    write_json(
        directory / "preprocessor_config.json",
        {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 32, "width": 32},
        },
    )
    write_json(
        directory / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 0,
            "patch_size": 16,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "full",
        },
    )
    return directory


def bart(directory: Path) -> Path:
    """facebook/bart-base: the bare model without the language-model head, and no tokenizer_config.json."""
    write_bart(directory)
    config = BartConfig.from_pretrained(directory)
    config.init_std = 0.5
    torch.manual_seed(4)
    whole = BartForConditionalGeneration(config)
    config.architectures = ["BartModel"]
    bare = BartModel(config)
    bare.load_state_dict(whole.model.state_dict())
    bare.save_pretrained(directory)
    search = {"num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True}
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | search))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (directory / name).unlink(missing_ok=True)
    write_slow_tokenizer(directory)
    (directory / "pytorch_model.bin").write_bytes(b"not wanted")
    (directory / "rust_model.ot").write_bytes(b"not wanted")
    return directory


def stable_diffusion(directory: Path) -> UNet2DConditionModel:
    """stable-diffusion-v1-5: a tokenizer of vocab.json and merges.txt, older names, unwanted variants."""
    torch.manual_seed(0)
    tokenizer = train_clip_tokenizer(SENTENCES, 300, 77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text)}
    for name, model in parts.items():
        model.save_pretrained(directory / name)
        (directory / name / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not wanted")
        (directory / name / "pytorch_model.bin").write_bytes(b"not wanted")
    rename_weights(
        directory / "vae/diffusion_pytorch_model.safetensors",
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
    )
    weights = directory / "text_encoder/model.safetensors"
    save_file(
        {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(weights).items()}, weights
    )
    tokenizer.save_pretrained(directory / "tokenizer")
    write_slow_tokenizer(directory / "tokenizer")
    (directory / "tokenizer/tokenizer.json").unlink()
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    ).save_pretrained(directory / "scheduler")
    (directory / "feature_extractor").mkdir()
    write_json(directory / "feature_extractor/preprocessor_config.json", CLIP_PROCESSOR)
    (directory / "safety_checker").mkdir()
    (directory / "safety_checker/model.safetensors").write_bytes(b"not wanted")
    (directory / "v1-5-pruned.ckpt").write_bytes(b"not wanted")
    write_json(
        directory / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.6.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return unet


def ip_adapter(directory: Path, unet: UNet2DConditionModel) -> Path:
    """h94/IP-Adapter: models/ip-adapter_sd15.safetensors with four image tokens, and models/image_encoder."""
    torch.manual_seed(1)
    width = unet.config.cross_attention_dim
    encoder = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=12,
    )
    folder = directory / "models"
    CLIPVisionModelWithProjection(encoder).save_pretrained(folder / "image_encoder")
    weights = folder / "image_encoder/model.safetensors"
    tensors = {
        name if name.startswith(("visual", "vision_model.")) else f"vision_model.{name}": tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights)
    (folder / "image_encoder/pytorch_model.bin").write_bytes(b"not wanted")
    (folder / "ip-adapter_sd15.bin").write_bytes(b"not wanted")
    (folder / "ip-adapter-plus_sd15.safetensors").write_bytes(b"not wanted")
    adapter = {
        "image_proj.proj.weight": torch.randn(4 * width, 12),
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    for place, name in enumerate(crossing):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for kind in ("to_k_ip", "to_v_ip"):
            adapter[f"ip_adapter.{2 * place + 1}.{kind}.weight"] = torch.randn(out, width)
    save_file({name: tensor.half() for name, tensor in adapter.items()}, folder / "ip-adapter_sd15.safetensors")
    return directory


def foundation(directory: Path) -> dict[str, Path]:
    """Write all of them; returns the directories by their repositories' names."""
    unet = stable_diffusion(directory / "sd")
    blip(directory / "blip")
    return {
        "llava-hf/llava-interleave-qwen-0.5b-hf": light_llava(directory / "llava"),
        "facebook/bart-base": bart(directory / "bart"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": directory / "sd",
        "h94/IP-Adapter": ip_adapter(directory / "ip", unet),
        "llava-hf/llava-1.5-7b-hf": llava_7b(directory / "llava-7b"),
        "Salesforce/blip-image-captioning-base": directory / "blip",
        "Salesforce/blip2-opt-2.7b": blip2(directory / "blip2"),
    }
