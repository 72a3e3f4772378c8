"""Pre-training of LLaVA's vision tower: it learns the features of a DeepLab v3 (MobileNet v2), patch by patch.

A thousand captioned photographs are too few to learn seeing from; the teacher has seen ImageNet and COCO. Its
features are stored once per photograph, then crops and mirror images of both are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from multisc.training.data import load_pixels
from multisc.training.device import CPU, Device
from multisc.training.loop import Schedule, fit
from multisc.training.teacher import GRID, TEACHER_FILE, TEACHER_SIDE, Teacher
from multisc.training.views import pixel_values, random_view

BACKBONE, LOGITS = "MobilenetV2/expanded_conv_16/project/add_fold", "logits/semantic/BiasAdd"
CHANNELS = 320 + 21
COMPONENTS = 48


def teacher_features(root: Path, paths: list[str], store: Path) -> NDArray[np.uint8]:
    """Return the teacher's backbone features and class logits of photographs, computing those not yet stored.

    Args:
        root: the data directory.
        paths: of the photographs, relative to ``root``.
        store: an .npy file that holds, or will hold, the result; row i belongs to ``paths[i]``.

    Returns:
        uint8 memory map of shape (len(paths), 33, 33, 341), in the teacher's own quantisation.

    Raises:
        BadInputError: when the teacher or its runtime is missing.
    """
    shape = (len(paths), GRID, GRID, CHANNELS)
    if store.exists():
        found = np.load(store, mmap_mode="r")
        if found.shape == shape:
            return found
    teacher = Teacher(root / TEACHER_FILE, (BACKBONE, LOGITS))
    store.parent.mkdir(parents=True, exist_ok=True)
    partial = store.with_suffix(".partial.npy")
    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for row, path in enumerate(paths):
        pixels = Image.fromarray(load_pixels(root, path)).resize(
            (TEACHER_SIDE, TEACHER_SIDE), Image.Resampling.BILINEAR
        )
        features[row] = teacher.look(np.asarray(pixels))
        if row % 200 == 0:
            print(f"teacher: {row} of {len(paths)} photographs", flush=True)
    features.flush()
    partial.replace(store)
    return np.load(store, mmap_mode="r")


def principal_features(features: NDArray[np.uint8], components: int = COMPONENTS) -> NDArray[np.float16]:
    """Reduce the teacher's features to what a small pupil can learn: the strongest components of their local means.

    Single cells are noisy; means over 3x3 cells keep what is where. Every channel counts alike, but the 21 logits
    together as much as the whole backbone.

    Args:
        features: as ``teacher_features`` gives them, (N, 33, 33, 341).
        components: to keep.

    Returns:
        float16 of shape (N, components, 33, 33); each component has mean 0, the strongest one variance 1.
    """
    sample = np.asarray(features[:: max(1, len(features) // 600)], np.float32)
    mean, std = sample.mean(axis=(0, 1, 2)), sample.std(axis=(0, 1, 2)) + 1e-3
    weight = np.concatenate([np.ones(320), np.full(21, np.sqrt(320 / 21))]) / std
    local = ((sample - mean) * weight).reshape(-1, GRID // 3, 3, GRID // 3, 3, CHANNELS).mean(axis=(2, 4))
    values, vectors = np.linalg.eigh(np.cov(local.reshape(-1, CHANNELS).T))
    basis = (vectors[:, ::-1][:, :components] * weight[:, None] / np.sqrt(values[-1])).astype(np.float32)
    reduced = np.empty((len(features), components, GRID, GRID), np.float16)
    for row in range(len(features)):
        reduced[row] = ((np.asarray(features[row], np.float32) - mean) @ basis).transpose(2, 0, 1)
    return reduced


class Distillation(nn.Module):
    """A CLIP vision tower with linear maps to the teacher's features: patch by patch, and of the whole view.

    Args:
        tower: CLIP vision model that is taught.
        components: of the teacher's features.
    """

    def __init__(self, tower: Any, components: int) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(tower.config.hidden_size)
        self.patches = nn.Linear(tower.config.hidden_size, components)
        self.whole = nn.Linear(tower.config.hidden_size, components)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, components, grid, grid) and (N, components) of pixels (N, 3, H, W)."""
        tokens = self.norm(self.tower(pixels).last_hidden_state[:, 1:])
        grid = round(tokens.shape[1] ** 0.5)
        return self.patches(tokens).transpose(1, 2).unflatten(2, (grid, grid)), self.whole(tokens.mean(dim=1))


def distil(
    tower: Any,
    images: list[NDArray[np.uint8]],
    features: NDArray[np.float16],
    test: NDArray[np.bool_],
    schedule: Schedule,
    batch: int,
    work: Path,
    seed: int,
    place: Device = CPU,
) -> list[dict]:
    """Teach a vision tower; see ``fit`` for what it returns and leaves in ``work``.

    Args:
        tower: CLIP vision model, trained in place.
        images: uint8 (H, W, 3).
        features: of the teacher, one row an image, as ``principal_features`` gives them.
        test: the images that are only measured on.
        schedule: length and rates.
        batch: images a step.
        work: directory for checkpoint and log.
        seed: of views and batches.
        place: to train on.
    """
    size, grid = tower.config.image_size, tower.config.image_size // tower.config.patch_size
    # What the view holds, each component alike; what is where, strong components first.
    means = features[:, :, ::4, ::4].astype(np.float32).mean(axis=(2, 3))
    spread = torch.from_numpy(means.std(axis=0)).to(place.device)
    model = Distillation(tower, features.shape[1])
    train_rows, test_rows = np.flatnonzero(~test), np.flatnonzero(test)

    def batch_of(rows: NDArray[np.intp], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        views = [random_view(rng, 0.12) for _ in rows]
        maps = [
            view.cut(torch.from_numpy(features[row]), grid, "area") for row, view in zip(rows, views, strict=True)
        ]
        pixels = pixel_values([images[row] for row in rows], views, size)
        return pixels.to(place.device), torch.stack(maps).to(place.device)

    def errors(pixels: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors relative to always answering the mean."""
        patches, whole = model(pixels)
        mean = maps.mean(dim=(2, 3))
        return (
            functional.mse_loss(patches.float(), maps) / maps.square().mean(),
            functional.mse_loss(whole.float(), mean / spread) / (mean / spread).square().mean(),
        )

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        pixels, maps = batch_of(rng.choice(train_rows, batch, replace=False), rng)
        with place.autocast():
            patches, whole = errors(pixels, maps)
            return patches + whole

    fixed = batch_of(test_rows, np.random.default_rng(seed))

    def evaluate() -> dict[str, float]:
        patches, whole = errors(*fixed)
        return {"explained_patches": 1.0 - float(patches), "explained_whole": 1.0 - float(whole)}

    return fit("tower", model, loss, schedule, work, evaluate, seed, place=place)
