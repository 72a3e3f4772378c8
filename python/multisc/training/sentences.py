"""Sentences as the language models are trained on them: token ids, batches, and the stage that has words alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit

MAX_TOKENS = 22


def encode_captions(
    tokenizer: Any, sentences: Sequence[str], start: Sequence[int], end: int
) -> list[NDArray[np.int64]]:
    """Return start, caption and end as token ids, leaving out captions of more than ``MAX_TOKENS``."""
    ids = [tokenizer.encode(sentence, add_special_tokens=False) for sentence in sentences]
    return [np.asarray([*start, *caption, end]) for caption in ids if len(caption) <= MAX_TOKENS]


def pad(rows: list[NDArray[np.int64]], value: int) -> Tensor:
    """Stack rows of different lengths, filled up with ``value`` on the right; int64 of shape (rows, longest)."""
    out = np.full((len(rows), max(map(len, rows))), value)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(out)


def next_words(logits: Tensor, rows: list[NDArray[np.int64]]) -> Tensor:
    """The mean cross-entropy of the tokens of rows, after their first ones, given logits (B, longest - 1, V)."""
    labels = pad(rows, -100)[:, 1:].to(logits.device)
    return functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100)


def train_on_sentences(
    name: str,
    model: nn.Module,
    logits: Callable[[Tensor], Tensor],
    filler: int,
    train: list[NDArray[np.int64]],
    test: list[NDArray[np.int64]],
    schedule: Schedule,
    batch: int,
    work: Path,
    seed: int,
    place: Device = CPU,
) -> list[dict]:
    """Train a language model to tell the next word; see ``fit`` for what it returns and leaves in ``work``.

    Args:
        name: of the stage.
        model: what is trained.
        logits: from token ids (B, L), at the place, to what follows each of them, (B, L, V).
        filler: token id that fills up short sentences.
        train: sentences as token ids.
        test: the same, held out.
        schedule: length and rates.
        batch: sentences a step.
        work: directory for checkpoint and log.
        seed: of batches.
        place: to train on.
    """

    def nll(rows: list[NDArray[np.int64]]) -> Tensor:
        # The filler may be a word, such as the end of the text: ``next_words`` tells them apart by the rows' lengths.
        with place.autocast():
            found = logits(pad(rows, filler)[:, :-1].to(place.device))
        return next_words(found, rows)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        return nll([train[i] for i in rng.integers(len(train), size=batch)])

    def evaluate() -> dict[str, float]:
        return {"held_out_nll": float(np.mean([float(nll(test[i : i + 100])) for i in range(0, len(test), 100)]))}

    return fit(name, model, loss, schedule, work, evaluate, seed, place=place)
