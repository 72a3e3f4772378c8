"""BLIP and BLIP-2, on miniatures and on the embedded checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from multisc.codecs.text import TextChannel
from multisc.errors import BadInputError, ModelError
from multisc.models.blip import BlipCaptioner
from multisc.models.blip2 import Blip2
from multisc.models.profile import EMBEDDED_DIRECTORY
from tests.support.miniatures import write_llava
from tests.support.miniatures_blip import TOKENS, WIDTH, write_blip, write_blip2


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> BlipCaptioner:
    return BlipCaptioner.load(write_blip(tmp_path_factory.mktemp("blip")))


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Blip2:
    return Blip2.load(write_blip2(tmp_path_factory.mktemp("blip2")))


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [noise(1, 1), noise(40, 30, 1), noise(5, 200, 2), np.full((8, 8, 3), 255, np.uint8)]


@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_captions_are_those_of_the_class_itself(name: str, request: pytest.FixtureRequest) -> None:
    """Cut in two, y between the halves, BLIP-2 says what ``generate`` of the whole says; so does BLIP."""
    model = request.getfixturevalue(name)
    said = model.caption(PICTURES, max_tokens=6)
    pictures = [Image.fromarray(picture) for picture in PICTURES]
    pixels = model.processor.image_processor(pictures, return_tensors="pt").pixel_values
    beams = 3 if name == "blip" else 5
    with torch.inference_mode():
        whole = model.model.generate(pixel_values=pixels, num_beams=beams, do_sample=False, max_new_tokens=6)
    start = 1 if name == "blip" else TOKENS + 1
    special = set(model.processor.tokenizer.all_special_ids)
    for ids, row in zip(said, whole.tolist(), strict=True):
        assert ids == row[start : start + len(ids)]
        assert len(ids) <= 6
        assert not special & set(ids)
    assert model.caption(PICTURES, max_tokens=6) == said
    assert model.caption([]) == []


def test_caption_depends_on_the_picture(blip: BlipCaptioner, blip2: Blip2) -> None:
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    for model in (blip, blip2):
        first, second = model.caption([black, white])
        assert first != second


def test_feature_has_the_models_sizes(blip2: Blip2) -> None:
    assert (blip2.tokens, blip2.width) == (TOKENS, WIDTH)
    together = blip2.feature(PICTURES)
    assert together.shape == (4, TOKENS, WIDTH)
    assert together.dtype == np.float32
    np.testing.assert_allclose(blip2.feature(PICTURES[1:2])[0], together[1], atol=1e-4)
    assert blip2.feature([]).shape == (0, TOKENS, WIDTH)


@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_text_through_the_models_own_table(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    text = "a man in a red shirt rides a bicycle."
    ids = model.encode(text)
    assert model.decode(ids) == text
    channel = TextChannel(model)
    quantised = channel.book.quantiser.dequantise(channel.book.quantiser.quantise(channel.coefficients(ids)))
    assert channel.text(quantised) == text
    # A row of the table that no word has may be received, but says nothing.
    assert model.decode([len(model.table) - 1, *ids]) == text


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.ones((4, 4, 3))])
def test_what_is_no_picture(blip: BlipCaptioner, blip2: Blip2, picture: NDArray) -> None:
    for call in (blip.caption, blip2.caption, blip2.feature):
        with pytest.raises(BadInputError, match=r"must be \(H, W, 3\) uint8"):
            call([picture])


def test_what_is_no_feature(blip2: Blip2) -> None:
    for feature in (np.zeros((1, 3, WIDTH)), np.zeros((TOKENS, WIDTH)), np.full((1, TOKENS, WIDTH), np.nan)):
        with pytest.raises(BadInputError, match=r"must be \(n, 4, 16\), finite"):
            blip2.describe(feature)
    with pytest.raises(BadInputError, match="must be 1 to 256"):
        blip2.describe(np.zeros((1, TOKENS, WIDTH)), max_tokens=0)


def test_sharded_checkpoint(blip2: Blip2, tmp_path: Path) -> None:
    directory = write_blip2(tmp_path, shard_size="20KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(Blip2.load(directory).feature(PICTURES), blip2.feature(PICTURES))


@pytest.mark.parametrize("kind", [BlipCaptioner, Blip2])
@pytest.mark.parametrize(
    ("file", "message"),
    [("model.safetensors", "is missing; copy"), ("tokenizer.json", "is missing"), ("processor_config.json", "copy")],
)
def test_missing_file(kind: type, file: str, message: str, tmp_path: Path) -> None:
    directory = write_blip(tmp_path) if kind is BlipCaptioner else write_blip2(tmp_path)
    (directory / file).unlink()
    with pytest.raises(ModelError, match=message) as error:
        kind.load(directory)
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    write_llava(tmp_path)
    for kind in (BlipCaptioner, Blip2):
        with pytest.raises(ModelError) as error:
            kind.load(tmp_path)  # type: ignore[attr-defined]
        assert "\n" not in str(error.value)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    directory = write_blip2(tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(50)}
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="tokenizer is another model's"):
        Blip2.load(directory)


@pytest.mark.parametrize("kind", [BlipCaptioner, Blip2])
def test_image_processor_of_another_model(kind: type, tmp_path: Path) -> None:
    directory = write_blip(tmp_path) if kind is BlipCaptioner else write_blip2(tmp_path)
    file = directory / "processor_config.json"
    values = json.loads(file.read_text())
    values["image_processor"]["size"] = {"height": 40, "width": 40}
    file.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="its image processor is another model's; copy the whole checkpoint"):
        kind.load(directory)  # type: ignore[attr-defined]


def test_pickle_is_never_opened(tmp_path: Path) -> None:
    directory = write_blip(tmp_path)
    shutil.move(directory / "model.safetensors", directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        BlipCaptioner.load(directory)


def test_embedded_checkpoints_are_small_and_speak(photograph: NDArray[np.uint8]) -> None:
    sizes = 0
    for name, kind in (("blip", BlipCaptioner), ("blip2", Blip2)):
        directory = EMBEDDED_DIRECTORY / name
        sizes += sum(file.stat().st_size for file in directory.iterdir())
        model = kind.load(directory)  # type: ignore[attr-defined]
        ids = model.caption([photograph])[0]
        text = model.decode(ids)
        assert 3 <= len(ids) <= 32
        assert text.endswith(".")
        assert model.encode(text) == ids
    assert sizes < 10_000_000
