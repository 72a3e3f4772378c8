"""The training of deep-jscc: linear code, channels, batches, and a whole run on two photographs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from multisc.errors import BadInputError
from multisc.models.jscc import Jscc
from multisc.models.jscc_network import CHANNELS, JsccNetwork, JsccWidths
from multisc.training import jscc
from multisc.training.jscc import Draw, JsccTraining

SMALL = JsccTraining(steps=2, later_steps=2, batch=2, crop=64)


@pytest.fixture(scope="module")
def pictures(photograph):
    return [photograph, np.ascontiguousarray(photograph[:, ::-1])]


@pytest.fixture(scope="module")
def transform(pictures):
    return jscc.block_transform(pictures, np.random.default_rng(0))


@pytest.fixture
def network(transform):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = JsccNetwork(JsccWidths(8, 8, 8))
    network.start_from(*transform)
    return network


def test_the_transform_is_orthonormal_and_sorted(transform):
    colour, rows, deviation = transform
    assert rows.shape == (CHANNELS, 768)
    torch.testing.assert_close(rows @ rows.T, torch.eye(CHANNELS), atol=1e-4, rtol=0)
    assert (deviation.diff() <= 0).all()
    assert ((colour > 0) & (colour < 1)).all()


@pytest.mark.parametrize(("channels", "snr_db"), [(64, 10.0), (128, 0.0), (256, 20.0)])
def test_the_untrained_network_is_the_optimal_linear_code(network, transform, channels, snr_db):
    """On Gaussian coefficients of the training photographs' variance: sum of v n / (n + p), plus what is not sent.

    p has a mean of 1 but for its floor of 0.01. A real dimension of a symbol has power 1/2 and noise N0/2, so that
    the noise on features of mean power P is n = N0 P.
    """
    _, _, deviation = transform
    side = 40
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.randn(1, CHANNELS, side, side, generator=generator) * deviation.view(1, -1, 1, 1)
    with torch.no_grad():
        pictures = network.synthesis(coefficients) + network.mean.view(1, 3, 1, 1)
    sent = torch.zeros(1, CHANNELS, side, side)
    sent[:, :channels] = 1
    noise = 10.0 ** (-snr_db / 10.0)
    level = torch.tensor([snr_db])
    drawn = torch.randn(sent.shape, generator=generator) * noise**0.5
    with torch.no_grad():
        found = jscc.distortion(network, Draw(pictures, sent, level, level, drawn, level)).item()
    variance = deviation[:channels] ** 2
    root = (variance * noise).sqrt()
    power = (root * (channels * (1 + noise)) / root.sum() - noise).clamp(min=0.01)
    heard = noise * power.mean()
    expected = (variance * heard / (heard + power)).sum() + (deviation[channels:] ** 2).sum()
    assert found * 768 == pytest.approx(expected.item(), rel=0.05)


def test_a_step_is_drawn_alike_every_time(pictures):
    first, again = (jscc.draw(pictures, SMALL, 3) for _ in range(2))
    for name in ("pictures", "sent", "expected_db", "noise", "measured_db"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(jscc.draw(pictures, SMALL, 4).noise, first.noise)


def test_batches_hold_every_bandwidth_snr_and_kind_of_channel(pictures):
    setup = JsccTraining(batch=8, crop=32, steps=10)
    drawn = [jscc.draw(pictures, setup, step) for step in range(30)]
    counts = {int(row[:, 0, 0].sum()) for batch in drawn for row in batch.sent}
    assert counts >= set(jscc.USUAL_CHANNELS)
    assert min(counts) < 40
    snr_db = torch.cat([batch.snr_db for batch in drawn])
    assert snr_db.min() < -4
    assert snr_db.max() > 19
    measured_db = torch.cat([batch.measured_db for batch in drawn])
    faded = (measured_db - snr_db).abs() > 1e-4
    assert 0.35 < faded.float().mean() < 0.6
    pixels = torch.cat([batch.pictures for batch in drawn])
    assert 0 <= pixels.min() <= pixels.max() <= 1
    flat = pixels.flatten(1).std(1) < 0.15 * pixels.flatten(1).std(1).median()
    assert not flat[:80].any()  # the first stage shows photographs as they are
    assert flat[80:].any()


def test_the_noise_has_the_power_that_the_receiver_measures():
    rng = np.random.default_rng(2)
    noise, measured_db = jscc._noise((12, CHANNELS, 8, 8), np.full(12, 7.0), rng)
    found = -10 * np.log10((noise**2).mean((1, 2, 3)))
    np.testing.assert_allclose(found, measured_db, atol=0.4)
    white = np.abs(measured_db - 7.0) < 1e-6
    assert 0 < white.sum() < 12


def test_recoloured_crops_reach_one_colour_and_clipping(photograph):
    crop = photograph[:64, :64].astype(np.float32) / 255
    rng = np.random.default_rng(0)
    changed = [jscc._recolour(crop, rng) for _ in range(40)]
    assert any(np.ptp(c, axis=(0, 1)).max() == 0 for c in changed)
    assert any((c == 1).mean() > 0.3 for c in changed)
    assert all(c.dtype == np.float32 and c.min() >= 0 and c.max() <= 1 for c in changed)


def test_training_lowers_the_distortion(network, pictures):
    batch = jscc.draw(pictures, JsccTraining(batch=4, crop=64), 0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = jscc.distortion(network, batch).log().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05  # 0.2 dB


@pytest.fixture
def data(tmp_path, photograph):
    """A folder laid out as the training data, with one photograph to train on and one held out."""
    root = tmp_path / "data"
    for folder in ("flickr900/images", "coco160/images", "objects1000/images", "bsds300"):
        (root / folder).mkdir(parents=True)
    (root / "flickr900/captions.json").write_text("{}")
    (root / "objects1000/labels.json").write_text("{}")
    for name in ("captions", "instances"):
        document = {"images": [], "annotations": [], "categories": []}
        (root / f"coco160/{name}.json").write_text(json.dumps(document))
    for name in ("taken.jpg", "held1.jpg"):  # by the hash of its name the second is held out
        Image.fromarray(photograph[:96, :128]).save(root / "bsds300" / name)
    return root


def test_a_whole_run_gives_a_checkpoint_with_its_log(data, tmp_path, photograph):
    quality = jscc.train(data, tmp_path / "work", tmp_path / "out", SMALL)
    assert len(quality) == 9
    assert quality["psnr_cbr_1/24_0_db"] < quality["psnr_cbr_1/6_20_db"]
    record = json.loads((tmp_path / "out/training.json").read_text())
    assert record["setup"]["later_steps"] == 2
    assert [row["step"] for row in record["log"] if "step" in row] == [2, 2]
    trained = Jscc.load(tmp_path / "out")
    assert trained.encode(photograph[:32, :48], 1 / 12).size == 32 * 48 // 2
    again = jscc.train(data, tmp_path / "work", tmp_path / "again", SMALL)  # goes on where it ended
    assert again == quality


def test_missing_or_small_photographs_are_named(data, tmp_path):
    with pytest.raises(BadInputError, match="no photograph of at least 160x160"):
        jscc.train(data, tmp_path, tmp_path)
    with pytest.raises(BadInputError, match="no such folder"):
        jscc.train(tmp_path, tmp_path, tmp_path)
