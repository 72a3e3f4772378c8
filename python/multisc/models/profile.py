"""Profiles: which checkpoint serves each part of a system, and how it is run.

Names, revisions, number format and device placement live here and nowhere else.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from multisc.errors import BadInputError, ModelError

if TYPE_CHECKING:
    import torch

EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded"
# The parts of a profile; in a directory of checkpoints each is a subdirectory of this name.
PARTS = (
    "vision-encoder",
    "fcn",
    "llava",
    "bart",
    "stable-diffusion",
    "ip-adapter",
    "blip",
    "blip2",
    "deep-jscc",
    "slice-denoiser",
    "vlf-projection",
)
OWN = "slice-denoiser"  # knows photographs and no other part: where a profile has none, the embedded one serves
WEIGHTS = "model.safetensors"  # of a checkpoint that was converted
TEXT_FILES = ("*.json", "*.txt", "*.jinja", "*.model")  # configuration, tokenizer, processor

Part = TypeVar("Part", covariant=True)


class PartClass(Protocol[Part]):
    """A class whose objects are loaded from one or more checkpoints."""

    def load(self, *sources: Any, **options: Any) -> Part:
        """Load it onto the device that the option ``device`` names."""


@dataclass(frozen=True)
class Pickle:
    """Weights that their publisher offers as a pickle only; ``multisc models fetch`` converts them to safetensors.

    Args:
        file: its name in the hub's repository, or an https address.
        sha256: first digits of its SHA-256, or all of them, as published.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint.

    Args:
        repository: "owner/name" on the hub; for one that is not on the hub, a name for its directory.
        revision: commit, or a branch where no commit is known.
        licence: SPDX name or the publisher's.
        files: patterns of the files to fetch; nothing else is downloaded.
        download: size of these in bytes, rounded.
        parameters: of the parts that are loaded.
        pickle: the weights, where there are no safetensors.
    """

    repository: str
    revision: str
    licence: str
    files: tuple[str, ...]
    download: int
    parameters: int
    pickle: Pickle | None = None

    @property
    def directory(self) -> Path:
        """Where a converted checkpoint is kept, beside the hub's cache."""
        return _own_cache() / f"{self.repository.replace('/', '--')}-{self.revision[:12]}"

    @property
    def missing(self) -> bool:
        """Whether it must be converted before it can be loaded, and was not yet."""
        return self.pickle is not None and not (self.directory / WEIGHTS).is_file()

    @property
    def source(self) -> str:
        """As ``multisc.models.checkpoint.find`` takes it."""
        return str(self.directory) if self.pickle else f"{self.repository}@{self.revision}"


def _own_cache() -> Path:
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    return Path(home) / "multisc"


def trained_directory(name: str) -> Path:
    """Where ``multisc train`` puts what it trains for a catalogued profile, and the profile looks for it."""
    return _own_cache() / name


_LLAVA_FILES = (*TEXT_FILES, "model*.safetensors")
LIGHT_LLAVA = Checkpoint(  # Table I of Multi-SC
    "llava-hf/llava-interleave-qwen-0.5b-hf", "main", "Tongyi Qianwen", _LLAVA_FILES, 1_730_000_000, 860_000_000
)
LLAVA_7B = Checkpoint(
    "llava-hf/llava-1.5-7b-hf",
    "b234b804b114d9e37bb655e11cbbb5f5e971b7a9",
    "Llama 2",
    _LLAVA_FILES,
    14_130_000_000,
    7_063_000_000,
)
FOUNDATION: Mapping[str, Checkpoint] = {
    "fcn": Checkpoint(
        "torchvision/fcn_resnet50",
        "COCO_WITH_VOC_LABELS_V1",
        "BSD-3-Clause",
        (),
        141_567_000,
        35_322_218,
        Pickle("https://download.pytorch.org/models/fcn_resnet50_coco-1167a1af.pth", "1167a1af"),
    ),
    "llava": LIGHT_LLAVA,
    "bart": Checkpoint(
        "facebook/bart-base",
        "aadd2ab0ae0c8268c7c9693540e9904811f36177",
        "Apache-2.0",
        (*TEXT_FILES, "model.safetensors"),
        560_000_000,
        139_420_416,
    ),
    "stable-diffusion": Checkpoint(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "CreativeML OpenRAIL-M",
        (
            "model_index.json",
            "feature_extractor/*.json",
            "scheduler/*.json",
            "tokenizer/*",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ),
        4_267_000_000,
        1_066_000_000,
    ),
    "ip-adapter": Checkpoint(
        "h94/IP-Adapter",
        "018e402774aeeddd60609b4ecdb7e298259dc729",
        "Apache-2.0",
        (
            "models/ip-adapter_sd15.safetensors",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
        ),
        2_573_000_000,
        654_000_000,
    ),
    "blip": Checkpoint(
        "Salesforce/blip-image-captioning-base",
        "82a37760796d32b1411fe092ab5d4e227313294b",
        "BSD-3-Clause",
        TEXT_FILES,
        991_000_000,
        247_000_000,
        Pickle("pytorch_model.bin", "d6638651a5526cc2ede56f2b5104d6851b0755816d220e5e046870430180c767"),
    ),
    "blip2": Checkpoint(
        "Salesforce/blip2-opt-2.7b",
        "59a1ef6c1e5117b3f65523d1c6066825bcf315e3",
        "MIT",
        (*TEXT_FILES, "model*.safetensors"),
        14_980_000_000,
        3_745_000_000,
    ),
}
CATALOGUE: Mapping[str, Mapping[str, Checkpoint]] = {
    "foundation": FOUNDATION,
    "foundation-7b": {**FOUNDATION, "llava": LLAVA_7B},
}


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

    def load(self, kind: PartClass[Part], *parts: str) -> Part:
        """Load parts onto the device, once: systems that use the same parts share one instance in a process.

        Args:
            kind: with ``load(*sources, device=...)``.
            parts: of ``PARTS``, in the order of the sources that ``kind.load`` takes.

        Raises:
            ModelError: when the profile has no such part, or it cannot be loaded.
        """
        sources = tuple(self.source(part) for part in parts)
        return _load(kind, sources, self.device)  # type: ignore[arg-type]  # a class is hashable

    @property
    def fcn(self) -> str:
        """The segmentation network."""
        return self.source("fcn")

    @property
    def llava(self) -> str:
        """The captioner."""
        return self.source("llava")

    @property
    def bart(self) -> str:
        """The corrector."""
        return self.source("bart")

    @property
    def stable_diffusion(self) -> str:
        """The generator of pictures."""
        return self.source("stable-diffusion")

    @property
    def ip_adapter(self) -> str:
        """The generator's image prompt."""
        return self.source("ip-adapter")

    @property
    def blip(self) -> str:
        """The captioner of VLM-CSC."""
        return self.source("blip")

    @property
    def blip2(self) -> str:
        """The vision-language model of VLF-MSC."""
        return self.source("blip2")

    @property
    def deep_jscc(self) -> str:
        """The pair of networks of deep-jscc; nobody publishes one that fits, so that it is trained."""
        if "deep-jscc" not in self.sources:
            raise ModelError(
                f"models {self.name}: no deep-jscc; make one with `multisc train deep-jscc --data DIR --out MODELS` "
                "and name it by --models MODELS, or use --models embedded"
            )
        return self.source("deep-jscc")

    @property
    def vlf_projection(self) -> str:
        """What leads the feature of VLF-MSC to the generator."""
        return self.source("vlf-projection")

    def source(self, part: str) -> str:
        """Return where a part comes from.

        Raises:
            ModelError: when the profile has no such part, or it was not fetched yet and must be converted first.
        """
        if part not in self.sources and part == OWN:
            return str(EMBEDDED_DIRECTORY / OWN)
        if part not in self.sources:
            own = (
                str(trained_directory(self.name) / part) if self.name in CATALOGUE else "a subdirectory of that name"
            )
            raise ModelError(f"models {self.name}: no {part}; put its checkpoint into {own}")
        source = self.sources[part]
        published = CATALOGUE.get(self.name, {}).get(part)
        if published and source == published.source and published.missing:
            raise ModelError(
                f"models {self.name}: {part} is not here yet and must be converted from a pickle: "
                f"run `multisc models fetch --models {self.name}`"
            )
        return source


@functools.cache
def _load(kind: PartClass[Part], sources: tuple[str, ...], device: str) -> Part:
    return kind.load(*sources, device=device)


def precision(device: str) -> torch.dtype:
    """Return the number format of the models on a device: half precision on CUDA, single elsewhere."""
    import torch

    return torch.float16 if device.startswith("cuda") else torch.float32


def load_profile(name: str | Path) -> Profile:
    """Return the profile of a name.

    Args:
        name: "embedded", "foundation", "foundation-7b", or a directory with one subdirectory for each part
            (``PARTS``).

    Raises:
        BadInputError: when it is none of these.
    """
    if name in CATALOGUE:
        sources = {part: checkpoint.source for part, checkpoint in CATALOGUE[str(name)].items()}
        trained = trained_directory(str(name))
        sources |= {part: str(trained / part) for part in PARTS if (trained / part).is_dir()}
        return Profile(str(name), sources)
    directory = EMBEDDED_DIRECTORY if name == "embedded" else Path(name)
    if not directory.is_dir():
        wanted = ", ".join(("embedded", *CATALOGUE))
        raise BadInputError(f"models {name}: must be {wanted} or a directory of checkpoints")
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
