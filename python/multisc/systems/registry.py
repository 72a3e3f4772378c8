"""The systems by the name they have on the command line. Adding one is a module and a line here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from multisc.errors import BadInputError
from multisc.systems.base import System


@dataclass(frozen=True)
class Entry:
    """Where a system is and what it needs.

    Args:
        factory: "module:callable"; the callable takes the models profile (a name or a directory).
        needs_models: whether it must run in the inference process.
        summary: one line for help texts and the report.
        context: options that a run fills in with its own facts when the user does not set them:
            "seed" (of the run), "snr_db" (Es/N0 the link is expected to have).
        drafts: whether its receiver has the option "draft": what is there before the picture.
    """

    factory: str
    needs_models: bool
    summary: str
    context: tuple[str, ...]
    drafts: bool = False


SYSTEMS: dict[str, Entry] = {
    "multi-sc": Entry(
        "multisc.systems.multi_sc:multi_sc", True, "subject slice and four block captions", ("seed",), drafts=True
    ),
    "single-text": Entry(
        "multisc.systems.multi_sc:single_text", True, "subject slice and one caption", ("seed",), drafts=True
    ),
    "vlm-csc": Entry("multisc.systems.vlm_csc:vlm_csc", True, "BLIP caption, picture from text alone", ("seed",)),
    "vlf-msc": Entry("multisc.systems.vlf_msc:vlf_msc", True, "one feature for text and picture", ("seed",)),
    "text-only": Entry("multisc.systems.vlf_msc:text_only", True, "BLIP-2 caption alone", ("seed",)),
    "image-only": Entry("multisc.systems.vlf_msc:image_only", True, "image embedding alone", ("seed",)),
    "deep-jscc": Entry("multisc.systems.deep_jscc:deep_jscc", True, "features as analog symbols", ("snr_db",)),
    "bpg-ldpc": Entry("multisc.systems.bpg_ldpc:bpg_ldpc", False, "BPG picture, CRC and LDPC", ("snr_db",)),
}


def get_entry(name: str) -> Entry:
    """Look up a system.

    Raises:
        BadInputError: for an unknown name.
    """
    if name not in SYSTEMS:
        raise BadInputError(f"system {name!r}: must be one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def get_system(name: str, models: str = "embedded") -> System:
    """Load a system with its models.

    Args:
        name: one of ``SYSTEMS``.
        models: "embedded", "foundation" or the path of a profile's directory; ignored by systems without models.

    Raises:
        BadInputError: for an unknown name.
        ModelError: when a checkpoint cannot be loaded.
    """
    module, factory = get_entry(name).factory.split(":")
    system: System = getattr(importlib.import_module(module), factory)(models)
    return system
