"""Stable Diffusion with its IP-Adapter, on miniatures written in the hub's layout, and on the embedded checkpoint."""

import itertools
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from multisc.errors import BadInputError, ModelError
from multisc.models import generator as module
from multisc.models.generator import MAX_BATCH, GenerationRequest, Generator
from multisc.models.known import KnownRegion, keep_known_region, told
from multisc.models.placement import FEATHER, scale_box
from multisc.models.profile import EMBEDDED_DIRECTORY
from multisc.models.prompts import encode_prompts, prompts_of
from multisc.models.regions import OTHERS, attention_bias, regional_attention
from multisc.training import clip, diffusion
from multisc.training.tokenizers import train_clip_tokenizer
from multisc.training.vae import LATENT_CHANNELS, make_vae, to_tensor

BLOCKS = ["a dog runs.", "a red ball.", "green grass.", "a man in a very long coat, with a hat and a stick."]
WORDS = ["a dog runs in the grass", "top left: a man", "bottom right: a red ball"] * 30


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """An untrained model; where its output layer starts at zero, it is shaken so that every condition matters."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = train_clip_tokenizer(WORDS, 400, clip.TOKENS)
    encoders = clip.Encoders(tokenizer)
    model = diffusion.Conditioned(encoders.text, encoders.image).eval()
    processor = CLIPImageProcessorPil(
        size={"height": clip.SLICE_SIDE, "width": clip.SLICE_SIDE}, do_center_crop=False
    )
    scheduler = diffusion.make_scheduler()
    diffusion.save(model, tokenizer, processor, make_vae(), scheduler, folder / "sd", folder / "ip")
    return folder, model


@pytest.fixture(scope="module")
def generator(miniature):
    return Generator.load(miniature[0] / "sd", miniature[0] / "ip")


@pytest.fixture
def copied(miniature, tmp_path):
    shutil.copytree(miniature[0], tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def subject():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


BOX = (40, 30, 90, 60)
SIZE = (192, 128)


@pytest.mark.parametrize("regional", [False, True])
def test_the_loaded_pipeline_predicts_what_the_trained_model_does(miniature, generator, regional):
    """Saved in halves as pipeline, adapter and image encoder, and joined again by load_ip_adapter: eq. 8 to 10."""
    torch.manual_seed(5)
    pipeline = generator._pipeline
    noisy, times, pixels = torch.randn(2, LATENT_CHANNELS, 12, 20), torch.tensor([10, 700]), torch.randn(2, 3, 64, 64)
    ids = clip.tokenize(pipeline.tokenizer, prompts_of(BLOCKS) * 2).reshape(2, 4, -1)
    pipeline.set_ip_adapter_scale(1.0)
    known = KnownRegion(torch.randn_like(noisy), torch.rand(2, 1, 12, 20) < 0.3, torch.tensor([0.0, 0.4]))
    with torch.inference_mode():
        wanted = miniature[1](noisy, times, known, ids, pixels, torch.ones(2), regional)
        text = encode_prompts(pipeline.text_encoder, ids)
        image = pipeline.image_encoder(pixels).image_embeds[:, None]
        with regional_attention(pipeline.unet, (12, 20)) if regional else nullcontext():
            taken = told(pipeline.unet, noisy, known)
            found = pipeline.unet(taken, times, text, added_cond_kwargs={"image_embeds": [image]}).sample
    torch.testing.assert_close(found, wanted, atol=0.01 * wanted.std().item(), rtol=0.02)  # float16 weights


@pytest.mark.parametrize("size", [(192, 128), (128, 192), (1, 1), (7, 300), (300, 301)])
@pytest.mark.parametrize("captions", [[], ["a dog."], BLOCKS])
def test_pictures_of_any_size_from_any_number_of_captions(generator, size, captions):
    picture = generator.generate(captions, None, None, size, steps=1)
    assert picture.shape == (size[1], size[0], 3)
    assert picture.dtype == np.uint8


def test_same_seed_same_picture_and_other_seed_other_picture(generator, subject):
    first = generator.generate(BLOCKS, subject, BOX, SIZE, seed=4, steps=3)
    assert np.array_equal(first, generator.generate(BLOCKS, subject, BOX, SIZE, seed=4, steps=3))
    assert not np.array_equal(first, generator.generate(BLOCKS, subject, BOX, SIZE, seed=5, steps=3))


def test_the_received_pixels_are_in_their_place(generator, subject):
    picture = generator.generate(BLOCKS, subject, BOX, SIZE, steps=2)
    x, y, w, h = BOX
    margin = int(np.ceil(FEATHER * min(w, h)))
    inner = (slice(margin, h - margin), slice(margin, w - margin))
    assert np.array_equal(picture[y : y + h, x : x + w][inner], subject[inner])
    without = generator.generate(BLOCKS, subject, BOX, SIZE, steps=2, paste_subject=False)
    outside = np.ones(picture.shape[:2], bool)
    outside[y : y + h, x : x + w] = False
    assert np.array_equal(picture[outside], without[outside])
    assert not np.array_equal(picture, without)


@pytest.mark.slow
def test_pictures_of_a_batch_are_those_made_alone_but_for_rounding(generator, subject):
    """Slices, captions, sizes and seeds of their own, more than one batch holds, in the order asked for."""
    other = np.ascontiguousarray(subject[::-1, :50])
    orders = [GenerationRequest(BLOCKS, subject, BOX, SIZE, seed) for seed in range(MAX_BATCH + 1)]
    orders += [
        GenerationRequest(BLOCKS[::-1], other, (0, 0, 70, 80), (180, 120), 3),
        GenerationRequest(BLOCKS, None, None, SIZE, 4),
    ]
    orders += [
        GenerationRequest(["a dog"], subject, (5, 5, 30, 90), (96, 144), 5),
        GenerationRequest([], None, None, SIZE, 6),
    ]
    together = generator.generate_all(orders, steps=3)
    alone = [generator.generate(o.captions, o.subject, o.box, o.size, seed=o.seed, steps=3) for o in orders]
    for picture, own in zip(together, alone, strict=True):
        assert picture.shape == own.shape
        assert np.abs(picture.astype(int) - own).mean() < 0.1
    for picture, other in itertools.pairwise(alone[: MAX_BATCH + 1]):
        assert np.abs(picture.astype(int) - other).mean() > 1
    assert generator.generate_all([]) == []


def test_guidance_is_stronger_around_a_slice(generator, subject):
    around, alone = module.GUIDANCE_AROUND_SLICE, module.GUIDANCE
    arguments = {"captions": BLOCKS, "size": SIZE, "steps": 3}
    with_slice = arguments | {"subject": subject, "box": BOX}
    without = arguments | {"subject": None, "box": None}
    assert np.array_equal(generator.generate(**with_slice), generator.generate(**with_slice, guidance=around))
    assert not np.array_equal(generator.generate(**with_slice), generator.generate(**with_slice, guidance=alone))
    assert np.array_equal(generator.generate(**without), generator.generate(**without, guidance=alone))


def test_a_slice_that_fills_the_picture_is_the_picture(generator):
    whole = np.random.default_rng(1).integers(0, 256, (128, 192, 3), np.uint8)
    assert np.array_equal(generator.generate([], whole, (0, 0, 192, 128), SIZE, steps=1), whole)


def test_the_known_latents_are_kept_to_the_end(generator, subject):
    """Without pasting, the box shows the slice's latents decoded, whatever the model makes of the rest."""
    seen = []
    decode = generator._pipeline.vae.decode

    def spy(latents, *args, **kwargs):
        seen.append(latents)
        return decode(latents, *args, **kwargs)

    generator._pipeline.vae.decode = spy
    try:
        generator.generate(BLOCKS, subject, BOX, SIZE, steps=4)
    finally:
        del generator._pipeline.vae.decode
    height, width = generator.working_size(SIZE)
    known = generator._known([(subject, scale_box(BOX, SIZE, (width, height)), 0.0)], (width, height))
    latents, mask = known.latents, known.mask
    assert 0 < mask.float().mean() < 0.6
    scaled = seen[0] * generator._pipeline.vae.config.scaling_factor
    torch.testing.assert_close(scaled[mask.expand_as(scaled)], latents[mask.expand_as(latents)])


def test_text_and_slice_and_lambda_change_the_prediction(generator, subject):
    def make(captions, scale):
        return generator.generate(captions, subject, BOX, SIZE, ip_scale=scale, steps=2).astype(int)

    first = make(BLOCKS, 1.0)
    assert not np.array_equal(first, make(BLOCKS[::-1], 1.0))
    assert not np.array_equal(first, make(BLOCKS, 0.0))


def test_lambda_zero_ignores_the_image_prompt(generator):
    """Eq. 10: at lambda = 0 only the text conditions."""
    generator._pipeline.set_ip_adapter_scale(0.0)
    torch.manual_seed(3)
    unet = generator._pipeline.unet
    noisy, text = torch.randn(1, LATENT_CHANNELS, 12, 20), torch.randn(1, clip.TOKENS, clip.WIDTH)
    with torch.inference_mode():
        one, other = (
            unet(
                told(unet, noisy, None), 5, text, added_cond_kwargs={"image_embeds": [torch.randn(1, 1, clip.WIDTH)]}
            ).sample
            for _ in range(2)
        )
    assert torch.equal(one, other)


def test_each_quarter_attends_to_its_own_caption_first():
    bias = attention_bias(6 * 10, (12, 20), 4 * 24).reshape(6, 10, 4, 24)
    for block, (row, column) in enumerate([(0, 0), (2, 9), (3, 4), (5, 5)]):
        weights = bias[row, column].exp().mean(1)
        assert weights.argmax() == block
        assert weights[block] == 1.0
        assert weights.sum() == pytest.approx(1.0 + 3.0 * np.exp(OTHERS))


def test_regional_attention_ends_with_its_context(miniature):
    unet, given = miniature[1].unet, torch.randn(1, 2 * LATENT_CHANNELS + 2, 12, 20)
    text, image = torch.randn(1, 4 * clip.TOKENS, clip.WIDTH), torch.randn(1, 1, clip.WIDTH)

    def predict():
        with torch.inference_mode():
            return unet(given, 500, text, added_cond_kwargs={"image_embeds": [image]}).sample

    before = predict()
    with regional_attention(unet, (12, 20)):
        assert not torch.equal(predict(), before)
    assert torch.equal(predict(), before)


def test_a_noisy_slice_is_tied_only_while_the_step_is_noisier():
    scheduler = diffusion.make_scheduler()
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    known = KnownRegion(torch.ones(2, 6, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool), torch.tensor([0.0, 0.5]))
    early, late, end = (keep_known_region(known, scheduler, latents, time, noise) for time in (900, 20, -1))
    share = scheduler.alphas_cumprod[900]
    torch.testing.assert_close(early, share.sqrt() + (1 - share).sqrt() * noise)
    assert torch.equal(end[0], known.latents[0])
    for later in (late, end):
        assert torch.equal(later[1], latents[1])


def test_the_noise_of_the_slice_reaches_the_model(generator, subject):
    clear, noisy = generator.generate_all(
        [
            GenerationRequest(BLOCKS, subject, BOX, SIZE, 0),
            GenerationRequest(BLOCKS, subject, BOX, SIZE, 0, error=0.2),
        ],
        steps=3,
    )
    outside = np.ones(clear.shape[:2], bool)
    outside[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = False
    assert not np.array_equal(clear[outside], noisy[outside])


@pytest.mark.parametrize(
    "changes",
    [
        {"captions": ["a", "b"]},
        {"size": (0, 5)},
        {"box": None},
        {"subject": None},
        {"box": (150, 30, 90, 60)},
        {"box": (-1, 0, 5, 5)},
        {"box": (0, 0, 0, 5)},
        {"subject": np.zeros((0, 5, 3), np.uint8)},
        {"subject": np.zeros((5, 5), np.uint8)},
        {"ip_scale": float("nan")},
        {"ip_scale": -1.0},
        {"steps": 0},
        {"steps": 1001},
    ],
)
def test_bad_arguments(generator, subject, changes):
    arguments = {"captions": BLOCKS, "subject": subject, "box": BOX, "size": SIZE, "steps": 1} | changes
    with pytest.raises(BadInputError):
        generator.generate(**arguments)


@pytest.mark.parametrize(
    "lost",
    [
        "sd/model_index.json",
        "sd/unet/config.json",
        "sd/vae/diffusion_pytorch_model.safetensors",
        "sd/text_encoder/model.safetensors",
        "sd/tokenizer/tokenizer_config.json",
        "sd/scheduler/scheduler_config.json",
        "ip/models/ip-adapter_sd15.safetensors",
        "ip/models/image_encoder/config.json",
        "ip/models/image_encoder/model.safetensors",
    ],
)
def test_a_missing_file_is_named(copied, lost):
    (copied / lost).unlink()
    with pytest.raises(ModelError, match="missing") as caught:
        Generator.load(copied / "sd", copied / "ip")
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused(copied):
    weights = copied / "sd/unet/diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match="pickle"):
        Generator.load(copied / "sd", copied / "ip")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sd/unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
        ("ip/models/ip-adapter_sd15.safetensors", "ip_adapter.1.to_k_ip.weight"),
    ],
)
def test_a_weight_of_another_shape(copied, file, name):
    tensors = load_file(copied / file)
    tensors[name] = tensors[name][:8]
    save_file(tensors, copied / file)
    with pytest.raises(ModelError):
        Generator.load(copied / "sd", copied / "ip")


def test_no_such_directory(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        Generator.load(tmp_path / "nothing", tmp_path)


@pytest.fixture(scope="module")
def embedded():
    return Generator.load(EMBEDDED_DIRECTORY / "stable-diffusion", EMBEDDED_DIRECTORY / "ip-adapter")


def test_the_embedded_autoencoder_keeps_a_photograph(embedded):
    data = pytest.importorskip("skimage.data")
    photograph = np.asarray(module.Image.fromarray(data.coffee()).resize((144, 96), module.Image.Resampling.LANCZOS))
    vae, target = embedded._pipeline.vae, to_tensor(photograph[None])
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(target).latent_dist.mean).sample
    error = (decoded.clamp(-1, 1) - target).square().mean().item()
    assert 10 * np.log10(4 / error) > 19.0


def test_the_embedded_model_removes_noise(embedded):
    """At a noise of the photograph's own power, the noise is predicted far better than by a zero."""
    data = pytest.importorskip("skimage.data")
    pipeline = embedded._pipeline
    photograph = np.asarray(module.Image.fromarray(data.chelsea()).resize((144, 96), module.Image.Resampling.LANCZOS))
    torch.manual_seed(1)
    with torch.inference_mode():
        latents = pipeline.vae.encode(to_tensor(photograph[None])).latent_dist.mean
        latents = latents * pipeline.vae.config.scaling_factor
        noise, time = torch.randn_like(latents), torch.tensor([260])
        of_velocity = pipeline.scheduler.config.prediction_type == "v_prediction"
        wanted = pipeline.scheduler.get_velocity(latents, noise, time) if of_velocity else noise
        condition = embedded._condition([GenerationRequest(["a cat."], None, None, (144, 96))], 1.0)
        predicted = pipeline.unet(
            told(pipeline.unet, pipeline.scheduler.add_noise(latents, noise, time), None),
            time,
            condition["text"],
            added_cond_kwargs={"image_embeds": [condition["image"][None]]},
        ).sample
    assert (predicted - wanted).square().mean().item() < 0.4 * wanted.square().mean().item()


def test_the_embedded_checkpoints_are_small():
    assert sum(file.stat().st_size for file in EMBEDDED_DIRECTORY.rglob("*") if file.is_file()) <= 64e6


def test_the_embedded_card_is_complete():
    card = json.loads((EMBEDDED_DIRECTORY / "stable-diffusion" / "training.json").read_text())
    held_out = card["held_out"]
    assert held_out["loss"] < held_out["loss_no_image"]  # the slice helps on photographs it never saw
    assert held_out["loss"] < 0.6
    assert Path(EMBEDDED_DIRECTORY / "stable-diffusion" / "README.md").is_file()
