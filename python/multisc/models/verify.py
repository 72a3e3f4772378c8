"""Checking of checkpoints before they are needed: complete, as published, and of the configured shape."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from multisc.errors import ModelError
from multisc.models import hub
from multisc.models.checkpoint import PICKLES, read_header
from multisc.models.profile import CATALOGUE, Checkpoint, Profile

ORIGIN = "profile"  # the file that names a directory's profile
# The class that each part is loaded by, and the parts it takes.
LOADERS = {
    "fcn": ("multisc.models.segmenter:Segmenter", ("fcn",)),
    "llava": ("multisc.models.captioner:Captioner", ("llava",)),
    "bart": ("multisc.models.corrector:Corrector", ("bart",)),
    "stable-diffusion": ("multisc.models.generator:Generator", ("stable-diffusion", "ip-adapter")),
    "blip": ("multisc.models.blip:BlipCaptioner", ("blip",)),
    "blip2": ("multisc.models.blip2:Blip2", ("blip2",)),
    "deep-jscc": ("multisc.models.jscc:Jscc", ("deep-jscc",)),
    "slice-denoiser": ("multisc.models.slice_denoiser:SliceDenoiser", ("slice-denoiser",)),
}


def published(profile: Profile) -> Mapping[str, Checkpoint]:
    """Return the published checkpoints, by part, that a profile consists of; none for models of one's own."""
    name = profile.name
    file = Path(name) / ORIGIN
    if file.is_file():  # a directory that `multisc models fetch --to` made
        name = file.read_text().strip()
    return CATALOGUE.get(name, {})


def directory_of(profile: Profile, part: str) -> Path | None:
    """Return where a part's files are, without a network; None when they are not here."""
    source = profile.sources[part]
    checkpoint = published(profile).get(part)
    if checkpoint and source == checkpoint.source and checkpoint.missing:
        return None
    if Path(source).is_dir():
        return Path(source)
    if checkpoint is None or checkpoint.pickle:
        return None
    return hub.cached(checkpoint.repository, checkpoint.revision, checkpoint.files)


def verify(profile: Profile, parts: tuple[str, ...], report: Callable[[str], None] = lambda line: None) -> list[str]:
    """Check parts of a profile: their files, their digests where the hub told them, and that they load.

    Args:
        profile: to check.
        parts: of ``profile.sources``.
        report: called with a line before each step.

    Returns:
        One line for each problem, with what to do about it; none when all is well.
    """
    problems: list[str] = []
    sound = []
    for part in parts:
        report(f"{part}: files")
        directory = directory_of(profile, part)
        if directory is None:
            problems.append(
                f"{part}: not here or not complete; run `multisc models fetch --models {profile.name} --parts {part}`"
            )
            continue
        found = check_files(part, directory, published(profile).get(part))
        problems += found
        if not found:
            sound.append(part)
    for part in sound:
        if part not in LOADERS:
            continue
        name, needed = LOADERS[part]
        if any(other not in sound for other in needed if other in parts or other not in profile.sources):
            continue  # what is missing has its line already, or is not asked for
        report(f"{part}: loading")
        module, _, factory = name.partition(":")
        try:
            getattr(importlib.import_module(module), factory).load(*(profile.source(other) for other in needed))
        except ModelError as error:
            problems.append(f"{part}: {error}")
    return problems


def check_files(part: str, directory: Path, checkpoint: Checkpoint | None) -> list[str]:
    """Check the files of a checkpoint without loading it.

    Args:
        part: its name, with which each line begins.
        directory: of its files.
        checkpoint: as published, when it is one of the catalogue.

    Returns:
        One line for each problem.
    """
    problems = []
    listed = hub.published_digests(directory, checkpoint) if checkpoint and not checkpoint.pickle else []
    for name, size, sha256 in listed:
        file = directory / name
        if not file.is_file():
            problems.append(f"{part}: {name} is missing; fetch it again")
        elif file.stat().st_size != size:
            problems.append(f"{part}: {name} has {file.stat().st_size} bytes, published are {size}; fetch it again")
        elif sha256 and hub.digest(file) != sha256:
            file.resolve().unlink()
            problems.append(f"{part}: {name} is not what was published, and was removed; fetch it again")
    if problems:
        return problems
    weights = sorted(directory.rglob("*.safetensors"))
    for file in weights:
        problems += [f"{part}: {file.relative_to(directory)}: {line}" for line in check_safetensors(file)]
    if not weights:
        pickles = sorted(file.name for file in directory.rglob("*") if file.suffix in PICKLES)
        problems.append(
            f"{part}: {directory} holds {pickles[0]}, a pickle, which can run code; get its safetensors"
            if pickles
            else f"{part}: {directory} holds no safetensors; copy the whole checkpoint there"
        )
    return problems


def check_safetensors(file: Path) -> list[str]:
    """Check that a safetensors file is whole; at most one line that says what is wrong."""
    try:
        _, wanted = read_header(file)
    except ValueError as error:
        return [f"{error}; copy or fetch it again"]
    size = file.stat().st_size
    return [] if size == wanted else [f"has {size} bytes, its header says {wanted}; copy or fetch it again"]
