"""The FCN and the choice of the main subject."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from multisc.errors import ModelError
from multisc.models import segmenter as module
from multisc.models.fcn import CONFIG_NAME, WEIGHTS_NAME, Fcn, FcnConfig
from multisc.models.profile import EMBEDDED_DIRECTORY
from multisc.models.segmenter import Segmenter
from tests.support.paths import DATA

SMALL = FcnConfig(("background", "cat", "dog"), 16, 64)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    Fcn(SMALL).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", [(64, 64), (33, 65), (1, 1), (2, 300), (300, 3)])
def test_log_probabilities_cover_any_picture(size):
    torch.manual_seed(1)
    log, subject = Fcn(SMALL).eval()(torch.rand(1, 3, *size))
    assert log.shape == (1, 3, *size)
    assert subject.shape == (1, *size)
    torch.testing.assert_close(log.exp().sum(1), torch.ones(1, *size))
    assert ((subject >= 0) & (subject <= 1)).all()


def test_a_saved_network_gives_the_same_answer(checkpoint):
    model = Fcn.from_pretrained(checkpoint)
    model.save_pretrained(checkpoint / "again")
    picture = torch.rand(1, 3, 40, 56)
    for again, first in zip(Fcn.from_pretrained(checkpoint / "again")(picture), model(picture), strict=True):
        assert torch.equal(again, first)


def test_the_network_is_fully_convolutional():
    """A picture moved by the coarsest stride moves the scores, but for scene, place and normalisation."""
    torch.manual_seed(2)
    model = Fcn(SMALL).eval()
    model.scene.weight.data.zero_()
    model.place.weight.data.zero_()
    for refine in model.refine:
        for separable in refine:
            separable[2] = torch.nn.Identity()  # its statistics are the whole picture's
    picture = torch.zeros(1, 3, 1280, 64)
    picture[:, :, 576:640] = torch.rand(1, 3, 64, 64)
    scores = model.scores_at_quarter(picture)
    moved = model.scores_at_quarter(picture.roll(32, 2))
    torch.testing.assert_close(moved[:, :, 152:168], scores[:, :, 144:160], rtol=1e-3, atol=1e-4)
    assert scores[:, :, 144:160].std() > 1e-4


def test_training_keeps_the_statistics_of_the_encoder():
    model = Fcn(SMALL).train()
    before = {name: tensor.clone() for name, tensor in model.encoder.named_buffers()}
    model.scores_at_quarter(torch.rand(2, 3, 64, 64))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.named_buffers())


def test_missing_file(checkpoint):
    (checkpoint / CONFIG_NAME).unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        Segmenter.load(checkpoint)


def test_pickle_instead_of_safetensors(checkpoint):
    torch.save({}, checkpoint / WEIGHTS_NAME)
    with pytest.raises(ModelError, match="not a safetensors file"):
        Segmenter.load(checkpoint)


@pytest.mark.parametrize("change", ["shape", "missing", "foreign"])
def test_tensors_that_do_not_fit(checkpoint, change):
    tensors = load_file(checkpoint / WEIGHTS_NAME)
    if change == "shape":
        tensors["scene.bias"] = np.zeros(7, np.float16)
    elif change == "missing":
        del tensors["scene.bias"]
    else:
        tensors["other"] = np.zeros(1, np.float16)
    save_file(tensors, checkpoint / WEIGHTS_NAME)
    with pytest.raises(ModelError, match=r"scene\.bias|other"):
        Segmenter.load(checkpoint)


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ["background"]},
        {"width": 0},
        {"width": 20},
        {"width": 8192},
        {"width": "x"},
        {"classes": ["many"] * 1001},
        {"long_side": 8},
        {"long_side": "x"},
        {"classes": 3},
    ],
)
def test_bad_configuration(checkpoint, values):
    config = json.loads((checkpoint / CONFIG_NAME).read_text())
    (checkpoint / CONFIG_NAME).write_text(json.dumps(config | values))
    with pytest.raises(ModelError):
        Segmenter.load(checkpoint)


class Painted(torch.nn.Module):
    """In the network's place: red is a cat, blue is a dog, and what is neither is no subject."""

    config = SMALL

    def forward(self, pictures):
        cat, dog = pictures[:, 0], pictures[:, 2]
        shares = torch.stack([torch.full_like(cat, 0.02), 0.5 * cat, 0.4 * dog], 1) + 1e-3
        shares[:, 0] += 0.6 * (1 - torch.maximum(cat, dog))
        shares = shares / shares.sum(1, keepdim=True)
        return torch.log(shares), 1.0 - shares[:, 0]


def test_the_largest_region_is_the_subject():
    image = np.zeros((120, 180, 3), np.uint8)
    image[50:90, 60:120, 0] = 255  # a cat in the middle
    image[0:12, 0:24, 2] = 255  # a dog in the corner
    subject = Segmenter(Painted()).segment(image)
    assert subject.found
    assert subject.label == "cat"
    assert subject.score > 0.8
    x, y, w, h = subject.box
    margin = round(module.MARGIN * 180)
    assert margin > 0
    assert abs(x + margin - 60) <= 4
    assert abs(y + margin - 50) <= 4
    assert abs(w - 2 * margin - 60) <= 8
    assert abs(h - 2 * margin - 40) <= 8
    assert subject.mask[70, 90]
    assert not subject.mask[10, 20]


def test_a_small_subject_gets_a_box_of_the_least_size():
    image = np.zeros((256, 256, 3), np.uint8)
    image[120:140, 2:24, 0] = 255
    subject = Segmenter(Painted()).segment(image)
    x, y, w, h = subject.box
    assert min(w, h) >= module.MIN_SIDE
    assert x >= 0
    assert y <= 120


def test_where_nothing_is_likely_the_likeliest_place_is_a_guess():
    image = np.zeros((100, 160, 3), np.uint8)
    image[:, 100:, 2] = 60  # faintly a dog, on the right
    subject = Segmenter(Painted()).segment(image)
    assert not subject.found
    assert subject.label in ("cat", "dog")
    assert subject.box[0] + subject.box[2] / 2 > 80


def test_fragments_of_weight_belong_to_the_subject():
    """Two people side by side are one subject; a speck is not."""
    foreground = np.full((60, 90), 0.01, np.float32)
    foreground[10:50, 10:30] = foreground[15:45, 50:70] = 0.9
    foreground[2:5, 85:88] = 0.9
    mask, expected = module.main_region(foreground)
    assert mask[30, 20]
    assert mask[30, 60]
    assert not mask[3, 86]
    assert 0.5 < expected < 1


def test_the_chosen_mask_has_the_highest_expected_overlap():
    """Against masks drawn from the probabilities themselves, no other threshold does better on average."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:40, :40]
    foreground = np.exp(-((x - 22) ** 2 + (y - 18) ** 2) / 160).astype(np.float32) * 0.8
    shown = (1 - module.DOUBT) * foreground + module.DOUBT * foreground.mean()
    drawn = rng.random((400, 40, 40)) < shown

    def overlap(mask):
        return np.mean((drawn & mask).sum((1, 2)) / (drawn | mask).sum((1, 2)))

    mask, expected = module.main_region(foreground)
    assert overlap(mask) == pytest.approx(expected, abs=0.01)
    assert overlap(mask) >= max(overlap(foreground > t) for t in (0.1, 0.2, 0.3, 0.5, 0.6)) - 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31))
def test_mask_and_box_are_never_empty(height, width, seed):
    torch.manual_seed(seed % 7)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    subject = Segmenter(Fcn(SMALL)).segment(image)
    x, y, w, h = subject.box
    assert subject.mask.shape == (height, width)
    assert subject.mask.any()
    assert x >= 0
    assert y >= 0
    assert w >= 1
    assert h >= 1
    assert x + w <= width
    assert y + h <= height
    rows, columns = np.nonzero(subject.mask)
    margin = round(module.MARGIN * max(height, width))
    assert y <= max(0, rows.min() - margin)
    assert y + h >= min(height, rows.max() + 1 + margin)
    assert x <= max(0, columns.min() - margin)
    assert x + w >= min(width, columns.max() + 1 + margin)
    assert subject.label != "background"
    assert 0 <= subject.score <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2000)])
def test_thin_pictures(size):
    subject = Segmenter(Fcn(SMALL)).segment(np.full((*size, 3), 99, np.uint8))
    assert subject.mask.any()
    assert min(subject.box[2:]) >= 1


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the training photographs are not beside this checkout")
def test_the_embedded_network_finds_subjects_it_never_saw():
    from multisc.training.fcn import measure, measure_voc
    from multisc.training.photographs import load_photographs

    segmenter = Segmenter.load(EMBEDDED_DIRECTORY / "fcn")
    found = measure(segmenter, load_photographs(DATA)) | measure_voc(segmenter, DATA)
    card = json.loads((EMBEDDED_DIRECTORY / "fcn" / "training.json").read_text())["held_out"]
    assert found["pictures"] >= 30
    assert found["voc_pictures"] >= 200
    assert found == pytest.approx(card, abs=0.01)  # the model card tells the truth


def test_the_embedded_network_sees_the_astronaut():
    data = pytest.importorskip("skimage.data")
    subject = Segmenter.load(EMBEDDED_DIRECTORY / "fcn").segment(data.astronaut())
    assert subject.found
    assert subject.label == "person"
    assert subject.mask[100:250, 180:260].mean() > 0.8  # her face
