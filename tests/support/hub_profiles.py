"""The foundation profiles, fetched from a hub of miniatures."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from multisc.cli import main
from multisc.models import profile as profiles
from multisc.models.profile import CATALOGUE, EMBEDDED_DIRECTORY, load_profile, trained_directory
from tests.support import hub_miniatures
from tests.support.fake_hub import FakeHub, running_hub
from tests.support.fake_torchvision import published_fcn, stand_in
from tests.support.hub_blip import pin_blip
from tests.support.miniatures_blip import write_projection

PROFILES = tuple(CATALOGUE)


@contextmanager
def fetched_profiles(root: Path) -> Iterator[FakeHub]:
    """Both profiles fetched into ``root``, with a projection for VLF-MSC; from then on there is no network."""
    published = hub_miniatures.foundation(root / "published")
    with (
        pytest.MonkeyPatch.context() as patch,
        running_hub(published, root / "cache", patch) as hub,
        published_fcn(root / "pytorch.org", patch),
    ):
        stand_in(patch)
        pin_blip(published["Salesforce/blip-image-captioning-base"] / "pytorch_model.bin", patch)
        patch.setattr(profiles, "_load", functools.cache(profiles._load.__wrapped__))
        for name in PROFILES:
            assert main(["models", "fetch", "--models", name]) == 0
            write_projection(trained_directory(name) / "vlf-projection", load_profile(name).stable_diffusion)
        (trained_directory("foundation-7b") / "deep-jscc").symlink_to(EMBEDDED_DIRECTORY / "deep-jscc")
        hub.silent = True
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield hub
