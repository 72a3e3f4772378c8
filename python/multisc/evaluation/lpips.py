"""LPIPS v0.1 on AlexNet (Zhang et al. 2018) in NumPy, from a safetensors file of its published weights.

NumPy, because pictures are measured in the flowgraph process, which never imports torch. The weights are not part of
this project: docs/reference/metrics.md shows the one command that writes the file from the ``lpips`` package.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from multisc.errors import ModelError
from multisc.files import printable

Array = NDArray[np.float32]

WEIGHTS_VARIABLE = "MULTISC_LPIPS"
MIN_SIDE = 31  # below, the second pooling has nothing to look at
MAX_FILE_BYTES = 64 * 1024 * 1024

# AlexNet's five convolutions: name in the state dictionary of lpips.LPIPS(net="alex"), kernel, stride, padding,
# and whether a 3x3 maximum with stride 2 comes before.
_LAYERS = (
    ("net.slice1.0", 11, 4, 2, False),
    ("net.slice2.3", 5, 1, 2, True),
    ("net.slice3.6", 3, 1, 1, True),
    ("net.slice4.8", 3, 1, 1, False),
    ("net.slice5.10", 3, 1, 1, False),
)


@dataclass(frozen=True)
class Lpips:
    """The network and its calibration.

    Args:
        kernels: of each convolution, float32 of shape (out, in, k, k).
        biases: of each convolution, float32 of shape (out,).
        weights: of each layer's channels in the distance, float32 of shape (out,), not negative.
        shift: subtracted from the colours in [-1, 1], float32 of shape (3,).
        scale: by which they are then divided, float32 of shape (3,).
    """

    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]
    weights: tuple[Array, ...]
    shift: Array
    scale: Array

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Lpips:
        """Load the weights from a safetensors file.

        Raises:
            ModelError: when the file is missing, too large, damaged, or holds other tensors than LPIPS has.
        """
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load
        except ImportError as error:
            raise ModelError("LPIPS needs the package safetensors: pip install safetensors") from error

        name = printable(path)
        try:
            size = Path(path).stat().st_size
            if size > MAX_FILE_BYTES:
                raise ModelError(f"{name}: {size:,} bytes, LPIPS weights have at most {MAX_FILE_BYTES:,}")
            tensors = load(Path(path).read_bytes())
        except OSError as error:
            raise ModelError(f"{name}: cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ModelError(f"{name}: not a safetensors file: {error}") from error

        def take(key: str, shape: tuple[int | None, ...]) -> Array:
            tensor = tensors.get(key)
            if tensor is None:
                raise ModelError(f"{name}: no tensor {key}")
            fits = tensor.ndim == len(shape) and all(w in (None, n) for n, w in zip(tensor.shape, shape, strict=True))
            if not fits or not np.isfinite(tensor).all():
                raise ModelError(f"{name}: tensor {key} has shape {tensor.shape}, or is not finite")
            return tensor.astype(np.float32)

        kernels, biases, weights = [], [], []
        channels = 3
        for index, (layer, side, _, _, _) in enumerate(_LAYERS):
            kernels.append(take(f"{layer}.weight", (None, channels, side, side)))
            channels = kernels[-1].shape[0]
            biases.append(take(f"{layer}.bias", (channels,)))
            weights.append(take(f"lin{index}.model.1.weight", (1, channels, 1, 1)).reshape(channels))
        shift, scale = (take(f"scaling_layer.{key}", (1, 3, 1, 1)).reshape(3) for key in ("shift", "scale"))
        return cls(tuple(kernels), tuple(biases), tuple(weights), shift, scale)

    def distance(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
        """The distance between two pictures, uint8 of one shape (H, W, 3) with sides of at least ``MIN_SIDE``.

        Returns:
            0 for equal pictures, about 1 for unrelated ones; not negative with the published weights.
        """
        total = 0.0
        for one, other, weight in zip(self._features(first), self._features(second), self.weights, strict=True):
            total += float(np.mean((_unit(one) - _unit(other)) ** 2 @ weight, dtype=np.float64))
        return total

    def _features(self, image: NDArray[np.uint8]) -> list[Array]:
        """The output of each rectified convolution, float32 of shape (height, width, channels)."""
        current = (image.astype(np.float32) / 127.5 - 1.0 - self.shift) / self.scale
        outputs = []
        for (_, side, stride, padding, pooled), kernel, bias in zip(_LAYERS, self.kernels, self.biases, strict=True):
            if pooled:
                current = _windows(current, 3)[::2, ::2].max(axis=(3, 4))
            padded = np.pad(current, ((padding, padding), (padding, padding), (0, 0)))
            windows = _windows(padded, side)[::stride, ::stride]
            height, width = windows.shape[:2]
            products = windows.reshape(height * width, -1) @ kernel.reshape(kernel.shape[0], -1).T
            current = np.maximum(products + bias, 0.0).reshape(height, width, -1)
            outputs.append(current)
        return outputs


def _windows(x: Array, side: int) -> Array:
    """All windows of a (height, width, channels) array, shape (rows, columns, channels, side, side), not copied."""
    return sliding_window_view(x, (side, side), axis=(0, 1))  # type: ignore[call-overload]


def _unit(features: Array) -> Array:
    """Each position's channels divided by their length."""
    return features / (np.sqrt(np.sum(features**2, axis=2, keepdims=True)) + 1e-10)
