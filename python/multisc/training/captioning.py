"""What a trained captioner says of the training photographs, and how good it is on those it never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from multisc.files import write_atomically
from multisc.models.captioner import Captioner
from multisc.training.data import CaptionData, load_pixels, quarters

BATCH = 60


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


def measure(captioner: Captioner, data: CaptionData, constants: Sequence[str] | None = None) -> dict:
    """Return BLEU-4 on the held-out photographs, against their five sentences each.

    Beside its own stand scores that need no look at the picture: its captions dealt out to the wrong
    pictures (mean of all cyclic shifts), and the training sentence that does best as the answer to all.

    Args:
        captioner: to measure.
        data: with the held-out photographs.
        constants: sentences tried as the answer to all; None for every sentence of the training photographs up to 20
            words, which takes minutes.
    """
    pictures = [load_pixels(data.root, image.path) for image in data.held_out]
    answers = describe(captioner, pictures)
    longest = max(len(image.captions) for image in data.held_out)
    references: list = [[(*image.captions, *[None] * longest)[k] for image in data.held_out] for k in range(longest)]

    def score(texts: list[str]) -> float:
        return sacrebleu.corpus_bleu(texts, references).score / 100.0

    if constants is None:
        constants = sorted({text for image in data.train for text in image.captions if len(text.split()) <= 20})
    constant_scores = [score([caption] * len(answers)) for caption in constants]
    best = int(np.argmax(constant_scores))
    shuffled = [score(answers[shift:] + answers[:shift]) for shift in range(1, len(answers))]
    return {
        "photographs": len(answers),
        "bleu": round(score(answers), 4),
        "bleu_shuffled": round(float(np.mean(shuffled)), 4),
        "bleu_shuffled_highest": round(float(np.max(shuffled)), 4),
        "bleu_constant": round(constant_scores[best], 4),
        "constant": constants[best],
        "distinct": len(set(answers)),
        "examples": dict(zip([image.path for image in data.held_out[:10]], answers[:10], strict=True)),
    }
