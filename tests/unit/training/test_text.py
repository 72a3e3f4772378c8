"""The training of the text models: data, tokenizers, views, the loop, and every stage at a tiny size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from multisc.cli import main
from multisc.errors import BadInputError
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.profile import load_profile
from multisc.training import bart, blip, blip2, diffusion, fcn, jscc, llava, vae, vlf
from multisc.training.blip_tokenizers import bert_tokenizer
from multisc.training.captioning import measure, write_block_captions
from multisc.training.channel import NoisyCaptions
from multisc.training.data import HELD_OUT_IMAGES, load_caption_data, normalise_caption, quarters
from multisc.training.distil import CHANNELS, distil, principal_features
from multisc.training.loop import Schedule, fit
from multisc.training.place import Place, find_place
from multisc.training.teacher import GRID
from multisc.training.tokenizers import bart_tokenizer, qwen2_tokenizer, train_bpe
from multisc.training.views import WHOLE, View, pixel_values, random_view

WORDS = {
    "subject": ["a dog", "a man", "two children", "a woman"],
    "verb": ["runs", "sits", "jumps"],
    "place": ["grass", "sand"],
}
SENTENCES = [f"{s} {v} on the {p}." for s in WORDS["subject"] for v in WORDS["verb"] for p in WORDS["place"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set like the real one in all but size: plain pictures whose shade tells the subject."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in ("flickr900/images", "coco160/images", "objects1000/images", "bsds300"):
        (root / folder).mkdir(parents=True)

    def picture(path: Path, shade: int) -> None:
        Image.fromarray(np.full((30, 40, 3), shade, np.uint8) + rng.integers(0, 9, (30, 40, 3), np.uint8)).save(path)

    flickr = {}
    for index in range(HELD_OUT_IMAGES + 20):
        picture(root / f"flickr900/images/{index}.jpg", 60 * (index % 4))
        flickr[f"{index}.jpg"] = [f"{SENTENCES[(6 * (index % 4) + k) % 24][:-1]} ." for k in range(5)]
    (root / "flickr900/captions.json").write_text(json.dumps(flickr))
    picture(root / "coco160/images/c.jpg", 10)
    picture(root / "coco160/images/silent.jpg", 10)
    picture(root / "objects1000/images/o.jpeg", 10)
    coco = {
        "images": [{"id": 7, "file_name": "c.jpg"}, {"id": 8, "file_name": "silent.jpg"}],
        "annotations": [{"image_id": 7, "caption": "Two children."}],
    }
    (root / "coco160/captions.json").write_text(json.dumps(coco))
    (root / "captions.txt").write_text("\n".join(SENTENCES * 50))
    return root


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("A tan , white , and black dog runs .", "a tan, white, and black dog runs."),
        ('The man\'s "hat"', "the man's hat."),
        ("  two\tdogs  !", "two dogs."),
        ("a café", "a caf."),
        (" . ", ""),
    ],
)
def test_captions_have_one_form(raw: str, normal: str) -> None:
    assert normalise_caption(raw) == normal
    assert normalise_caption(normal) == normal


def test_split_keeps_held_out_pictures_apart_and_is_fixed(data: Path) -> None:
    captions = load_caption_data(data)
    assert len(captions.held_out) == HELD_OUT_IMAGES
    assert len(captions.train) == 21
    assert not {image.path for image in captions.train} & {image.path for image in captions.held_out}
    assert captions == load_caption_data(data)
    assert {image.path for image in captions.unlabelled} == {"coco160/images/silent.jpg", "objects1000/images/o.jpeg"}
    assert captions.train[-1].captions == ("two children.",)
    assert len(captions.sentences) + len(captions.held_out_sentences) < len(SENTENCES) * 50


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"captions\.json is missing"):
        load_caption_data(tmp_path)


def test_quarters_cover_the_picture() -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    top_left, top_right, bottom_left, bottom_right = quarters(picture)
    whole = np.vstack([np.hstack([top_left, top_right]), np.hstack([bottom_left, bottom_right])])
    np.testing.assert_array_equal(whole, picture)


def test_both_tokenizers_cut_text_alike() -> None:
    encoding = train_bpe(SENTENCES, 150)
    qwen2, bart_ = qwen2_tokenizer(*encoding, 64), bart_tokenizer(*encoding, 64)
    text = "two children jump on a dog, 5 times!"
    assert qwen2.decode(qwen2.encode(text)) == text
    assert [i + 4 for i in qwen2.encode(text)] == bart_.encode(text, add_special_tokens=False)
    assert bart_.decode(bart_.encode(text), skip_special_tokens=True) == text
    assert qwen2.encode("<image>") == [len(qwen2) - 1]


@pytest.mark.parametrize("train", [diffusion.train_tokenizer, lambda texts: bert_tokenizer(texts, 300, 64)])
def test_the_same_sentences_make_the_same_tokenizer(train: Callable[[list[str]], PreTrainedTokenizerBase]) -> None:
    """Or a run that is resumed would read its words by another numbering."""
    texts = [*SENTENCES, "where is the cafe?", "naïve \u201cquotes\u201d here"]
    vocabulary = train(texts).get_vocab()
    assert all(train(texts).get_vocab() == vocabulary for _ in range(3))
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_training_views_match_the_processor() -> None:
    rng = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
    )
    tokenizer = qwen2_tokenizer(*train_bpe(SENTENCES, 150), 64)
    processor = llava.make_processor(tokenizer, llava.LlavaRecipe())
    theirs = processor.image_processor(smooth, return_tensors="pt")["pixel_values"][0]
    ours = pixel_values([smooth], [WHOLE], 96)[0]
    # The processor rounds to 8 bits after resizing.
    assert float((ours - theirs).abs().max()) < 0.05


def test_views_cut_features_and_pictures_alike() -> None:
    column = torch.arange(33.0).repeat(1, 33, 1)
    left_half = View(0.0, 0.0, 0.5, 1.0, True, (1.0, 1.0, 1.0), 0.0)
    cut = left_half.cut(column, 4, "area")[0]
    assert (cut[:, :-1] > cut[:, 1:]).all()
    assert cut.max() < 17
    rng = np.random.default_rng(0)
    for _ in range(100):
        view = random_view(rng, 0.3)
        assert 0 <= view.left < view.right <= 1
        assert 0 <= view.top < view.bottom <= 1
        assert (view.right - view.left) * (view.bottom - view.top) > 0.2


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1, 1))
        self.offset = torch.nn.Parameter(torch.zeros(1))

    def loss(self, step: int) -> torch.Tensor:
        x = torch.randn(16, 1)
        return ((x @ self.slope + self.offset - 3 * x - 1) ** 2).mean()


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    schedule = Schedule(steps=60, learning_rate=0.2, warm_up=5, weight_decay=0.0, save_every=10)
    whole, first, second = Line(), Line(), Line()
    log = fit("line", whole, whole.loss, schedule, tmp_path / "whole", seed=3)

    class Interrupted(Exception):
        pass

    def until_30(step: int) -> torch.Tensor:
        if step == 30:
            raise Interrupted
        return first.loss(step)

    with pytest.raises(Interrupted):
        fit("line", first, until_30, schedule, tmp_path / "parts", seed=3)
    resumed = fit("line", second, second.loss, schedule, tmp_path / "parts", seed=3)
    assert torch.equal(whole.slope, second.slope)
    assert torch.equal(whole.offset, second.offset)
    assert [row.get("loss") for row in log] == [row.get("loss") for row in resumed]
    assert abs(whole.slope.item() - 3) < 0.1


def test_a_run_killed_before_its_log_is_written_loses_no_row_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(steps=40, learning_rate=0.2, warm_up=5, weight_decay=0.0, save_every=10)
    whole = Line()
    log = fit("line", whole, whole.loss, schedule, tmp_path / "whole", seed=3)

    class Killed(Exception):
        pass

    def write_but_at_20(path: Path, text: bytes) -> None:
        if json.loads(text)[-1]["step"] == 20:
            path.write_bytes(text[: len(text) // 2])
            raise Killed
        path.write_bytes(text)

    killed, resumed = Line(), Line()
    monkeypatch.setattr("multisc.training.loop.write_atomically", write_but_at_20)
    with pytest.raises(Killed):
        fit("line", killed, killed.loss, schedule, tmp_path / "parts", seed=3)
    again = fit("line", resumed, resumed.loss, schedule, tmp_path / "parts", seed=3)
    assert [(row.get("step"), row.get("loss")) for row in again] == [
        (row.get("step"), row.get("loss")) for row in log
    ]
    assert [row.get("step") for row in json.loads((tmp_path / "parts/line.json").read_text())][1:] == [10, 20, 30, 40]


def test_rate_slows_a_part(tmp_path: Path) -> None:
    line = Line()
    schedule = Schedule(steps=20, learning_rate=0.1, warm_up=1, save_every=20)
    fit("line", line, line.loss, schedule, tmp_path, rate=lambda name: 0.0 if name == "offset" else 1.0)
    assert float(line.offset.detach()) == 0.0
    assert float(line.slope.detach()) > 0.5


def test_principal_features_keep_where_things_are() -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(100, 110, (8, GRID, GRID, CHANNELS), dtype=np.uint8)
    features[:, :, 16:, :50] += 80
    reduced = principal_features(features, 4)
    assert reduced.shape == (8, 4, GRID, GRID)
    strongest = reduced[:, 0].astype(np.float32)
    assert abs(strongest[:, :, 17:].mean() - strongest[:, :, :15].mean()) > 1.5


@pytest.mark.slow
def test_every_stage_trains_and_the_checkpoints_load(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bart, "MEASURED_SNR_DB", (20.0,))
    monkeypatch.setattr("multisc.training.data.HELD_OUT_SENTENCES", 40)
    captions = load_caption_data(data)
    stage = Schedule(steps=2, learning_rate=1e-3, warm_up=1, save_every=2)
    recipe = llava.LlavaRecipe(image_size=32, batch=8, caption_batch=8, language=stage, tower=stage, captions=stage)
    tokenizer = llava.make_tokenizer(captions.training_sentences)
    model = llava.make_model(tokenizer, recipe)
    llava.train_language_model(
        model, tokenizer, captions.training_sentences, list(captions.held_out_sentences[:20]), recipe, tmp_path
    )
    table = model.get_input_embeddings().weight.detach().clone()
    features = np.random.default_rng(0).standard_normal((12, 6, GRID, GRID)).astype(np.float16)
    pictures = [np.full((20, 30, 3), shade, np.uint8) for shade in range(0, 240, 20)]
    held_out = np.arange(12) < 3
    log = distil(model.model.vision_tower, pictures, features, held_out, stage, 8, tmp_path, 0)
    assert {"explained_patches", "explained_whole"} <= set(log[-1])
    log = llava.train_captions(model, tokenizer, captions, recipe, tmp_path)
    assert {"held_out_nll", "held_out_nll_shuffled"} <= set(log[-1])
    assert torch.equal(model.get_input_embeddings().weight, table)  # the code book of the text channel

    model.half().save_pretrained(tmp_path / "llava")
    llava.make_processor(tokenizer, recipe).save_pretrained(tmp_path / "llava")
    captioner = Captioner.load(tmp_path / "llava")
    quality = measure(captioner, captions)
    assert 0.0 <= quality["bleu"] <= 1.0
    assert quality["photographs"] == HELD_OUT_IMAGES
    write_block_captions(captioner, captions, tmp_path / "block_captions.json")
    said = json.loads((tmp_path / "block_captions.json").read_text())
    assert len(said) == len(captions.train) + len(captions.held_out) + len(captions.unlabelled)
    assert all(len(texts) == 5 for texts in said.values())

    small = bart.BartRecipe(batch=8, schedule=stage, refinement=replace(stage, learning_rate=1e-4))
    rows = bart.train(data, tmp_path, tmp_path / "llava", tmp_path / "bart", small)
    assert [(row["snr_db"], row["bleu_received"]) for row in rows] == [(20.0, 1.0)]
    assert Corrector.load(tmp_path / "bart").correct(["a dog."])
    rows = bart.train(data, tmp_path / "on", tmp_path / "llava", tmp_path / "on", small, tmp_path / "bart")
    record = json.loads((tmp_path / "on" / "training.json").read_text())
    assert (record["refined"], record["log"][0]["learning_rate"]) == (True, 1e-4)
    with pytest.raises(BadInputError, match="its vocabulary is not that of the captioner"):
        bart.train(
            data, tmp_path / "no", tmp_path / "llava", tmp_path / "no", small, Path(load_profile("embedded").bart)
        )


class Speaker:
    """A tokenizer with a table: all that the text channel asks of a language model."""

    def __init__(self) -> None:
        self._tokenizer = qwen2_tokenizer(*train_bpe(SENTENCES, 150), 64)
        self.table = np.random.default_rng(0).standard_normal((len(self._tokenizer), 64)).astype(np.float32)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("mode", "good", "bad"), [("embedding", 8.0, -3.0), ("token", 16.0, 4.0), ("byte", 16.0, 4.0)]
)
def test_noise_on_captions_falls_with_the_snr(mode: str, good: float, bad: float) -> None:
    channel = NoisyCaptions(Speaker(), mode)
    rng = np.random.default_rng(1)
    assert [channel.receive(text, good, rng) for text in SENTENCES] == SENTENCES
    assert sum(channel.receive(text, bad, rng) != text for text in SENTENCES) > len(SENTENCES) // 2


def test_a_code_on_captions_mends_them() -> None:
    # QPSK at 5 dB: uncoded one bit in 26 is wrong.
    plain, coded = NoisyCaptions(Speaker(), "token"), NoisyCaptions(Speaker(), "token", code="nr:1/2")
    rng = np.random.default_rng(1)
    assert sum(plain.receive(text, 5.0, rng) != text for text in SENTENCES) > 20
    assert [coded.receive(text, 5.0, rng) for text in SENTENCES] == SENTENCES


def test_training_stops_when_nothing_improves_and_keeps_the_best(tmp_path: Path) -> None:
    line = Line()
    errors = iter([3.0, 1.0, 2.0, 1.5, 9.0])
    seen: list[float] = []

    def evaluate() -> dict[str, float]:
        seen.append(float(line.slope))
        return {"error": next(errors)}

    schedule = Schedule(steps=100, learning_rate=0.1, warm_up=1, save_every=10, patience=2)
    log = fit("line", line, line.loss, schedule, tmp_path, evaluate, best="error")
    assert [row["step"] for row in log[1:]] == [10, 20, 30, 40]
    assert float(line.slope.detach()) == seen[1] != seen[3]
    again = Line()
    assert fit("line", again, again.loss, schedule, tmp_path, evaluate, best="error") == log
    assert float(again.slope.detach()) == seen[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bart", "--data", "/no/such"], "no such directory"),
        (["bart", "--data", ".", "--threads", "0"], "must be at least 1"),
        (["llava", "--data", ".", "--start", "."], "--start is for bart alone"),
        (["llava", "--data", ".", "--device", "gpu"], "--device gpu: must be cpu, cuda or cuda:N"),
        (["llava", "--data", ".", "--device", "cuda:"], "must be cpu, cuda or cuda:N"),
        (["all", "--data", ".", "--device", "cuda:2"], "--device cuda:2: not on this computer"),
    ],
)
def test_command_line_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["train", "--out", str(tmp_path), *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("devices", "asked", "there_is"),
    [(0, "cuda", "there is cpu$"), (2, "cuda:2", "there is cpu, cuda:0, cuda:1$")],
)
def test_a_device_that_is_not_there_is_named(
    devices: int, asked: str, there_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(BadInputError, match=there_is):
        find_place(asked)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_command_line_trains_every_stage_on_the_device(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (tmp_path / "blip2").mkdir()
    (tmp_path / "stable-diffusion").mkdir()
    places = {}
    stages = (llava, bart, fcn, vae, diffusion, blip2, blip, vlf, jscc)
    for stage in stages:
        monkeypatch.setattr(stage, "train", lambda *_, place, stage=stage, **__: places.update({stage: place}) or {})
    command = ["train", "all", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main([*command, "--device", device] if device != "cpu" else command) == 0
    assert places == dict.fromkeys(stages, Place(device))


def test_memory_that_is_short_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr(jscc, "train", exhausted)
    assert main(["train", "deep-jscc", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert re.fullmatch(r"multisc train: deep-jscc: the memory of cpu is short; .*\n", capsys.readouterr().err)


def test_attention_is_what_is_fast_on_the_device() -> None:
    assert [Place(device).attention for device in ("cpu", "cuda", "cuda:1")] == ["eager", "sdpa", "sdpa"]
