"""Profiles: which checkpoint serves each part of a system; names and revisions live here and nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from multisc.errors import BadInputError, ModelError

EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded"
# The parts of a profile; in a directory of checkpoints each is a subdirectory of this name.
PARTS = ("fcn", "llava", "bart", "stable-diffusion", "ip-adapter")


@dataclass(frozen=True)
class Profile:
    """Where the parts of the systems come from.

    Args:
        name: as given on the command line.
        sources: by part, a directory, or "owner/name" or "owner/name@revision" on the hub.
    """

    name: str
    sources: Mapping[str, str]

    @property
    def device(self) -> str:
        """The device that the models run on: the first CUDA device where there is one, or the CPU."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def fcn(self) -> str:
        """The segmentation network."""
        return self._source("fcn")

    @property
    def llava(self) -> str:
        """The captioner."""
        return self._source("llava")

    @property
    def bart(self) -> str:
        """The corrector."""
        return self._source("bart")

    @property
    def stable_diffusion(self) -> str:
        """The generator of pictures."""
        return self._source("stable-diffusion")

    @property
    def ip_adapter(self) -> str:
        """The generator's image prompt."""
        return self._source("ip-adapter")

    def _source(self, part: str) -> str:
        if part not in self.sources:
            raise ModelError(f"models {self.name}: no {part}; put its checkpoint into a subdirectory of that name")
        return self.sources[part]


FOUNDATION = Profile(
    "foundation",
    {
        "llava": "llava-hf/llava-interleave-qwen-0.5b-hf@main",
        "bart": "facebook/bart-base@main",
        "stable-diffusion": "stable-diffusion-v1-5/stable-diffusion-v1-5@main",
        "ip-adapter": "h94/IP-Adapter@main",
    },
)


def load_profile(name: str | Path) -> Profile:
    """Return the profile of a name.

    Args:
        name: "embedded", "foundation", or a directory with one subdirectory for each part (``PARTS``).

    Raises:
        BadInputError: when it is none of these.
    """
    if name == "foundation":
        return FOUNDATION
    directory = EMBEDDED_DIRECTORY if name == "embedded" else Path(name)
    if not directory.is_dir():
        raise BadInputError(f"models {name}: must be embedded, foundation or a directory of checkpoints")
    found = {part: str(directory / part) for part in PARTS if (directory / part).is_dir()}
    if not found:
        raise BadInputError(f"models {name}: holds none of the subdirectories {', '.join(PARTS)}")
    return Profile(str(name), found)


def fingerprint(name: str | Path) -> str:
    """Return a profile's name with a digest that changes with any of its checkpoints.

    Args:
        name: as ``load_profile``.

    Raises:
        BadInputError: as ``load_profile``.
    """
    profile = load_profile(name)
    digest = hashlib.sha256()
    for part, source in sorted(profile.sources.items()):
        digest.update(part.encode())
        files = sorted(file for file in Path(source).rglob("*") if file.is_file() and file.suffix != ".md")
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        if not files:  # a name on the hub
            digest.update(source.encode())
    return f"{profile.name} {digest.hexdigest()[:12]}"
