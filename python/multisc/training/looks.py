# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pretrained encoder sees in views of the training photographs, computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
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


@dataclass(frozen=True)
class Viewing:
    """Which views of the photographs are encoded.

    Args:
        views: of each photograph, at least 1: the whole, its mirror image, and parts.
        smallest: part of a photograph's area that a view has at least; a quarter, as blocks are.
        seed: of the parts.
    """

    views: int = 6
    smallest: float = 0.25
    seed: int = 1

    def of_group(self, name: str) -> Viewing:
        """Return the viewing of a group of photographs; of held-out ones the whole alone is seen."""
        return replace(self, views=1) if name == "held_out" else self

    def parts(
        self, root: Path, path: str, index: int, longest: int, side: int, mode: str = "bicubic"
    ) -> list[Tensor]:
        """Cut a photograph's views.

        Args:
            root: the data directory.
            path: of the photograph, below it.
            index: of the photograph, which its parts depend on.
            longest: side in pixels that the photograph is reduced to before.
            side: of the square views, in pixels.
            mode: of the reduction, see ``View.cut``.

        Returns:
            float32 (3, side, side), 0 to 1, of each view.
        """
        rng = np.random.default_rng([self.seed, index])
        drawn = (random_view(rng, self.smallest) for _ in range(self.views - 2))
        image = torch.from_numpy(np.ascontiguousarray(load_pixels(root, path, longest).transpose(2, 0, 1)))
        views = [WHOLE, _MIRRORED, *drawn][: self.views]
        return [view.light(view.cut(image, side, mode).clamp(0, 255) / 255.0) for view in views]


def look(tower: EfficientNetLiteModel, root: Path, paths: Sequence[str], file: Path, viewing: Viewing) -> Looks:
    """Encode views of photographs; goes on where an interrupted run stopped.

    Args:
        tower: the encoder.
        root: the data directory.
        paths: of the photographs, below it.
        file: .npy file that keeps the vectors; a file beside it tells how far they have come, and of what.
        viewing: which views.
    """
    config = tower.config
    shape = (len(paths), viewing.views, config.tokens, config.hidden_size)
    state_file = file.with_suffix(".json")
    state: dict[str, Any] = {"paths": list(paths), "grid": config.grid, **asdict(viewing), "done": 0}
    if state_file.exists() and file.exists():
        kept = json.loads(state_file.read_text())
        if {**kept, "done": 0} == state:
            state = kept
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = "r+" if state["done"] else "w+"
    vectors = np.lib.format.open_memmap(file, mode, np.float16, shape)
    tower = tower.eval().to(memory_format=torch.channels_last)
    step = max(1, BATCH // viewing.views)
    for start in tqdm(range(state["done"], len(paths), step), desc=file.stem, mininterval=10):
        chunk = range(start, min(start + step, len(paths)))
        parts = [part for i in chunk for part in viewing.parts(root, paths[i], i, 448, config.image_size)]
        batch = ((torch.stack(parts) - MEAN) / DEVIATION).contiguous(memory_format=torch.channels_last)
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


def thumbnails(root: Path, paths: Sequence[str], file: Path, viewing: Viewing, side: int) -> NDArray[np.uint8]:
    """Return thumbnails of the same views that ``look`` encodes, kept in ``file``.

    Returns:
        uint8 (photographs, views, side, side, 3).
    """
    shape = (len(paths), viewing.views, side, side, 3)
    if file.exists():
        kept = np.load(file)
        if kept.shape == shape:
            return kept
    small = np.empty(shape, np.uint8)
    for index, path in enumerate(tqdm(paths, desc=file.stem, mininterval=10)):
        for number, part in enumerate(viewing.parts(root, path, index, 128, side, "area")):
            small[index, number] = (part * 255).round().byte().permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, small)
    return small
