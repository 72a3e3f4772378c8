"""The training of the text models: data, tokenizers, views, the loop, and every stage at a tiny size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from multisc.cli import main
from multisc.errors import BadInputError
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.profile import load_profile
from multisc.training import bart, blip, blip2, diffusion, fcn, jscc, llava, slice_denoiser, vae, vlf
from multisc.training.blip_tokenizers import bert_tokenizer
from multisc.training.channel import NoisyCaptions
from multisc.training.data import load_caption_data, name_captions, normalise_caption, quarters
from multisc.training.device import Device, find_device
from multisc.training.looks import Viewing
from multisc.training.loop import Schedule, fit
from multisc.training.tokenizers import bart_tokenizer, qwen2_tokenizer, train_bpe, train_clip_tokenizer
from multisc.training.views import View, random_view

WORDS = {
    "subject": ["a dog", "a man", "two children", "a woman"],
    "verb": ["runs", "sits", "jumps"],
    "place": ["grass", "sand"],
}
HELD_OUT = 12  # photographs, in place of hundreds
SENTENCES = [f"{s} {v} on the {p}." for s in WORDS["subject"] for v in WORDS["verb"] for p in WORDS["place"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data set like the real one in all but size: plain pictures whose shade tells the subject."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    folders = ("flickr8k/images", "flickr900/images", "coco160/images", "objects1000/images", "bsds300")
    for folder in (*folders, "voc_subjects/images", "voc_subjects/masks"):
        (root / folder).mkdir(parents=True)

    def picture(path: Path, shade: int) -> None:
        Image.fromarray(np.full((30, 40, 3), shade, np.uint8) + rng.integers(0, 9, (30, 40, 3), np.uint8)).save(path)

    # Some photographs are in both folders.
    for folder, numbers in (("flickr8k", range(HELD_OUT + 20)), ("flickr900", range(HELD_OUT + 10, HELD_OUT + 22))):
        flickr = {}
        for index in numbers:
            picture(root / folder / f"images/{index}.jpg", 60 * (index % 4))
            flickr[f"{index}.jpg"] = [f"{SENTENCES[(6 * (index % 4) + k) % 24][:-1]} ." for k in range(5)]
        (root / folder / "captions.json").write_text(json.dumps(flickr))
    picture(root / "coco160/images/c.jpg", 10)
    picture(root / "coco160/images/silent.jpg", 10)
    picture(root / "bsds300/scene.jpg", 10)
    picture(root / "objects1000/images/o.jpeg", 10)
    (root / "objects1000/labels.json").write_text(json.dumps({"o.jpeg": "African elephant"}))
    picture(root / "voc_subjects/images/v.jpg", 10)
    mask = np.zeros((30, 40), np.uint8)
    mask[:, :20], mask[:5, 30:], mask[0, 25] = 8, 15, 3  # a cat, a person, a speck of a bird
    mask[:, 20] = 255
    Image.fromarray(mask).save(root / "voc_subjects/masks/v.png")
    coco = {
        "images": [{"id": 7, "file_name": "c.jpg"}, {"id": 8, "file_name": "silent.jpg"}],
        "annotations": [{"image_id": 7, "caption": "Two children."}],
    }
    (root / "coco160/captions.json").write_text(json.dumps(coco))
    (root / "captions.txt").write_text("\n".join([*SENTENCES, "nobody has this sentence .", "Nor this"] * 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multisc.training.data.HELD_OUT_IMAGES", HELD_OUT)
        yield root


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
    assert len(captions.held_out) == HELD_OUT
    assert len(captions.train) == 20 + 2 + 1
    names = [{Path(image.path).name for image in part} for part in (captions.train, captions.held_out)]
    assert not names[0] & names[1]
    assert captions == load_caption_data(data)
    assert {image.path for image in captions.unlabelled} == {"coco160/images/silent.jpg", "bsds300/scene.jpg"}
    assert captions.train[-1].captions == ("two children.",)
    assert len(captions.held_out_sentences) == 2 * HELD_OUT


def test_sentences_of_photographs_are_no_further_sentences(data: Path) -> None:
    """Or those of held-out photographs would be trained on."""
    captions = load_caption_data(data)
    spoken = {caption for image in (*captions.train, *captions.held_out) for caption in image.captions}
    assert set(captions.sentences) == {"nobody has this sentence.", "nor this."} | (set(SENTENCES) - spoken)


def test_classes_are_named(data: Path) -> None:
    named = {image.path: image.captions for image in load_caption_data(data).named}
    assert named == {
        "objects1000/images/o.jpeg": ("an african elephant.",),
        "voc_subjects/images/v.jpg": ("a cat and a person.",),
    }
    assert name_captions(["Airliner", "dog"]) == ("an airliner and a dog.",)


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


@pytest.mark.parametrize(
    "train", [lambda texts: train_clip_tokenizer(texts, 300, 32), lambda texts: bert_tokenizer(texts, 300, 64)]
)
def test_the_same_sentences_make_the_same_tokenizer(train: Callable[[list[str]], PreTrainedTokenizerBase]) -> None:
    """Or a run that is resumed would read its words by another numbering."""
    texts = [*SENTENCES, "where is the cafe?", "naïve \u201cquotes\u201d here"]
    vocabulary = train(texts).get_vocab()
    assert all(train(texts).get_vocab() == vocabulary for _ in range(3))
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


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


def test_sentences_of_one_picture_do_not_see_each_other() -> None:
    """Packed after one prompt, a sentence is as likely as alone."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    prompt, end, first = [3, 4, 5], 0, 6
    rows = [np.array(row) for row in ([7, 8, 9, end], [10, end], [11, 12, end])]
    packed = llava.pack([rows, rows[:1]], len(prompt), first, end)
    inputs = torch.cat([torch.tensor([prompt, prompt]), packed.ids], 1)
    with torch.inference_mode():
        together = model(inputs, attention_mask=packed.mask, position_ids=packed.positions).logits
        at = len(prompt)
        for row in rows:
            alone = model(torch.tensor([[*prompt, first, *row[:-1]]])).logits[0, len(prompt) :]
            torch.testing.assert_close(together[0, at : at + len(row)], alone, atol=1e-5, rtol=1e-4)
            assert packed.labels[0, at - len(prompt) : at - len(prompt) + len(row)].tolist() == row.tolist()
            at += len(row)
    assert (packed.labels[1, 4:] == -100).all()


@pytest.mark.slow
def test_every_stage_trains_and_the_checkpoints_load(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bart, "MEASURED_SNR_DB", (20.0,))
    monkeypatch.setattr(llava, "load_pretrained", lambda encoder: None)
    captions = load_caption_data(data)
    stage = Schedule(steps=2, learning_rate=1e-3, warm_up=1, save_every=2)
    recipe = llava.LlavaRecipe(
        viewing=Viewing(views=2), batch=8, photographs=4, named=1, language=stage, captions=stage, consensus_samples=2
    )
    quality = llava.train(data, tmp_path, tmp_path / "llava", recipe)
    assert 0.0 <= quality["bleu"] <= 1.0
    assert quality["photographs"] == HELD_OUT
    record = json.loads((tmp_path / "llava" / "training.json").read_text())
    assert {"held_out_nll", "held_out_nll_shuffled"} <= set(record["log"][-1])
    said = json.loads((tmp_path / "block_captions.json").read_text())
    assert len(said) == sum(map(len, (captions.train, captions.named, captions.held_out, captions.unlabelled)))
    assert all(len(texts) == 5 for texts in said.values())
    # The language model's table is the code book of the text channel: the captions stage leaves it alone.
    language = torch.load(tmp_path / "language.pt", weights_only=True)["model"]
    captioner = Captioner.load(tmp_path / "llava")
    table = torch.from_numpy(captioner.table)
    torch.testing.assert_close(table, language["language_model.embed_tokens.weight"].half().float())
    # The encoder stands beside the checkpoint and is one object in memory.
    assert not any("encoder" in name for name in load_file(tmp_path / "llava" / "model.safetensors"))
    again = Captioner.load(tmp_path / "llava")
    assert again.model.model.vision_tower.encoder is captioner.model.model.vision_tower.encoder

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
        find_device(asked)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_command_line_trains_every_stage_on_the_device(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (tmp_path / "blip2").mkdir()
    (tmp_path / "stable-diffusion").mkdir()
    places = {}
    stages = (llava, bart, fcn, vae, diffusion, blip2, blip, vlf, jscc, slice_denoiser)
    for stage in stages:
        monkeypatch.setattr(stage, "train", lambda *_, place, stage=stage, **__: places.update({stage: place}) or {})
    command = ["train", "all", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main([*command, "--device", device] if device != "cpu" else command) == 0
    assert places == dict.fromkeys(stages, Device(device))


def test_memory_that_is_short_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr(jscc, "train", exhausted)
    assert main(["train", "deep-jscc", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert re.fullmatch(r"multisc train: deep-jscc: the memory of cpu is short; .*\n", capsys.readouterr().err)


def test_attention_is_what_is_fast_on_the_device() -> None:
    assert [Device(device).attention for device in ("cpu", "cuda", "cuda:1")] == ["eager", "sdpa", "sdpa"]
