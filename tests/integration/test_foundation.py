"""The foundation profiles from the hub to the picture: what is published, in miniature, and every call upon it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import safe_open

from multisc.cli import main
from multisc.codecs.text import TEXT_MODES, TextChannel, printable
from multisc.errors import ModelError
from multisc.models import profile as profiles
from multisc.models.captioner import PAPER_QUERY, Captioner
from multisc.models.corrector import Corrector
from multisc.models.profile import load_profile, trained_directory
from multisc.streams import ReceivedImage
from multisc.systems.multi_sc import split
from multisc.systems.registry import get_system
from tests.support import hub_miniatures
from tests.support.fake_hub import FakeHub
from tests.support.hub_llava_7b import CHAT_TEMPLATE, llava_7b
from tests.support.hub_profiles import PROFILES, fetched_profiles
from tests.support.phy import arrive

PICTURE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with fetched_profiles(tmp_path_factory.mktemp("foundation")) as hub:
        yield hub


@pytest.mark.parametrize("name", PROFILES)
def test_all_that_is_loaded_is_there_and_no_more(
    fetched: FakeHub, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "verify", "--models", name]) == 0
    assert capsys.readouterr().out.endswith("all well\n")
    assert main(["models", "list", "--models", name, "--json"]) == 0
    assert all(row["present"] for row in json.loads(capsys.readouterr().out)["rows"])
    files = [line.rpartition(" ")[2] for line in fetched.asked]
    assert [file for file in files if file.endswith((".bin", ".h5", ".ckpt", ".ot"))] == ["pytorch_model.bin"] * 2
    assert "tokenizer.model" in files  # of LLaVA-1.5


@pytest.mark.parametrize(
    ("models", "name"),
    [("foundation", name) for name in ("multi-sc", "single-text", "vlm-csc", "vlf-msc", "text-only", "image-only")]
    + [("foundation-7b", name) for name in ("multi-sc", "single-text")],  # in LLaVA alone they differ
)
def test_each_system_sends_and_shows_a_picture(fetched: FakeHub, models: str, name: str) -> None:
    """Without noise what is received is what was said; with much, there is a picture still."""
    system = get_system(name, models)
    several = {"candidates": 2} if name in ("multi-sc", "single-text") else {}
    whole = {"dimensions": 16} if name == "vlf-msc" else {}
    encoded = system.encode(PICTURE, whole)
    for snr_db in (90.0, 0.0):
        shown = system.decode(arrive(encoded, snr_db), {"steps": 1} | several)
        assert shown.image is not None
        assert shown.image.shape == PICTURE.shape
        if snr_db == 90.0 and name != "image-only":  # its text is of the rebuilt picture
            assert list(map(printable, encoded.preview["captions"])) == shown.text["received"]


@pytest.mark.parametrize("name", ["multi-sc", "vlm-csc", "vlf-msc", "text-only", "image-only"])
def test_each_system_at_the_half_precision_of_a_gpu(
    fetched: FakeHub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor in single precision meets a model in half."""
    half = Mock(return_value=torch.float16)
    for user in ("checkpoint", "generator"):
        monkeypatch.setattr(f"multisc.models.{user}.precision", half)
    monkeypatch.setattr(profiles, "_load", functools.cache(profiles._load.__wrapped__))
    system = get_system(name, "foundation")
    assert half.called
    received = arrive(system.encode(PICTURE, {}), 0.0)
    shown = system.decode(received, {"steps": 1} | ({"candidates": 2} if name == "multi-sc" else {}))
    assert shown.image is not None
    assert shown.image.std() > 1  # no picture of what is not a number


@pytest.mark.parametrize(("mode", "codec"), [("embedding", "jscc"), ("token", "pixels"), ("byte", "bpg")])
def test_each_way_of_sending_text_and_slice(fetched: FakeHub, mode: str, codec: str) -> None:
    options = {"text_mode": mode, "slice_codec": codec, "steps": 1, "cbr": "3"}
    system = get_system("multi-sc", "foundation-7b")
    encoded = system.encode(PICTURE, options)
    shown = system.decode(arrive(encoded, 2.0), options)
    assert shown.image is not None
    assert len(shown.text["corrected"]) == 4
    draft = system.decode(arrive(encoded, 90.0), options | {"draft": True})
    assert draft.image is None
    assert draft.preview["slice"].ndim == 3


def test_a_slice_by_jscc_needs_a_checkpoint_that_nobody_publishes(fetched: FakeHub) -> None:
    wanted = str(trained_directory("foundation") / "deep-jscc")
    with pytest.raises(ModelError, match=f"models foundation: no deep-jscc; put its checkpoint into {wanted}"):
        get_system("multi-sc", "foundation").encode(PICTURE, {"slice_codec": "jscc"})


@pytest.mark.parametrize("models", PROFILES)
def test_of_two_candidates_the_one_that_llava_would_say_the_captions_of(fetched: FakeHub, models: str) -> None:
    system = get_system("multi-sc", models)
    captioner = load_profile(models).load(Captioner, "llava")
    received = arrive(system.encode(PICTURE, {}), 90.0)
    received = ReceivedImage(received.streams[1:], received.side_info)  # without the slice, which hides what is made
    made, fits = [], []
    for seed in (0, 1):
        shown = system.decode(received, {"steps": 1, "seed": seed})
        assert shown.image is not None
        made.append(shown.image.astype(float))
        blocks = zip(split(shown.image, 4), shown.text["corrected"], strict=True)
        pictures, captions = zip(*[pair for pair in blocks if pair[1]], strict=True)
        fits.append(captioner.log_likelihood(list(pictures), list(captions)).sum())
    assert not np.isclose(*fits)
    chosen = system.decode(received, {"steps": 1, "candidates": 2}).image
    distances = [np.abs(picture - chosen).mean() for picture in made]
    assert int(np.argmin(distances)) == int(np.argmax(fits))
    assert min(distances) < 1


# ---- LLaVA-1.5-7B -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_7b(tmp_path_factory.mktemp("llava-7b"))


@pytest.fixture(scope="module")
def llava(directory: Path) -> Captioner:
    return Captioner.load(directory)


def test_the_weights_of_the_old_names_are_those_of_the_model(llava: Captioner, directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    for name, found in (
        ("language_model.model.layers.1.mlp.up_proj.weight", llava.model.model.language_model.layers[1].mlp.up_proj),
        ("language_model.lm_head.weight", llava.model.lm_head),
        (
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            llava.model.model.vision_tower.encoder.layers[0].mlp.fc1,
        ),
        ("multi_modal_projector.linear_2.weight", llava.model.model.multi_modal_projector.linear_2),
    ):
        with safe_open(directory / index[name], "pt") as shard:
            assert torch.equal(shard.get_tensor(name).float(), found.weight)


def test_the_paper_s_query_in_the_model_s_own_words(llava: Captioner) -> None:
    ids = llava._prompt([PICTURE], PAPER_QUERY)["input_ids"][0].tolist()
    tokenizer = llava.processor.tokenizer
    assert ids.count(tokenizer.bos_token_id) == 1
    images = "<image>" * 4  # of 2 x 2 patches; the class token is left out
    assert tokenizer.decode(ids).replace("<image> \n", "<image>\n") == f"<s> USER: {images}\n{PAPER_QUERY} ASSISTANT:"


def test_captions_are_the_likeliest_words(llava: Captioner) -> None:
    """Each word said is the likeliest after those before it, by the likelihoods of the whole."""
    pictures = [PICTURE, PICTURE[:9, ::-1]]
    said = llava.caption(pictures, max_tokens=5)
    assert said[0] != said[1]
    assert said == llava.caption(pictures, max_tokens=5)
    for picture, ids in zip(pictures, said, strict=True):
        inputs = llava._prompt([picture], PAPER_QUERY)
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = llava.model(**inputs).logits[0]
        assert logits[start - 1 : -1].argmax(1).tolist() == ids


def test_likelihood_of_a_caption_beside_a_longer_one(llava: Captioner) -> None:
    captions = ["a dog.", "two children play in the water: 5 € each."]
    together = llava.log_likelihood([PICTURE, PICTURE], captions)
    alone = [llava.log_likelihood([PICTURE], [caption])[0] for caption in captions]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert not np.isclose(*llava.log_likelihood([PICTURE, PICTURE[:9, ::-1]], captions[:1] * 2))


@pytest.mark.parametrize("text", ["a man in a red shirt rides a bicycle.", "Größe: 5 € — 犬", "x\u0301  y", ""])
def test_text_becomes_pieces_and_bytes_and_text_again(llava: Captioner, text: str) -> None:
    ids = llava.encode(text)
    assert llava.decode(ids) == text
    special = llava.processor.tokenizer.all_special_ids
    padding = len(llava.table) - 1  # a row of the table that no word has
    assert padding >= len(llava.processor.tokenizer)
    assert llava.decode([*special, padding, *ids, padding, *special]) == text


@pytest.mark.parametrize("mode", TEXT_MODES)
def test_text_over_the_table_of_a_llama(llava: Captioner, mode: str) -> None:
    """Intact without noise; a byte that another one takes the place of is no printable character."""
    channel = TextChannel(llava, mode)
    text = "two dogs: 5 € — 犬"
    ids = llava.encode(text)
    sent = channel.book.quantiser.dequantise(channel.book.quantiser.quantise(channel.coefficients(ids)))
    assert channel.text(sent) == text
    torn = channel.coefficients(llava.encode("犬")).reshape(-1, channel.book.dimensions)[:-1].ravel()
    assert set(channel.text(torn)) == {"\ufffd"}
    anything = np.random.default_rng(0).standard_normal(channel.book.dimensions * 40)
    assert channel.text(anything).isprintable()


def test_its_tokens_are_not_the_corrector_s(llava: Captioner, tmp_path: Path) -> None:
    """Pieces with the space in front are no byte-level ones: BART answers the texts, not the tokens."""
    corrector = Corrector.load(hub_miniatures.bart(tmp_path))
    assert corrector.tokens_of(llava.processor.tokenizer, len(llava.table)) is None


@pytest.mark.parametrize("known", [{}, {"patch_size": 14, "vision_feature_select_strategy": "default"}])
def test_an_older_processor_file_does_not_count_image_tokens(
    llava: Captioner, directory: Path, known: dict, tmp_path: Path
) -> None:
    """Before release 4.47 of transformers, then 4.48, parts of it were not in the file; the model knows them."""
    older = Path(shutil.copytree(directory, tmp_path / "older"))
    (older / "processor_config.json").write_text(json.dumps(known | {"processor_class": "LlavaProcessor"}))
    assert Captioner.load(older).caption([PICTURE], max_tokens=3) == llava.caption([PICTURE], max_tokens=3)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_where_other_releases_put_it(
    llava: Captioner, directory: Path, place: str, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(directory, tmp_path / "moved"))
    (moved / "chat_template.json").unlink()
    if place.endswith(".jinja"):
        (moved / place).write_text(CHAT_TEMPLATE)
    else:
        values = json.loads((moved / place).read_text())
        (moved / place).write_text(json.dumps(values | {"chat_template": CHAT_TEMPLATE}))
    assert Captioner.load(moved).caption([PICTURE], max_tokens=3) == llava.caption([PICTURE], max_tokens=3)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "its chat template is missing"),
        ("{% for message in %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("USER: look.", "number of <image> tokens"),
    ],
)
def test_a_chat_template_that_is_none_is_said_at_once(
    directory: Path, template: str | None, says: str, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(directory, tmp_path / "copied"))
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ModelError, match=f"{says}.*; copy the whole checkpoint there again") as error:
        Captioner.load(copied)
    assert "\n" not in str(error.value)


def test_pictures_of_another_size_than_the_tower_s(directory: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(directory, tmp_path / "copied"))
    file = copied / "preprocessor_config.json"
    size = {"crop_size": {"height": 42, "width": 42}, "size": {"shortest_edge": 42}}
    file.write_text(json.dumps(json.loads(file.read_text()) | size))
    with pytest.raises(ModelError, match="its image processor is another model's; copy the whole checkpoint"):
        Captioner.load(copied)
