"""Fetching of checkpoints: from the hub into its cache or a directory, resumed, and pickles as tensors only.

The models are always loaded from a directory; the network is touched here only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from multisc.errors import ModelError, reason_of
from multisc.models.profile import CATALOGUE, TEXT_FILES, WEIGHTS, Checkpoint, Pickle

CHUNK = 1 << 20
STALL_S = 20.0  # without a byte, before a download that is not the hub's library's is given up
DEFAULT_FILES = (*TEXT_FILES, "*.safetensors")
Report = Callable[[int, int], None]
_listeners: list[Callable[[str], None]] = []


def tell(listener: Callable[[str], None]) -> None:
    """Have a line about each percent of a download from the hub told, in place of progress bars."""
    _listeners[:] = [listener]


def files_of(repository: str) -> tuple[str, ...]:
    """Return the patterns of the files to fetch from a repository."""
    for checkpoints in CATALOGUE.values():
        for checkpoint in checkpoints.values():
            if checkpoint.repository == repository:
                return checkpoint.files
    return DEFAULT_FILES


def cached(repository: str, revision: str, files: tuple[str, ...]) -> Path | None:
    """Return the directory of a repository in the hub's cache, or None when it is not there completely.

    Works without a network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(files), local_files_only=True)
        )
    except LocalEntryNotFoundError:  # an incomplete snapshot is one, too
        return None
    here = [str(path.relative_to(found)) for path in found.rglob("*")]
    return (
        found if all(any(fnmatch(name, wanted) for name in here) for wanted in files if "*" not in wanted) else None
    )


def fetch(repository: str, revision: str, files: tuple[str, ...], directory: Path | None = None) -> Path:
    """Bring files of a repository here, going on where an earlier attempt stopped.

    Args:
        repository: "owner/name".
        revision: commit, branch or tag.
        files: patterns; nothing else is downloaded.
        directory: where to; None for the hub's cache.

    Returns:
        The directory.

    Raises:
        ModelError: when the hub does not give it; within about a minute when the hub is silent.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        _await_answer(f"{constants.ENDPOINT}/api/models/{repository}")
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(files),
                local_dir=directory,
                tqdm_class=_told(repository) if _listeners else None,
            )
        )
    except Exception as error:
        # Errors of HTTP, of the network, of the disk, and the library's own: what to do is the same.
        raise ModelError(
            f"model {repository}: {constants.ENDPOINT} did not give it ({reason_of(error, limit=200)}); "
            "check the network, set HF_ENDPOINT to a mirror, or copy the checkpoint here and name its directory "
            "with --models"
        ) from error


def _told(repository: str) -> type:
    """A progress bar that is told instead of shown."""
    from tqdm import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self.bytes = options.get("unit") == "B"
            self.done = 0.0
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            if self.bytes and self.total:
                for listener in _listeners:
                    listener(f"fetching {repository}: {self.done / self.total:.0%} of {self.total / 1e6:.0f} MB")

    return Told


def locate(repository: str, revision: str) -> Path:
    """Return the directory of a repository, fetched when it is not in the cache."""
    files = files_of(repository)
    return cached(repository, revision, files) or fetch(repository, revision, files)


def fetch_checkpoint(checkpoint: Checkpoint, directory: Path | None, report: Report = lambda done, of: None) -> Path:
    """Fetch a checkpoint of the catalogue; one whose weights are a pickle is converted to safetensors.

    Args:
        checkpoint: what to fetch.
        directory: where to; None for the cache.
        report: called with the bytes so far and in all, of files that do not come from the hub.

    Returns:
        The directory.

    Raises:
        ModelError: when it cannot be had, or is not what was published.
    """
    if checkpoint.pickle is None:
        found = None if directory else cached(checkpoint.repository, checkpoint.revision, checkpoint.files)
        return found or fetch(checkpoint.repository, checkpoint.revision, checkpoint.files, directory)
    target = directory or checkpoint.directory
    if (target / WEIGHTS).is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    if checkpoint.files:
        wanted = (*checkpoint.files, checkpoint.pickle.file)
        source = fetch(checkpoint.repository, checkpoint.revision, wanted)
        for file in source.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in checkpoint.files):
                shutil.copyfile(file, target / file.name)
        convert(source / checkpoint.pickle.file, checkpoint.pickle.sha256, target / WEIGHTS)
    else:
        from multisc.models.torchvision_fcn import write_config

        file = target / checkpoint.pickle.file.rpartition("/")[2]
        download(checkpoint.pickle, file, report)
        convert(file, checkpoint.pickle.sha256, target / WEIGHTS)
        file.unlink()
        write_config(target)
    return target


def download(pickle: Pickle, file: Path, report: Report = lambda done, of: None) -> None:
    """Download a file over https, going on where an earlier attempt stopped.

    Raises:
        ModelError: when the server does not give it, or is silent for 20 s.
    """
    part = file.with_name(file.name + ".incomplete")
    done = total = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(pickle.file, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=STALL_S) as answer:
            resumed = answer.status == 206
            done = done if resumed else 0
            total = done + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if resumed else "wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    report(done, total)
    except (OSError, ValueError) as error:
        # 416: everything is here already.
        if not (isinstance(error, urllib.error.HTTPError) and error.code == 416):
            raise ModelError(
                f"model {pickle.file}: the server did not give it ({reason_of(error, limit=200)}); "
                "check the network and try again"
            ) from error
    if done < total:
        raise ModelError(f"model {pickle.file}: the server stopped in the middle; try again to go on from there")
    part.rename(file)


def convert(file: Path, sha256: str, target: Path) -> None:
    """Convert the tensors of a pickle to safetensors, after its digest has been checked; its code is never run.

    Args:
        file: as ``torch.save`` wrote it.
        sha256: first digits of its SHA-256.
        target: the safetensors file.

    Raises:
        ModelError: when the digest is another, or it holds anything but tensors by name.
    """
    import torch
    from safetensors.torch import save_file

    found = digest(file)
    if not found.startswith(sha256):
        file.resolve().unlink()  # in the hub's cache it is a link
        raise ModelError(f"model file {file}: its SHA-256 is {found}, published is {sha256}; fetch it again")
    try:
        tensors: Any = torch.load(file, map_location="cpu", weights_only=True)
        named = {str(name): tensor.clone().contiguous() for name, tensor in tensors.items()}
    except Exception as error:
        raise ModelError(
            f"model file {file}: holds more than tensors ({reason_of(error, limit=200)}); it is refused"
        ) from error
    partial = target.with_name(target.name + ".incomplete")
    save_file(named, partial, metadata={"format": "pt"})
    partial.rename(target)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def published_digests(directory: Path, checkpoint: Checkpoint) -> list[tuple[str, int, str]]:
    """Return name, size and SHA-256 ("" when not known) of the files that the hub listed when they were fetched.

    Args:
        directory: of the fetched files: in the hub's cache, or one they were fetched to.
        checkpoint: of the catalogue.
    """
    # The listing that the hub's library keeps; its own reader leaves the digests out.
    if directory.parent.name == "snapshots":
        listing = directory.parents[1] / "trees" / f"{directory.name}.json"
    else:
        listing = directory / ".cache" / "huggingface" / "trees" / f"{checkpoint.revision}.json"
    try:
        files = json.loads(listing.read_text())["files"].items()
        return [
            (name, int(about["size"]), str(about.get("lfs_sha256", "")))
            for name, about in files
            if any(fnmatch(name, pattern) for pattern in checkpoint.files)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _await_answer(address: str) -> None:
    """Ask whether the hub is there: its library would wait for the list of files without end."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=STALL_S).close()
    except urllib.error.HTTPError:
        return  # an answer
