# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches of what the encoder sees and of what is said of it, as all captioners are trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multisc.models.efficientnet_lite import EfficientNetLiteModel
from multisc.training.data import CaptionData, CaptionedImage
from multisc.training.looks import Looks, Viewing, look
from multisc.training.sentences import encode_captions

Sentences = list[list[NDArray[np.int64]]]  # of each photograph its sentences, as token ids


@dataclass(frozen=True)
class CaptionedViews:
    """Encoded views of photographs and their sentences.

    Args:
        looks: what the encoder sees.
        sentences: token ids of the photographs' sentences.
    """

    looks: Looks
    sentences: Sentences

    @property
    def usable(self) -> NDArray[np.intp]:
        """The photographs that have a sentence."""
        return np.flatnonzero([bool(rows) for rows in self.sentences])


@dataclass(frozen=True)
class Batch:
    """One step's views.

    Args:
        vectors: of the encoder, float32 (B, tokens, 1280), blurred.
        sentences: of each view.
        origin: which views these are: name of the group, photograph and number of the view.
    """

    vectors: Tensor
    sentences: Sentences
    origin: list[tuple[str, int, int]]


class CaptionedBatches:
    """Draws views of captioned photographs, and of photographs of which only the classes are known.

    Args:
        groups: "train" and "named".
        photographs: a step, the named ones too.
        named: how many of these have class names in place of sentences.
        blur: deviation of the noise on the encoder's vectors, over theirs, and share of the vectors that are blank.
        every: whether all sentences of a captioned photograph are given, or one of them.
    """

    def __init__(
        self, groups: dict[str, CaptionedViews], photographs: int, named: int, blur: float, every: bool
    ) -> None:
        self._groups = groups
        self._counts = {"train": photographs - named, "named": named}
        self._usable = {name: groups[name].usable for name in self._counts}
        self._blur, self._every = blur, every

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draw a batch; its blur is torch's."""
        origin, parts, sentences = [], [], []
        for name, count in self._counts.items():
            group, usable = self._groups[name], self._usable[name]
            rows = rng.choice(usable, count, replace=len(usable) < count)
            views = rng.integers(group.looks.vectors.shape[1], size=count)
            parts.append(group.looks.vectors[rows, views])
            origin += [(name, int(row), int(view)) for row, view in zip(rows, views, strict=True)]
            for row in rows:
                said = group.sentences[row]
                every = self._every and name == "train"
                sentences.append(said if every else [said[rng.integers(len(said))]])
        vectors = torch.from_numpy(np.concatenate(parts).astype(np.float32))
        vectors = vectors * (1.0 + self._blur * torch.randn_like(vectors))
        return Batch(vectors * (torch.rand(*vectors.shape[:2], 1) > self._blur), sentences, origin)


def groups_of(data: CaptionData) -> dict[str, tuple[CaptionedImage, ...]]:
    """Return the photographs by the names that their encoded views have."""
    return {"held_out": data.held_out, "train": data.train, "named": data.named}


def paths_of(images: Sequence[CaptionedImage]) -> list[str]:
    """Return the files of photographs, below the data directory."""
    return [image.path for image in images]


def look_at_all(
    tower: EfficientNetLiteModel,
    data: CaptionData,
    viewing: Viewing,
    work: Path,
    tokenizer: Any,
    start: Sequence[int],
    end: int,
) -> dict[str, CaptionedViews]:
    """Encode the views of all captioned photographs, or take what ``work`` keeps of them, and their sentences.

    Args:
        tower: the encoder.
        data: captions and photographs.
        viewing: which views.
        work: folder that keeps the vectors.
        tokenizer: for the sentences.
        start, end: of each sentence, as ``encode_captions`` takes them.
    """
    return {
        name: CaptionedViews(
            look(tower, data.root, paths_of(images), work / f"looks_{name}.npy", viewing.of_group(name)),
            [encode_captions(tokenizer, image.captions, start, end) for image in images],
        )
        for name, images in groups_of(data).items()
    }
