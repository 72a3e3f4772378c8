"""What a trained captioner says of the training photographs, and how good it is on those it never saw."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from multisc.evaluation.cider import cider_d
from multisc.files import write_atomically
from multisc.models.captioner import Captioner
from multisc.training.data import CaptionData, load_pixels, quarters

BATCH = 60
RANKED = 100  # pictures among which a caption must find its own
CONSTANTS = 100  # sentences that are tried as the answer to all


def write_block_captions(captioner: Captioner, data: CaptionData, path: Path) -> None:
    """Describe every training photograph and its four quarters, for the training of the diffusion model.

    Args:
        captioner: that will be used in the end, so that its mistakes are known.
        data: whose photographs are described, the held-out ones too.
        path: JSON file to write: path below the data directory -> captions of the whole, the top left, top right,
            bottom left and bottom right quarter.
    """
    names = [image.path for image in (*data.train, *data.held_out, *data.unlabelled)]
    said: dict[str, list[str]] = {}
    for start in range(0, len(names), BATCH // 5):
        chunk = names[start : start + BATCH // 5]
        pictures = [
            part for name in chunk for whole in [load_pixels(data.root, name)] for part in (whole, *quarters(whole))
        ]
        texts = describe(captioner, pictures)
        said |= {name: texts[5 * i : 5 * i + 5] for i, name in enumerate(chunk)}
    write_atomically(path, json.dumps(said, indent=0).encode())


def describe(captioner: Captioner, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
    """Return a sentence for each picture uint8 (H, W, 3)."""
    return [
        captioner.decode(ids)
        for start in range(0, len(pictures), BATCH)
        for ids in captioner.caption(list(pictures[start : start + BATCH]))
    ]


def measure(captioner: Captioner, data: CaptionData) -> dict:
    """Return BLEU-4 and CIDEr-D on the held-out photographs, against their five sentences each.

    Beside its own stand scores that need no look at the picture: its captions dealt out to the wrong
    pictures (mean of shifts), and the training sentence that does best as the answer to all. ``own_first`` is the
    share of human captions that the model finds likelier of their own picture than of 99 others.

    Args:
        captioner: to measure.
        data: with the held-out photographs.
    """
    pictures = [load_pixels(data.root, image.path) for image in data.held_out]
    said = [image.captions for image in data.held_out]
    answers = describe(captioner, pictures)
    longest = max(map(len, said))
    references: list = [[(*texts, *[None] * longest)[k] for texts in said] for k in range(longest)]

    def score(texts: list[str]) -> float:
        return sacrebleu.corpus_bleu(texts, references).score / 100.0

    constants = likely_constants([text for image in data.train for text in image.captions])
    constant_scores = [score([caption] * len(answers)) for caption in constants]
    best = int(np.argmax(constant_scores))
    shifts = range(1, len(answers), max(1, len(answers) // 20))
    shuffled = [score(answers[shift:] + answers[:shift]) for shift in shifts]
    return {
        "photographs": len(answers),
        "bleu": round(score(answers), 4),
        "cider_d": round(float(cider_d(answers, said).mean()), 4),
        "bleu_shuffled": round(float(np.mean(shuffled)), 4),
        "bleu_shuffled_highest": round(float(np.max(shuffled)), 4),
        "bleu_constant": round(constant_scores[best], 4),
        "constant": constants[best],
        "distinct": len(set(answers)),
        "own_first": round(own_first(captioner, pictures[:RANKED], [texts[0] for texts in said[:RANKED]]), 4),
        "examples": dict(zip([image.path for image in data.held_out[:20]], answers[:20], strict=True)),
    }


def likely_constants(sentences: Sequence[str], count: int = CONSTANTS) -> list[str]:
    """Return sentences of 8 to 16 words with the most frequent pairs of words: the best answers to any picture."""
    words = [sentence.split() for sentence in sorted(set(sentences))]
    pairs = Counter(pair for row in words for pair in itertools.pairwise(row))
    candidates = [row for row in words if 8 <= len(row) <= 16] or words
    candidates.sort(key=lambda row: -sum(pairs[pair] for pair in set(itertools.pairwise(row))) / len(row))
    return [" ".join(row) for row in candidates[:count]]


def own_first(captioner: Captioner, pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> float:
    """Share of captions that are likelier of their own picture than of every other one."""
    found = 0
    for index, caption in enumerate(captions):
        likely = captioner.log_likelihood(list(pictures), [caption] * len(pictures))
        found += int(likely.argmax()) == index
    return found / len(captions)
