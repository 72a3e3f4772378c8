"""Loading of checkpoints: from a directory or the hub, safetensors only, with one clear line for what is wrong."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multisc.errors import ModelError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

    Args:
        name: a directory, or "owner/name" on the hub.
        revision: branch, tag or commit of the hub's repository; None for its main branch and for a directory.
        local: whether it is a directory.
    """

    name: str
    revision: str | None
    local: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of every ``from_pretrained``: no code from the hub, no network for a directory."""
        return {"revision": self.revision or "main", "local_files_only": self.local, "trust_remote_code": False}


def find(source: str | Path) -> Source:
    """Tell a directory from a name on the hub.

    Args:
        source: a directory, or "owner/name" or "owner/name@revision" on the hub.

    Raises:
        ModelError: when it is neither an existing directory nor shaped like a name on the hub.
    """
    if Path(source).is_dir():
        return Source(str(source), None, local=True)
    match = _HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if match is None:
        raise ModelError(
            f"model {source}: no such directory; name a checkpoint's directory, or owner/name on the hub"
        )
    return Source(match[1], match[2], local=False)


def check_directory(directory: Path, needed: tuple[str, ...]) -> None:
    """Check that a checkpoint's directory is complete and holds safetensors, before any library reads it.

    Args:
        directory: to look into.
        needed: files that must be there besides the weights.

    Raises:
        ModelError: naming the first file at fault.
    """
    for name in needed:
        if not (directory / name).is_file():
            raise ModelError(f"model directory {directory}: {name} is missing; copy the whole checkpoint there")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"model file {index} is not an index of shards; copy it again") from None
        missing = [name for name in shards if not (directory / str(name)).is_file()]
        if missing:
            raise ModelError(f"model directory {directory}: {missing[0]} is missing; copy the whole checkpoint there")
    elif not any(directory.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        if pickles:
            raise ModelError(
                f"model directory {directory}: {pickles[0]} is a pickle, which can run code and is refused; "
                "convert it to safetensors"
            )
        raise ModelError(
            f"model directory {directory}: model.safetensors is missing; copy the whole checkpoint there"
        )


@contextlib.contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turn what the libraries raise while they load ``source`` into one line that says what to do.

    Raises:
        ModelError: for a failure of reading, parsing, the network or the shape of a weight.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # The libraries raise OSError, ValueError, RuntimeError, KeyError and classes of their own for a bad file.
        # What went wrong is theirs to say, what to do is ours; the cause stays attached.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
        if source.local:
            raise ModelError(
                f"model directory {source.name}: {reason}; copy the whole checkpoint there again"
            ) from error
        raise ModelError(
            f"model {source.name}: the hub did not give it ({reason}); check the network, or name a directory"
        ) from error


def load_weights(model_class: Any, source: Source, device: str, needed: tuple[str, ...] = ("config.json",)) -> Any:
    """Load a transformers model for inference.

    Args:
        model_class: with ``from_pretrained``.
        source: where it is.
        device: "cpu", "cuda", "cuda:1", ...; half precision on CUDA, single on the CPU.
        needed: files that a directory must hold besides the weights.

    Returns:
        The model in evaluation mode on the device.

    Raises:
        ModelError: when the checkpoint is missing, incomplete, of another shape, a pickle, or does not
            fit the device.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if source.local:
        check_directory(Path(source.name), needed)
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    with explained(source):
        model, info = model_class.from_pretrained(
            source.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.arguments
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"model {source.name}: lacks the weight {missing[0]} ({len(missing)} in all); copy the right checkpoint"
        )
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError:
        raise ModelError(
            f"model {source.name}: too large for the memory of {device}; use --models embedded"
        ) from None
