"""The training of the image models: data, losses, labels, batches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from multisc.errors import BadInputError
from multisc.models.prompts import CORNERS, prompts_of
from multisc.training import clip, diffusion, fcn, subjects, vae
from multisc.training.average import Averaged
from multisc.training.photographs import Photograph, Polygon, load_photographs
from multisc.training.teacher import GRID
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


def test_polygons_lie_over_the_teachers_opinion(photograph):
    logits = np.zeros((33, 33, 21), np.uint8)
    logits[:, :16, fcn.CLASSES.index("dog")] = 9
    logits[:, 16:, 0] = 9
    classes = fcn.draw_classes(photograph, logits)
    assert classes[11, 15] == fcn.CLASSES.index("object")  # the kite: VOC knows none
    assert classes[2, 5] == fcn.CLASSES.index("dog")
    assert classes[2, 28] == fcn.CLASSES.index("object")  # the teacher's background is no class of a subject


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


def test_a_canvas_is_mirrored_within_the_photograph():
    canvas = torch.zeros(1, 4, 6)
    canvas[0, 1, 0] = 1.0
    mirrored = subjects.mirror(canvas, 4)
    assert mirrored[0, 1, 3] == 1
    assert mirrored.sum() == 1
    assert torch.equal(subjects.mirror(mirrored, 4), canvas)


def test_a_probe_learns_to_tell_the_subject(photograph):
    """From features of which one shows the subject, on a photograph that covers two thirds of the canvas."""
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.3, (1, subjects.COMPONENTS, 33, 33)).astype(np.float16)
    rows, columns = slice(7, 15), slice(11, 22)
    features[0, 3, rows, columns] += 3
    probe = subjects.fit_probe([photograph], features, np.array([0]), 0, steps=60)
    found = subjects.subject_map([probe], features[0], subjects.canvas_size(photograph))
    assert found.shape == (subjects.FINE, subjects.FINE)
    assert found[44, 64] > 180
    assert found[10, 10] < 90
    assert not found[100:].any()  # below the photograph


def test_batches_of_the_segmentation_fit_together(photograph):
    """Picture, subject, class and features of a part are cut at the same place and mirrored alike."""
    height, width = subjects.canvas_size(photograph)
    maps = np.zeros((1, subjects.FINE, subjects.FINE), np.uint8)
    maps[0] = (subjects.drawn(photograph.mask(photograph.polygons[0], (height, width))) * 255).byte().numpy()
    classes = np.full((1, 33, 33), fcn.CLASSES.index("object"), np.uint8)
    features = np.zeros((1, 2, 33, 33), np.float16)
    features[0, 0, 7:15, 11:22] = 1.0
    samples = fcn.Samples([photograph], np.array([0]), maps, classes, features)
    pixels, subject, kinds, seen = samples.draw(np.random.default_rng(3), 6)
    assert pixels.shape[2:] == (4 * subject.shape[1], 4 * subject.shape[2])
    assert kinds.unique().tolist() == [fcn.CLASSES.index("object")]
    reddish = torch.nn.functional.avg_pool2d(pixels[:, 0] - pixels[:, 1:].mean(1), 4)
    for red, mask, feature in zip(reddish, subject, seen, strict=True):
        if 0.02 < mask.mean() < 0.9 and red.std() > 0.05:
            assert np.corrcoef(red.ravel(), mask.ravel())[0, 1] > 0.85
            coarse = torch.nn.functional.adaptive_avg_pool2d(mask[None], feature.shape[1:])[0]
            assert np.corrcoef(coarse.ravel(), feature[0].ravel())[0, 1] > 0.8


def test_the_segmentation_loss_is_least_at_the_truth():
    subject = torch.zeros(1, 4, 4)
    subject[0, 1:3, 1:3] = 1.0
    classes = torch.full((1, 4, 4), 2)
    right = torch.full((1, 4, 4, 4), -6.0)
    right[0, 0] = torch.where(subject[0] > 0, -6.0, 6.0)
    right[0, 2] = -right[0, 0]
    wrong_class = right[:, [0, 1, 3, 2]]
    everywhere = torch.full_like(right, -6.0)
    everywhere[0, 2] = 6.0
    losses = [fcn.segmentation_loss(scores, subject, classes).item() for scores in (right, wrong_class, everywhere)]
    assert losses[0] < 0.25
    assert losses[0] < losses[1] - 1
    assert losses[0] < losses[2] - 1


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
    trainee = Averaged(diffusion.Conditioned(encoders.text, encoders.image))
    trainee.online.use_eager_attention()
    trainee.average.use_eager_attention()
    optimiser = torch.optim.AdamW((p for p in trainee.online.parameters() if p.requires_grad), lr=2e-3)

    def of_average():
        rng = np.random.default_rng(5)
        with torch.inference_mode():
            return diffusion.l_simple(trainee.average, scheduler, batches.draw(rng), rng).item()

    before, losses = of_average(), []
    for step in range(20):
        trainee.follow(step, 0.5)
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


def test_a_missing_teacher_is_named(tmp_path, photograph):
    with pytest.raises(BadInputError, match=r"the teacher .*voc\.tflite is missing"):
        subjects.teacher_features([photograph], tmp_path / "voc.tflite", tmp_path / "seen.npy")


def test_what_was_kept_of_other_photographs_is_made_again(tmp_path, photograph, monkeypatch):
    class Seeing:
        def __init__(self, *_):
            seen.append(0)

        def look(self, canvas):
            seen[-1] += 1
            return np.full((GRID, GRID, 3), canvas[0, 0, 0], np.uint8)

    seen = []
    monkeypatch.setattr(subjects, "Teacher", Seeing)
    store = tmp_path / "work" / "seen.npy"
    one = np.array(subjects.teacher_features([photograph], tmp_path / "voc.tflite", store))
    np.testing.assert_array_equal(subjects.teacher_features([photograph], tmp_path / "voc.tflite", store), one)
    assert len(seen) == 1
    two = subjects.teacher_features([photograph] * 2, tmp_path / "voc.tflite", store)
    assert two.shape == (2, GRID, GRID, 3)
    assert len(seen) == 2

    monkeypatch.setattr(subjects, "fit_probe", lambda *_: subjects.Probe().eval())
    features = np.zeros((2, subjects.COMPONENTS, GRID, GRID), np.float16)
    maps = subjects.label_subjects([photograph], features[:1], tmp_path / "maps.npy")
    np.testing.assert_array_equal(subjects.label_subjects([photograph], features[:1], tmp_path / "maps.npy"), maps)
    assert len(subjects.label_subjects([photograph] * 2, features, tmp_path / "maps.npy")) == 2


@pytest.mark.skipif(not DATA.is_dir(), reason="the training photographs are not beside this checkout")
def test_kodak_is_never_trained_on():
    photographs = load_photographs(DATA)
    assert len(photographs) == 2360
    assert not any("kodak" in str(photograph.path) for photograph in photographs)
    annotated = [photograph for photograph in photographs if photograph.polygons is not None]
    assert len(annotated) == 80
    assert 20 <= sum(photograph.held_out for photograph in annotated) <= 40
    json.dumps([photograph.captions for photograph in photographs])
