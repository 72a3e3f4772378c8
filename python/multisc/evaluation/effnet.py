"""What EfficientNet-Lite0 sees in a picture, in NumPy: the ground of the ``effnet_cosine`` metric.

NumPy, because pictures are measured in the flowgraph process, which never imports torch. The weights are the vision
encoder of the embedded models, which is the published one, unchanged; no decoder of this project is trained with it
as a loss.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.errors import ModelError
from multisc.files import printable
from multisc.models.efficientnet_table import DEVIATION, EPSILON, MEAN, SIDE, STAGES

Array = NDArray[np.float32]

WEIGHTS = Path(__file__).parents[1] / "models" / "embedded" / "vision-encoder" / "model.safetensors"
COMMON = Path(__file__).parent / "effnet_common.npz"


@dataclass(frozen=True)
class EfficientNet:
    """The network without its classifier.

    Args:
        layers: weight and bias of each convolution by its name, batch normalisation included.
    """

    layers: dict[str, tuple[Array, Array]]

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> EfficientNet:
        """Load the weights from a safetensors file.

        Raises:
            ModelError: when the file is missing, damaged, or holds another network.
        """
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load
        except ImportError as error:
            raise ModelError("effnet_cosine needs the package safetensors: pip install safetensors") from error
        name = printable(path)
        try:
            tensors = {key: tensor.astype(np.float32) for key, tensor in load(path.read_bytes()).items()}
        except OSError as error:
            raise ModelError(f"{name}: cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ModelError(f"{name}: not a safetensors file: {error}") from error
        layers = {}
        try:
            for layer in _names():
                prefix, _, index = layer.rpartition(".")
                norm = f"{prefix}.{int(index) + 1}"
                scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + EPSILON)
                weight = tensors[f"{layer}.weight"] * scale[:, None, None, None]
                layers[layer] = weight, tensors[f"{norm}.bias"] - scale * tensors[f"{norm}.running_mean"]
        except (KeyError, ValueError) as error:
            raise ModelError(f"{name}: not EfficientNet-Lite0: {error}") from error
        return cls(layers)

    def features(self, picture: NDArray[np.uint8]) -> Array:
        """The mean of the last feature map of a picture squeezed to 224x224.

        Args:
            picture: uint8 (H, W, 3).

        Returns:
            float32 (1280,), not negative.
        """
        small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        x = (np.asarray(small, np.float32).transpose(2, 0, 1) - MEAN) / DEVIATION
        x = self._convolve(x, "stem.0", 2)
        for stage, row in enumerate(STAGES):
            widens = row.expansion > 1
            for block in range(row.blocks):
                body = f"stages.{stage}.{block}.body"
                inner = self._point(x, f"{body}.0", True) if widens else x
                inner = self._depthwise(inner, f"{body}.{3 if widens else 0}", row.stride if block == 0 else 1)
                made = self._point(inner, f"{body}.{6 if widens else 3}", False)
                x = x + made if block else made  # each stage's first block changes the channels
        return self._point(x, "head.0", True).mean((1, 2))

    def _point(self, x: Array, layer: str, activate: bool) -> Array:
        weight, bias = self.layers[layer]
        made = (weight[:, :, 0, 0] @ x.reshape(len(x), -1)).reshape(-1, *x.shape[1:]) + bias[:, None, None]
        return np.clip(made, 0.0, 6.0) if activate else made

    def _convolve(self, x: Array, layer: str, stride: int) -> Array:
        weight, bias = self.layers[layer]
        total = np.zeros((1, 1, 1), np.float32)
        for row, column, part in _shifted(x, weight.shape[2], stride):
            total = total + np.tensordot(weight[:, :, row, column], part, 1)
        return np.clip(total + bias[:, None, None], 0.0, 6.0)

    def _depthwise(self, x: Array, layer: str, stride: int) -> Array:
        weight, bias = self.layers[layer]
        total = np.broadcast_to(bias[:, None, None], (len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride)))
        total = total.copy()
        for row, column, part in _shifted(x, weight.shape[2], stride):
            total += weight[:, 0, row, column, None, None] * part
        return np.clip(total, 0.0, 6.0)


def _names() -> list[str]:
    """The convolutions by their names in the encoder's state dictionary; each is followed by its normalisation."""
    names = ["stem.0", "head.0"]
    for stage, row in enumerate(STAGES):
        for block in range(row.blocks):
            names += [
                f"stages.{stage}.{block}.body.{index}" for index in ((0, 3, 6) if row.expansion > 1 else (0, 3))
            ]
    return names


def _shifted(x: Array, kernel: int, stride: int) -> list[tuple[int, int, Array]]:
    """What each tap of a kernel meets, padded as TensorFlow's SAME: row, column, values."""
    pads = []
    for side in x.shape[1:]:
        missing = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        pads.append((missing // 2, missing - missing // 2))
    wide = np.pad(x, ((0, 0), *pads))
    rows, columns = (-(-side // stride) for side in x.shape[1:])
    return [
        (r, c, wide[:, r : r + stride * (rows - 1) + 1 : stride, c : c + stride * (columns - 1) + 1 : stride])
        for r in range(kernel)
        for c in range(kernel)
    ]


@functools.cache
def _network() -> tuple[EfficientNet, Array]:
    with np.load(COMMON) as kept:
        return EfficientNet.load(), kept["mean"].astype(np.float32)


def vector(picture: NDArray[np.uint8]) -> Array:
    """The picture's features less what photographs have in common, of unit length: float32 (1280,).

    Raises:
        ModelError: when the weights cannot be loaded.
    """
    network, common = _network()
    features = network.features(picture) - common
    return features / max(1e-9, float(np.linalg.norm(features)))


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The cosine of two pictures' vectors: 1 for equal pictures, about 0 for unrelated ones.

    Raises:
        ModelError: when the weights cannot be loaded.
    """
    return float(np.clip(vector(first) @ vector(second), -1.0, 1.0))
