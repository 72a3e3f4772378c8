"""One training loop for all stages of the text models: AdamW, warm-up and cosine decay, resumable, with a log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multisc.files import write_atomically
from multisc.training.device import CPU, Device


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage is trained.

    Args:
        steps: optimiser steps; 0 skips the stage.
        learning_rate: its peak, reached after ``warm_up`` steps and decayed to a hundredth by a cosine.
        warm_up: steps of linear increase.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of the gradient.
        save_every: steps between checkpoints and log lines.
        patience: measurements in a row that may pass without a new best one before the stage is stopped early; 0 for
            no early stopping.
    """

    steps: int
    learning_rate: float
    warm_up: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    save_every: int = 100
    patience: int = 0

    def factor(self, step: int) -> float:
        """The learning rate of a step as a fraction of its peak."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    work: Path,
    evaluate: Callable[[], dict[str, float]] | None = None,
    seed: int = 0,
    rate: Callable[[str], float] = lambda name: 1.0,
    best: str = "",
    place: Device = CPU,
) -> list[dict]:
    """Train a model; continue from ``work/name.pt`` when an earlier run left it there.

    A step's batch and randomness depend on the seed and the step alone, so a resumed run follows the same course, on
    another device too.

    Args:
        name: of the stage; names its files.
        model: what is trained, and moved to the place, where it stays; those parameters stay as they are that have
            ``requires_grad`` off.
        loss: from the step's number to its scalar loss, at the place.
        schedule: length and rates.
        work: directory for the checkpoint and ``name.json``, the log, to be read while it grows; the checkpoint is
            our own file, never an input from elsewhere.
        evaluate: measured at every ``save_every`` steps and after the last one, into the log.
        seed: of torch's generator.
        rate: from a parameter's name to the factor on its learning rate.
        best: which of the measured values tells how good the model is, the lower the better: the model is left as it
            was when that was lowest, and training stops as ``schedule.patience`` says. Empty for the last state.
        place: to train on.

    Returns:
        The log: a list of {"step", "loss", "seconds", ...}.
    """
    model.to(place.device)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for key, parameter in trained.items():
        decay = schedule.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate(key), decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][1], item[0][0]))
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for (_, decay), parameters in ordered], betas=(0.9, 0.98)
    )
    peaks = [factor * schedule.learning_rate for (factor, _), _ in ordered]
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, best_file, log_file = (work / f"{name}{end}" for end in (".pt", ".best.pt", ".json"))
    log: list[dict] = [{"stage": name, "seed": seed, "device": place.device, **asdict(schedule)}]
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first, log = saved["step"], log + saved["log"]
    model.train()
    measured = [row[best] for row in log[1:]] if best else []
    running, since, seconds = 0.0, 0, log[-1].get("seconds", 0.0)
    start = time.monotonic()
    for step in range(first, schedule.steps):
        if schedule.patience and measured and len(measured) - 1 - int(np.argmin(measured)) >= schedule.patience:
            break
        torch.manual_seed(seed * 1_000_003 + step)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step)
        optimiser.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(trained.values(), schedule.clip)
        optimiser.step()
        running, since = running + float(value.detach()), since + 1
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            row = {"step": step + 1, "loss": round(running / since, 4)}
            if evaluate is not None:
                model.eval()
                with torch.inference_mode():
                    row |= {key: round(float(number), 4) for key, number in evaluate().items()}
                model.train()
            row["seconds"] = round(seconds + time.monotonic() - start, 1)
            log.append(row)
            print(f"{name}: {row}", flush=True)
            running, since = 0.0, 0
            if best:
                measured.append(row[best])
                if int(np.argmin(measured)) == len(measured) - 1:
                    _save(model.state_dict(), best_file)
            # The log that a resumed run goes on with is part of the checkpoint, so that a kill never parts them.
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            _save(state | {"log": log[1:]}, checkpoint)
            write_atomically(log_file, json.dumps(log, indent=0).encode())
    write_atomically(log_file, json.dumps(log, indent=0).encode())
    if best and best_file.exists():
        model.load_state_dict(torch.load(best_file, map_location="cpu", weights_only=True))
    model.eval()
    return log


def _save(state: dict, path: Path) -> None:
    torch.save(_on_cpu(state), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _on_cpu(state: Any) -> Any:
    """The tensors in nested dictionaries and lists on the CPU, from where any device can go on."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_on_cpu(value) for value in state]
    return state.cpu() if isinstance(state, Tensor) else state
