"""Where a stage is trained: the device, and the precision and the attention that suit it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from multisc.errors import BadInputError


@dataclass(frozen=True)
class Device:
    """A device to train on.

    Weights and the optimiser's state are float32 everywhere; within ``autocast`` the matrix products run in bfloat16,
    which has the range of float32, so that no gradient needs scaling. What is drawn at random is drawn on the CPU and
    moved, so that another device changes a run by its rounding; the dropout inside BART alone is drawn on the device.

    Args:
        device: "cpu", "cuda" or "cuda:N".
    """

    device: str = "cpu"

    @property
    def attention(self) -> str:
        """The implementation of attention that is fast here, as transformers names it."""
        # Fused attention has a slow backward pass in bfloat16 on the CPU: whole steps of these small models take 1.7
        # to 2.7 times as long with it (torch 2.13, one thread).
        return "eager" if self.device == "cpu" else "sdpa"

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in bfloat16."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


CPU = Device()


def find_device(device: str) -> Device:
    """Return the place of that name.

    Raises:
        BadInputError: when there is no such device.
    """
    named = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", device)
    if named is None:
        raise BadInputError(f"--device {device}: must be cpu, cuda or cuda:N")
    if device != "cpu":
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(named[1] or 0) >= present:
            choice = ", ".join(["cpu", *(f"cuda:{index}" for index in range(present))])
            raise BadInputError(f"--device {device}: not on this computer, or not for its PyTorch; there is {choice}")
    return Device(device)
