"""The training of the image models: data, losses, labels, batches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from multisc.errors import BadInputError
from multisc.models.efficientnet_lite import FEATURES, EfficientNetLite
from multisc.models.prompts import CORNERS, prompts_of
from multisc.training import clip, diffusion, fcn, subjects, vae
from multisc.training.ema import ExponentialMovingAverage
from multisc.training.photographs import Photograph, Polygon, load_photographs
from multisc.training.tokenizers import train_clip_tokenizer
from tests.support.paths import DATA


@pytest.fixture
def photograph(tmp_path):
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[20:40, 30:60] = (200, 30, 30)
    Image.fromarray(picture).save(tmp_path / "one.png")
    square = Polygon("kite", [[30, 20, 60, 20, 60, 40, 30, 40]])
    return Photograph(tmp_path / "one.png", ["a red kite."], [square], (90, 60))


def test_a_polygon_is_drawn_at_the_size_asked_for(photograph):
    mask = photograph.mask(photograph.polygons[0], (120, 180))
    assert mask.shape == (120, 180)
    assert mask[60, 90]
    assert not mask[10, 10]
    assert mask.mean() == pytest.approx(20 * 30 / (60 * 90), rel=0.1)


def test_outlined_things_have_their_class_and_the_rest_is_background(photograph):
    dog = Polygon("dog", [[0, 0, 12, 0, 12, 9, 0, 9]])
    labelled = subjects.labelled_polygons(replace(photograph, polygons=[dog, *photograph.polygons]))
    height, width = labelled.classes.shape
    assert max(height, width) == subjects.LOADED_SIDE
    kite, corner = (height // 2, width // 2), (height // 15, width // 15)
    assert labelled.classes[kite] == subjects.CLASSES.index("object")  # VOC knows no kites
    assert labelled.classes[corner] == subjects.CLASSES.index("dog")
    assert labelled.classes[-1, -1] == 0
    assert labelled.subject[kite] == 1
    assert labelled.subject[corner] == 0


def test_the_largest_class_of_a_mask_is_the_subject(tmp_path):
    """VOC's borders are of no class."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    classes = np.zeros((40, 60), np.uint8)
    classes[10:30, 10:30], classes[10:14, 40:50], classes[9, 10:30] = 12, 15, 255
    Image.fromarray(classes).save(tmp_path / "masks" / "a.png")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    labelled = subjects.labelled_voc(tmp_path / "masks" / "a.png")
    assert [labelled.subject[at] for at in ((20, 20), (12, 45), (9, 20), (0, 0))] == [1, 0, subjects.UNKNOWN, 0]
    assert labelled.classes[12, 45] == 15


def test_the_activation_of_the_right_class_shows_where(photograph):
    """With a classifier that knows red by its first feature."""
    network = EfficientNetLite().eval()
    network.features = (
        lambda pictures: nn.functional.avg_pool2d(  # type: ignore[method-assign]
            (pictures[:, :1] - pictures[:, 1:2]).clamp(min=0).expand(-1, FEATURES, -1, -1), 16
        )
    )
    network.classifier.weight.data.zero_()
    network.classifier.bias.data.zero_()
    network.classifier.weight.data[7, 0] = 200.0
    labelled = subjects.labelled_activation(photograph, 7, network)
    assert labelled is not None
    height, width = labelled.subject.shape
    assert labelled.subject[height // 2, width // 2] == 1
    assert labelled.subject[5, 5] == 0
    assert (labelled.classes == subjects.UNKNOWN).all()
    assert subjects.labelled_activation(photograph, 8, network) is None


def test_the_category_that_covers_most_is_the_subject(photograph):
    small = [Polygon("bird", [[0, 0, 12, 0, 12, 9, 0, 9]]), Polygon("bird", [[70, 0, 85, 0, 85, 9, 70, 9]])]
    several = replace(photograph, polygons=[*small, *photograph.polygons])
    mask = subjects.subject_group(several, (60, 90))
    assert mask[30, 45]
    assert not mask[4, 6]
    many = replace(photograph, polygons=[Polygon("bird", [[0, 40, 90, 40, 90, 60, 0, 60]]), *several.polygons])
    mask = subjects.subject_group(many, (60, 90))
    assert mask[50, 80]
    assert mask[4, 6]
    assert not mask[30, 45]


def test_batches_of_the_segmentation_fit_together(photograph):
    """Picture, class and subject of a part are cut at the same place and mirrored alike."""
    samples = fcn.Samples([[subjects.labelled_polygons(photograph)], []], (0.5, 0.5))
    pixels, classes, subject = samples.draw(np.random.default_rng(3), 6)
    assert pixels.shape[2:] == (4 * subject.shape[1], 4 * subject.shape[2])
    assert torch.equal(classes == subjects.CLASSES.index("object"), subject == 1)
    reddish = nn.functional.avg_pool2d(pixels[:, 0] - pixels[:, 1:].mean(1), 4)
    for red, mask in zip(reddish, subject.float(), strict=True):
        if 0.02 < mask.mean() < 0.9 and red.std() > 0.05:
            assert np.corrcoef(red.ravel(), mask.ravel())[0, 1] > 0.85


def test_the_segmentation_loss_is_least_at_the_truth():
    subject = torch.zeros(1, 4, 4, dtype=torch.uint8)
    subject[0, 1:3, 1:3] = 1
    classes = subject * 2
    right = torch.full((1, 4, 4, 4), -6.0)  # three classes and the subject
    right[0, 0] = torch.where(subject[0] > 0, -6.0, 6.0)
    right[0, 2] = right[0, 3] = -right[0, 0]
    wrong_class = right[:, [0, 2, 1, 3]]
    everywhere = right.clone()
    everywhere[0, 3] = 6.0
    losses = [fcn.segmentation_loss(scores, classes, subject).item() for scores in (right, wrong_class, everywhere)]
    assert losses[0] < 0.25
    assert losses[0] < losses[1] - 1
    assert losses[0] < losses[2] - 1


def test_what_is_not_known_does_not_count():
    """Scores of unknown pixels get no gradient; a picture of which nothing is known has a finite loss."""
    scores = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    known = torch.zeros(1, 4, 4, dtype=torch.uint8)
    known[0, 2:] = subjects.UNKNOWN
    fcn.segmentation_loss(scores, known, known).backward()
    assert scores.grad is not None
    assert not scores.grad[:, :, 2:].any()
    assert scores.grad[:, :, :2].any()
    nothing = torch.full_like(known, subjects.UNKNOWN)
    assert fcn.segmentation_loss(scores, nothing, nothing).isfinite()


def test_the_decoder_starts_over_the_pretrained_encoder():
    torch.manual_seed(0)
    classifier = EfficientNetLite()
    model = fcn.pretrained_fcn(classifier)
    assert torch.equal(model.encoder.stages[6][0].body[0].weight, classifier.stages[6][0].body[0].weight)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "encoder.stages.2.0.body.0.weight" in trained
    assert not any(name.startswith("encoder.stem") for name in trained)


def test_a_flat_picture_has_a_flat_spectrum():
    picture = torch.tensor([0.5, -0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 32, 48)
    spectrum = vae.block_spectrum(picture)
    assert spectrum.shape == (1, vae.LATENT_CHANNELS, 4, 6)
    luma = 0.299 * 0.5 - 0.587 * 0.2 + 0.114 * 0.1
    torch.testing.assert_close(spectrum[0, 0], torch.full((4, 6), luma / 0.5))
    torch.testing.assert_close(spectrum[0, 1], torch.full((4, 6), (0.5 - luma) / 0.15))
    assert spectrum[:, 3:].abs().max() < 1e-5


def test_the_distortion_sees_colour_and_sharpness():
    target = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert vae.distortion(target, target, 0.5) == 0
    blurred = torch.nn.functional.avg_pool2d(target, 3, 1, 1)
    grey = target.mean(1, keepdim=True).expand_as(target)
    assert vae.distortion(blurred, target, 0.5) > vae.distortion(blurred, target, 0.0) > 0.05
    assert vae.distortion(grey, target, 0.0) > 0.05


def test_a_crop_has_the_side_asked_for():
    picture = np.random.default_rng(0).integers(0, 256, (40, 300, 3), np.uint8)
    for seed in range(5):
        assert vae.random_crop(picture, 64, np.random.default_rng(seed)).shape == (64, 64, 3)


def test_block_prompts_name_their_corner():
    prompts = prompts_of(["a", "b", "", "d"])
    assert prompts == [f"{CORNERS[0]}: a", f"{CORNERS[1]}: b", "", f"{CORNERS[3]}: d"]
    assert prompts_of(["whole"]) == ["whole"]
    assert prompts_of([]) == [""]


def test_any_text_has_tokens():
    tokenizer = train_clip_tokenizer(["a dog runs"] * 9, 300, 24)
    text = 'zebra #7 (x) "why?" ~|'
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_encoders_learn_which_caption_is_of_which_view():
    """Two kinds of views with captions of their own: after some steps the right ones are nearest."""
    torch.manual_seed(0)
    tokenizer = train_clip_tokenizer(["a red kite", "a blue boat"] * 9, 300, clip.TOKENS)
    encoders = clip.Encoders(tokenizer)
    ids = clip.tokenize(tokenizer, ["a red kite.", "a blue boat."])
    pictures = np.zeros((2, clip.SLICE_SIDE, clip.SLICE_SIDE, 3), np.uint8)
    pictures[0, ..., 0], pictures[1, ..., 2] = 200, 200
    pixels, features = clip.normalise(pictures), torch.randn(2, 1280)
    optimiser = torch.optim.AdamW(encoders.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = encoders(ids, pixels, features)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_equal_captions_are_no_rivals():
    scores = torch.tensor([[2.0, 9.0], [9.0, 2.0]])
    alike = torch.tensor([[False, True], [True, False]])
    assert clip._contrast(scores, alike) < 1e-6 < clip._contrast(scores, torch.zeros_like(alike))


def test_a_box_covers_its_places():
    mask = diffusion._mask((0.25, 0.5, 0.75, 1.0), (4, 8))
    assert mask.tolist() == [[False] * 8] * 2 + [[False] * 2 + [True] * 4 + [False] * 2] * 2
    assert diffusion._mask((0.5, 0.5, 0.51, 0.51), (4, 8)).sum() == 1


@pytest.fixture
def batches():
    """One red picture with its subject in the middle."""
    small = np.zeros((diffusion.SMALL, diffusion.SMALL, 3), np.uint8)
    small[32:96, 32:96] = (200, 30, 30)
    colours = np.random.default_rng(0).standard_normal((vae.LATENT_CHANNELS, 1, 1)).astype(np.float16)
    latents = np.broadcast_to(colours, (vae.LATENT_CHANNELS, 8, 12))
    blocks = ("a sky.", "a cloud.", "grass.", "a red kite.")
    example = diffusion.Example(latents, small, ("a red kite.", "a kite."), blocks, (0.25, 0.25, 0.75, 0.75))
    tokenizer = train_clip_tokenizer(["a red kite."] * 9, 300, clip.TOKENS)
    return diffusion.Batches([example], tokenizer, diffusion.DiffusionTraining(batch=8))


def test_batches_tell_the_slice_its_place_and_its_noise(batches):
    seen = [batches.draw(np.random.default_rng(seed)) for seed in range(30)]
    assert {batch.ids.shape[1] for batch in seen} == {1, 4}
    assert {batch.regional for batch in seen if batch.ids.shape[1] == 1} == {False}
    for batch in seen:
        error = (batch.known.latents - batch.latents).flatten(1).std(1)
        torch.testing.assert_close(error, batch.known.noise, rtol=0.2, atol=1e-6)
        absent = batch.with_image == 0
        assert not batch.known.mask[absent].any()
        assert not batch.known.noise[absent].any()
        assert batch.known.mask[~absent].flatten(1).any(1).all()


@pytest.mark.slow
def test_training_lowers_the_loss(batches):
    """Twenty steps on one picture, through batches, conditions and eq. 11, and the average follows."""
    torch.manual_seed(0)
    scheduler = diffusion.make_scheduler()
    encoders = clip.Encoders(batches.tokenizer)
    trainee = ExponentialMovingAverage(diffusion.Conditioned(encoders.text, encoders.image))
    trainee.online.use_eager_attention()
    trainee.average.use_eager_attention()
    optimiser = torch.optim.AdamW((p for p in trainee.online.parameters() if p.requires_grad), lr=2e-3)

    def of_average():
        rng = np.random.default_rng(5)
        with torch.inference_mode():
            return diffusion.l_simple(trainee.average, scheduler, batches.draw(rng), rng).item()

    before, losses = of_average(), []
    for step in range(20):
        trainee.update(step, 0.5)
        rng = np.random.default_rng(step)
        loss = diffusion.l_simple(trainee.online, scheduler, batches.draw(rng), rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert of_average() < 0.8 * before


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BadInputError, match="flickr900"):
        load_photographs(tmp_path)


def test_missing_masks_are_named(tmp_path):
    with pytest.raises(BadInputError, match="voc_subjects/masks: no such folder"):
        subjects.voc_files(tmp_path)


@pytest.mark.skipif(not DATA.is_dir(), reason="the training photographs are not beside this checkout")
def test_a_tenth_of_the_masks_is_held_out():
    train, held_out = subjects.voc_files(DATA)
    assert not set(train) & set(held_out)
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(0.1, abs=0.02)


@pytest.mark.skipif(not DATA.is_dir(), reason="the training photographs are not beside this checkout")
def test_kodak_is_never_trained_on():
    photographs = load_photographs(DATA)
    assert len(photographs) == 2360
    assert not any("kodak" in str(photograph.path) for photograph in photographs)
    annotated = [photograph for photograph in photographs if photograph.polygons is not None]
    assert len(annotated) == 80
    assert 20 <= sum(photograph.held_out for photograph in annotated) <= 40
    json.dumps([photograph.captions for photograph in photographs])
