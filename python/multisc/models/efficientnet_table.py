# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of EfficientNet-Lite0 (Tan and Le, 2019): for the encoder in PyTorch and for the judge in NumPy.

A module of its own, because the judge works in the flowgraph process, which never imports torch.
"""

from __future__ import annotations

from typing import NamedTuple

SIDE = 224  # of the pictures it was trained on, in pixels
MEAN, DEVIATION = 127.0, 128.0  # of pixel values 0 to 255, for all three colours
EPSILON = 1e-3  # of the batch normalisation


class Stage(NamedTuple):
    """A row of blocks; the first block changes the channels and has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)
