"""Loading of checkpoints: from a directory or the hub, safetensors only, with one clear line for what is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from multisc.errors import ModelError, reason_of
from multisc.models import hub
from multisc.models.profile import precision

MAX_HEADER = 100 << 20  # of a safetensors file, as the format bounds it
MEMORY_REMEDY = "end other programs on it, serve with --workers 1, or use --models embedded"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

    Args:
        name: its directory.
        hub: "owner/name" when that directory is in the hub's cache; empty for one of the user's.
    """

    name: str
    hub: str = ""

    @property
    def local(self) -> bool:
        """Whether it is a directory of the user's."""
        return not self.hub

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of every ``from_pretrained``: no network, and no code from the checkpoint."""
        return {"local_files_only": True, "trust_remote_code": False}

    @property
    def remedy(self) -> str:
        """What to do when it is damaged."""
        if self.hub:
            return "check it with `multisc models verify` and fetch it again"
        return "copy the whole checkpoint there again"


def find(source: str | Path) -> Source:
    """Find a checkpoint's directory; one that is on the hub and not here yet is fetched.

    Args:
        source: a directory, or "owner/name" or "owner/name@revision" on the hub.

    Raises:
        ModelError: when it is neither an existing directory nor shaped like a name on the hub, or the hub does not
            give it.
    """
    if Path(source).is_dir():
        return Source(str(source))
    match = _HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if match is None:
        raise ModelError(
            f"model {source}: no such directory; name a checkpoint's directory, or owner/name on the hub"
        )
    return Source(str(hub.locate(match[1], match[2] or "main")), match[1])


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
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
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
        whose = source.hub or f"directory {source.name}"
        raise ModelError(f"model {whose}: {reason_of(error)}; {source.remedy}") from error


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
    from transformers.utils import logging

    from multisc.models.shared_encoder import attach, shared_towers

    logging.disable_progress_bar()
    directory = Path(source.name)
    check_directory(directory, needed)
    check_memory(directory, device)
    with explained(source), enough_memory(source.name, device):
        model, info = model_class.from_pretrained(
            source.name, dtype=precision(device), use_safetensors=True, output_loading_info=True, **source.arguments
        )
    elsewhere = tuple(f"{name}.encoder." for name in shared_towers(model))
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(elsewhere))
    if missing:
        raise ModelError(
            f"model {source.name}: lacks the weight {missing[0]} ({len(missing)} in all); copy the right checkpoint"
        )
    with enough_memory(source.name, device):
        attach(model, directory, device, precision(device))
        return model.to(device).eval()


def check_pictures(processor: Any, side: int, source: Source) -> None:
    """Check that an image processor makes pictures of the size that the model takes.

    Args:
        processor: of the same checkpoint.
        side: of the square pictures that the model takes, in pixels.
        source: where both are.

    Raises:
        ModelError: when it does not.
    """
    with explained(source):
        pixels = processor([Image.new("RGB", (2, 1))], return_tensors="pt").pixel_values
    if tuple(pixels.shape[1:]) != (3, side, side):
        raise ModelError(f"model {source.name}: its image processor is another model's; {source.remedy}")


def check_words(fits: bool, source: Source) -> None:
    """Refuse a checkpoint whose tokenizer has words that its model has no row for.

    Args:
        fits: whether every token has one.
        source: where both are.

    Raises:
        ModelError: when it does not fit.
    """
    if not fits:
        raise ModelError(f"model {source.name}: its tokenizer is another model's; {source.remedy}")


def check_memory(directory: Path, device: str) -> None:
    """Check that the weights of a checkpoint fit the device's free memory, before it is filled.

    Args:
        directory: with safetensors in it or below it.
        device: "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelError: when they do not.
    """
    import torch

    width = precision(device).itemsize
    needed = sum(_weights(file, width) for file in directory.rglob("*.safetensors"))
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory()
    if needed > free:
        raise ModelError(
            f"model {directory}: its weights take {needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free; "
            f"{MEMORY_REMEDY}"
        )


def free_memory() -> int:
    """Return the bytes of main memory that programs can have without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: no such file, and no check
    return sys.maxsize


def _weights(file: Path, width: int) -> int:
    """The bytes that a file's numbers take at ``width`` bytes each; 0 for one that is damaged: loading tells."""
    try:
        return read_header(file)[0] * width
    except ValueError:
        return 0


def read_header(file: Path) -> tuple[int, int]:
    """Read what a safetensors file says of its tensors, without reading them.

    Returns:
        how many numbers they have, and how many bytes the file must have.

    Raises:
        ValueError: when there is no such header in it.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError("is no safetensors file")
        try:
            header = json.loads(opened.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            numbers = sum(math.prod(tensor["shape"]) for tensor in tensors)
            end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError("has a damaged header") from error
    return numbers, 8 + length + end


@contextlib.contextmanager
def enough_memory(name: str, device: str) -> Iterator[None]:
    """Turn an allocation that fails into one line that says what to do.

    Raises:
        ModelError: when the device's memory is short.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise ModelError(f"model {name}: the memory of {device} is short; {MEMORY_REMEDY}") from None
