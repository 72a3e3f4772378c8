# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pretrained encoder sees in views of the training photographs, computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from multisc.models.efficientnet_lite import DEVIATION, MEAN, EfficientNetLiteModel
from multisc.training.data import load_pixels
from multisc.training.views import WHOLE, View, random_view

BATCH = 32
_MIRRORED = View(0.0, 0.0, 1.0, 1.0, True, (1.0, 1.0, 1.0), 0.0)


@dataclass(frozen=True)
class Looks:
    """Vectors of the encoder for several views of each photograph.

    Args:
        vectors: float16 of shape (photographs, views, tokens, 1280); the first view is the whole photograph.
    """

    vectors: NDArray[np.float16]

    def whole(self, rows: NDArray[np.integer]) -> torch.Tensor:
        """Return the view of the whole of each photograph: float32 (len(rows), tokens, 1280)."""
        return torch.from_numpy(self.vectors[rows, 0].astype(np.float32))


def views_of(index: int, count: int, seed: int, smallest: float) -> list[View]:
    """Return views of photograph ``index``: the whole, its mirror image, then parts of at least ``smallest``."""
    rng = np.random.default_rng([seed, index])
    return [WHOLE, _MIRRORED, *(random_view(rng, smallest) for _ in range(count - 2))][:count]


def look(
    tower: EfficientNetLiteModel, root: Path, paths: Sequence[str], file: Path, views: int, seed: int, smallest: float
) -> Looks:
    """Encode views of photographs; goes on where an interrupted run stopped.

    Args:
        tower: the encoder.
        root: the data directory.
        paths: of the photographs, below it.
        file: .npy file that keeps the vectors; a file beside it tells how far they have come, and of what.
        views: of each photograph, at least 1.
        seed: of the views.
        smallest: part of the photograph's area that a view has at least.
    """
    config = tower.config
    shape = (len(paths), views, config.tokens, config.hidden_size)
    state_file = file.with_suffix(".json")
    state = {"paths": list(paths), "views": views, "seed": seed, "smallest": smallest, "done": 0}
    if state_file.exists() and file.exists():
        kept = json.loads(state_file.read_text())
        if {**kept, "done": 0} == state:
            state = kept
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = "r+" if state["done"] else "w+"
    vectors = np.lib.format.open_memmap(file, mode, np.float16, shape)
    tower = tower.eval().to(memory_format=torch.channels_last)
    step = max(1, BATCH // views)
    for start in tqdm(range(state["done"], len(paths), step), desc=file.stem, mininterval=10):
        chunk = range(start, min(start + step, len(paths)))
        pictures = []
        for index in chunk:
            image = torch.from_numpy(np.ascontiguousarray(load_pixels(root, paths[index], 448).transpose(2, 0, 1)))
            for view in views_of(index, views, seed, smallest):
                part = view.cut(image, config.image_size).clamp(0, 255) / 255.0
                pictures.append((view.light(part) - MEAN) / DEVIATION)
        batch = torch.stack(pictures).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16):
                features = tower.encoder.features(batch)
            found = tower.tokens(features.float())
        vectors[start : chunk.stop] = found.numpy().reshape(len(chunk), *shape[1:])
        if start // step % 25 == 24:
            vectors.flush()
            state["done"] = chunk.stop
            state_file.write_text(json.dumps(state))
    vectors.flush()
    state["done"] = len(paths)
    state_file.write_text(json.dumps(state))
    return Looks(vectors)


def thumbnails(
    root: Path, paths: Sequence[str], file: Path, views: int, seed: int, smallest: float, side: int
) -> NDArray[np.uint8]:
    """Return thumbnails of the same views that ``look`` encodes, kept in ``file``.

    Returns:
        uint8 (photographs, views, side, side, 3).
    """
    shape = (len(paths), views, side, side, 3)
    if file.exists():
        kept = np.load(file)
        if kept.shape == shape:
            return kept
    small = np.empty(shape, np.uint8)
    for index, path in enumerate(tqdm(paths, desc=file.stem, mininterval=10)):
        image = torch.from_numpy(np.ascontiguousarray(load_pixels(root, path, 128).transpose(2, 0, 1)))
        for number, view in enumerate(views_of(index, views, seed, smallest)):
            part = view.light(view.cut(image, side, "area") / 255.0)
            small[index, number] = (part * 255).round().byte().permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, small)
    return small
