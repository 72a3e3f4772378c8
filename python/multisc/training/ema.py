"""The moving average of trained weights, which is better than the weights themselves."""

from __future__ import annotations

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class ExponentialMovingAverage(nn.Module, Generic[Model]):
    """A trained model and the moving average of its weights, kept together for resumable checkpoints.

    Args:
        online: the model that is trained.
    """

    online: Model
    average: Model

    def __init__(self, online: Model) -> None:
        super().__init__()
        self.online = online
        self.average = deepcopy(online).requires_grad_(False)

    def update(self, step: int, decay: float) -> None:
        """Move the average towards the trained weights by ``1 - decay``, and faster in the beginning."""
        decay = min(decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.online.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
