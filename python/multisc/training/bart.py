"""Training of BART (paper section III-C) on captions that our own text channel damaged: a new or a published one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sacrebleu
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer, Qwen2Tokenizer

from multisc.errors import BadInputError
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.training.channel import NoisyCaptions
from multisc.training.data import load_caption_data
from multisc.training.loop import Schedule, fit
from multisc.training.place import CPU, Place
from multisc.training.tokenizers import bart_tokenizer

POSITIONS = 64  # of a new model
WIDTH = 192  # of a new model, or its captioner's where that is less
LONGEST = 256  # tokens of a sentence in training, where a published model has more positions
MEASURED_SNR_DB = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 10.0)
SAME_SNR = 4  # training captions go through the channel in groups of so many, which saves half the time

SCRATCH = Schedule(steps=6000, learning_rate=2e-3, warm_up=300, weight_decay=0.01, save_every=250, patience=4)
REFINEMENT = Schedule(steps=750, learning_rate=8e-4, warm_up=50, weight_decay=0.01, save_every=250, patience=4)
FINE_TUNING = Schedule(steps=3000, learning_rate=5e-5, warm_up=300, weight_decay=0.01, save_every=250, patience=4)


@dataclass(frozen=True)
class Noise:
    """What one mode of the text channel does to the training captions.

    Args:
        mode: see ``multisc.codecs.text.TextChannel``; uncoded QPSK.
        snr_db: range of the Es/N0, drawn uniformly: from where hardly a token arrives to where hardly one is lost.
        share: of the training steps.
    """

    mode: str
    snr_db: tuple[float, float]
    share: float


@dataclass(frozen=True)
class BartRecipe:
    """Noise, length and rates of a BART.

    Args:
        clean_share: of the training captions that come through the channel untouched.
        noise: that the others come through.
        beams: of the search for the likeliest answer.
        channel_weight: of the channel's log-likelihood in that search.
        schedule: length and rates from scratch.
        refinement: the same when training goes on from a finished checkpoint.
        fine_tuning: the same for a published one.
    """

    seed: int = 1
    batch: int = 64
    clean_share: float = 0.35
    noise: tuple[Noise, ...] = (
        Noise("embedding", (-3.0, 3.0), 0.7),
        Noise("token", (3.0, 9.0), 0.15),
        Noise("byte", (5.0, 11.0), 0.15),
    )
    beams: int = 6
    channel_weight: float = 0.5
    schedule: Schedule = SCRATCH
    refinement: Schedule = REFINEMENT
    fine_tuning: Schedule = FINE_TUNING


def make_model(
    tokenizer: BartTokenizer, table: NDArray[np.float32], recipe: BartRecipe
) -> BartForConditionalGeneration:
    """Return an untrained BART whose words start as LLaVA's and whose positions start as sinusoids.

    Args:
        tokenizer: its own; the entries that are not special are LLaVA's, in the same order.
        table: LLaVA's input embeddings, (V, D).
        recipe: for the seed.
    """
    torch.manual_seed(recipe.seed)
    width = min(WIDTH, table.shape[1])
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        d_model=width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        activation_function="gelu",
        dropout=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model = BartForConditionalGeneration(config)
    words = len(tokenizer) - len(tokenizer.all_special_tokens)
    with torch.no_grad():
        rows = torch.from_numpy(_strongest(table[:words], width))
        model.model.shared.weight[4 : 4 + words] = rows * (0.05 / rows.std())
        # The same sinusoids on both sides: copying a word means attending to one's own position.
        for side in (model.model.encoder, model.model.decoder):
            side.embed_positions.weight.copy_(0.1 * _sinusoids(len(side.embed_positions.weight), width))
    return model


def _strongest(table: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The table on its strongest principal axes."""
    centred = table - table.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :width]
    return np.ascontiguousarray(centred @ axes)


def _sinusoids(positions: int, width: int) -> Tensor:
    angle = torch.arange(positions)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(200.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def train_bart(
    model: BartForConditionalGeneration,
    tokenizer: BartTokenizer,
    channels: dict[str, NoisyCaptions],
    sentences: Sequence[str],
    held_out: Sequence[str],
    recipe: BartRecipe,
    schedule: Schedule,
    work: Path,
    place: Place = CPU,
) -> list[dict]:
    """Train BART to undo the channel; see ``fit`` for what it returns and leaves in ``work``.

    Args:
        model: trained in place.
        tokenizer: its own.
        channels: that damage the captions, by mode.
        sentences: to train on.
        held_out: to stop on, damaged as the others.
        recipe: noise and seed.
        schedule: length and rates.
        work: directory for checkpoint and log.
        place: to train on.
    """

    def damaged(sent: Sequence[str], noise: Noise, rng: np.random.Generator) -> list[str]:
        received = [""] * len(sent)
        clean = rng.random(len(sent)) < recipe.clean_share
        for group in np.array_split(np.arange(len(sent)), -(-len(sent) // SAME_SNR)):
            texts = channels[noise.mode].receive_all([sent[i] for i in group], rng.uniform(*noise.snr_db), rng)
            for i, text in zip(group, texts, strict=True):
                received[i] = sent[i] if clean[i] else text
        return received

    def cross_entropy(received: Sequence[str], sent: Sequence[str]) -> Tensor:
        longest = min(model.config.max_position_embeddings, LONGEST)
        limit = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        inputs = tokenizer(list(received), **limit).to(place.device)
        labels = tokenizer(list(sent), **limit)["input_ids"].to(place.device)
        labels[labels == tokenizer.pad_token_id] = -100
        with place.autocast():
            logits = model(**inputs, labels=labels).logits
        return torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100)

    shares = np.array([noise.share for noise in recipe.noise]) / sum(noise.share for noise in recipe.noise)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        # One mode a step: sentences damaged byte by byte have many more tokens, and padding costs time.
        noise = recipe.noise[rng.choice(len(shares), p=shares)]
        sent = [sentences[i] for i in rng.integers(len(sentences), size=recipe.batch)]
        return cross_entropy(damaged(sent, noise, rng), sent)

    test = list(held_out[:: max(1, len(held_out) // 300)])
    rng = np.random.default_rng(recipe.seed)
    received = [(noise, damaged(test, noise, rng)) for noise in recipe.noise]
    at_0_db = channels["embedding"].receive_all(test, 0.0, rng)

    def evaluate() -> dict[str, float]:
        corrector = Corrector(model, tokenizer)
        unchanged = corrector.correct(test)
        nll = {
            noise.mode: np.mean(
                [float(cross_entropy(texts[i : i + 100], test[i : i + 100])) for i in range(0, len(test), 100)]
            )
            for noise, texts in received
        }
        return {
            "held_out_nll": float(np.dot(shares, list(nll.values()))),
            **{f"held_out_nll_{mode}": float(value) for mode, value in nll.items()},
            "bleu_received_0db": bleu(at_0_db, test),
            "bleu_corrected_0db": bleu(corrector.correct(at_0_db), test),
            "clean_changed": float(np.mean([a != b for a, b in zip(unchanged, test, strict=True)])),
        }

    return fit("bart", model, loss, schedule, work, evaluate, recipe.seed, best="held_out_nll", place=place)


def bleu(answers: Sequence[str], sent: Sequence[str]) -> float:
    """Return the corpus BLEU-4 of answers against what was sent, 0 to 1."""
    return sacrebleu.corpus_bleu(list(answers), [list(sent)]).score / 100.0


def choose_margin(corrector: Corrector, clean: Sequence[str], allowed: float = 0.005) -> float:
    """Return the least margin, in nats, at which at most the share ``allowed`` of clean sentences is changed."""
    corrector.margin = -math.inf
    changed = [
        (text, answer) for text, answer in zip(clean, corrector.correct(list(clean)), strict=True) if text != answer
    ]
    gains = sorted((corrector.gains([text], [answer])[0] for text, answer in changed), reverse=True)
    spared = int(allowed * len(clean))
    return max(0.0, gains[spared] + 0.01) if len(gains) > spared else 0.0


def measure(
    corrector: Corrector, channel: NoisyCaptions, captioner: Captioner, held_out: Sequence[str], seed: int
) -> list[dict[str, float]]:
    """Return what correction makes of held-out sentences at each of ``MEASURED_SNR_DB``.

    Args:
        corrector: at work.
        channel: in mode ``embedding`` or ``token``.
        captioner: whose tokens travel.
        held_out: sentences.
        seed: of the noise.

    Returns:
        For each SNR the share of captions received with errors, BLEU as received, of the text corrected alone and of
        the reading corrected, and the share of intact captions that the latter two alter.
    """
    rows = []
    known: dict[str, str] = {}
    tokens = corrector.tokens_of(captioner.processor.tokenizer, len(captioner.table))
    for snr_db in MEASURED_SNR_DB:
        readings = channel.read_all(held_out, snr_db, np.random.default_rng(seed))
        received = [reading.text for reading in readings]
        new = sorted(set(received) - set(known))
        known |= dict(zip(new, corrector.correct(new), strict=True))
        text_alone = [known[text] for text in received]
        corrected = corrector.correct_readings(readings, tokens, captioner.encode)
        intact = np.array([r == s for r, s in zip(received, held_out, strict=True)])
        rows.append(
            {
                "snr_db": snr_db,
                "captions_wrong": round(1.0 - intact.mean(), 4),
                "bleu_received": round(bleu(received, held_out), 4),
                "bleu_text_alone": round(bleu(text_alone, held_out), 4),
                "bleu_corrected": round(bleu(corrected, held_out), 4),
                "intact_changed_text_alone": _changed(text_alone, held_out, intact),
                "intact_changed": _changed(corrected, held_out, intact),
            }
        )
    return rows


def _changed(answers: Sequence[str], sent: Sequence[str], intact: NDArray[np.bool_]) -> float | None:
    """Share of the intact captions that are no longer; None when none was intact."""
    changed = np.array([a != s for a, s in zip(answers, sent, strict=True)])[intact]
    return round(float(changed.mean()), 4) if changed.size else None


def train(
    data: Path,
    work: Path,
    llava: Path,
    output: Path,
    recipe: BartRecipe = BartRecipe(),
    start: Path | None = None,
    place: Place = CPU,
) -> list[dict]:
    """Train against the text channel of a trained LLaVA, whose tokens become BART's; save checkpoint and logs.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoint.
        llava: checkpoint of the captioner whose tokens travel.
        output: folder the model is written to.
        recipe: noise, length and rates.
        start: a finished checkpoint to go on from; None for an untrained model.
        place: to train on.

    Returns:
        What ``measure`` found on the held-out sentences.

    Raises:
        BadInputError: when the checkpoint to start from has another vocabulary than the captioner.
    """
    captioner = Captioner.load(llava)
    tokenizer = tokenizer_like(captioner.processor.tokenizer)
    if start is None:
        model, schedule = make_model(tokenizer, captioner.table, recipe), recipe.schedule
    else:
        trained = Corrector.load(start)
        if trained.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise BadInputError(f"--start {start}: its vocabulary is not that of the captioner {llava}")
        model, schedule = trained.model, recipe.refinement
    origin = {"refined": start is not None}
    return _train(Corrector(model, tokenizer), captioner, data, work, output, recipe, schedule, place, origin)


def train_published(
    data: Path,
    work: Path,
    llava: str,
    start: str,
    output: Path,
    recipe: BartRecipe = BartRecipe(),
    place: Place = CPU,
) -> list[dict]:
    """Go on from a published BART against the text channel of a published LLaVA; save checkpoint and logs.

    BART keeps its own tokens: where they are not LLaVA's, it answers the received text, and the channel chooses among
    its answers.

    Args:
        data: the data directory.
        work: folder of the resumable checkpoint.
        llava: the captioner whose tokens travel, a directory or a name on the hub.
        start: the BART, likewise.
        output: folder the model is written to.
        recipe: noise, length and rates.
        place: to train on; the captioner is there too, in the number format that it is used in.

    Returns:
        What ``measure`` found on the held-out sentences.
    """
    captioner = Captioner.load(llava, place.device)
    published = Corrector.load(start)  # on the CPU, in single precision, for the optimiser's sake
    origin = {"models": {"llava": Path(llava).name, "start": Path(start).name}}
    return _train(published, captioner, data, work, output, recipe, recipe.fine_tuning, place, origin)


def _train(
    beginning: Corrector,
    captioner: Captioner,
    data: Path,
    work: Path,
    output: Path,
    recipe: BartRecipe,
    schedule: Schedule,
    place: Place,
    origin: Mapping[str, object],
) -> list[dict]:
    """Train, save and measure; of the held-out sentences one half decides when to stop and the margin.

    ``origin`` goes into the record; see ``train`` for the others.
    """
    captions = load_caption_data(data)
    model, tokenizer = beginning.model, beginning.tokenizer
    channels = {noise.mode: NoisyCaptions(captioner, noise.mode) for noise in recipe.noise}
    model.set_attn_implementation(place.attention)
    calibration = captions.held_out_sentences[1::2]
    sentences = captions.training_sentences
    log = train_bart(model, tokenizer, channels, sentences, calibration, recipe, schedule, work, place)
    # Of all answers the likeliest, whatever its length, which is known from what was received, and whatever it
    # repeats, which published settings forbid.
    search = {"num_beams": recipe.beams, "length_penalty": 0.0, "no_repeat_ngram_size": 0, "early_stopping": False}
    model.generation_config.update(**search)
    model.config.channel_weight = recipe.channel_weight
    model.config.correction_margin = choose_margin(Corrector(model, tokenizer), calibration)
    model.cpu().half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    corrector = Corrector.load(output, place.device)
    quality = measure(corrector, NoisyCaptions(captioner), captioner, captions.held_out_sentences[::2], recipe.seed)
    record = {"recipe": asdict(recipe), **origin, "held_out": quality, "log": log}
    (output / "training.json").write_text(json.dumps(record, indent=0) + "\n")
    return quality


def tokenizer_like(tokenizer: Qwen2Tokenizer) -> BartTokenizer:
    """Return a BART tokenizer over the same byte-pair encoding: one wrong token stays one wrong token."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_tokens)
    vocab = {token: index for token, index in model["vocab"].items() if token not in special}
    return bart_tokenizer(vocab, [(a, b) for a, b in model["merges"]], POSITIONS)
