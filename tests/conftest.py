"""Fixtures for all tests, and what the tests in a folder need before they can be imported."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see multisc.libraries

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tests.support.paths import DATA, ROOT

# What may be missing: the module, the reason to give, and the folders and files that are skipped without it.
NEEDS = [
    ("gnuradio.gr", "GNU Radio is not installed", ["gnuradio"]),
    ("gnuradio.multisc", "the blocks are not beside GNU Radio: make setup", ["gnuradio"]),
    (
        "gnuradio.grc.core.platform",
        "GNU Radio Companion is not installed",
        ["gnuradio/test_grc.py", "gnuradio/test_flowgraphs.py", "gnuradio/test_sdr.py"],
    ),
    ("gnuradio.soapy", "gr-soapy is not installed", ["gnuradio/test_sdr.py"]),
    (
        "torch",
        "torch is not installed",
        [
            "integration/test_foundation.py",
            "integration/test_models_command.py",
            "integration/test_train_foundation.py",
            "unit/models",
            "unit/systems/test_deep_jscc.py",
            "unit/systems/test_multi_sc.py",
            "unit/systems/test_slices.py",
            "unit/systems/test_vlf_msc.py",
            "unit/training",
        ],
    ),
]

# The same examples in every run; a run that looks further: pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def can_be_imported(module: str) -> bool:
    """Whether a module is there and works; a folder that an out-of-tree module left behind is not GNU Radio."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


class Skipped(pytest.Module):
    """A file of tests that is reported as skipped without being imported."""

    reason = ""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        """Report the reason."""
        pytest.skip(self.reason, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip files whose needs are not met."""
    below = module_path.relative_to(ROOT / "tests")
    for module, reason, places in NEEDS:
        if any(below.is_relative_to(place) for place in places) and not can_be_imported(module):
            file = Skipped.from_parent(parent, path=module_path)
            file.reason = reason
            return file
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in the folder of the GNU Radio tests."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "gnuradio"):
            item.add_marker(pytest.mark.gnuradio)


@pytest.fixture
def kodak() -> Path:
    """The folder of the 24 Kodak images; the test is skipped where it is absent."""
    folder = DATA / "kodak24"
    if not folder.is_dir():
        pytest.skip("the Kodak images are not beside this checkout (../shared/data/kodak24)")
    return folder


@pytest.fixture(scope="module")
def handlers_can_be_imported() -> Iterator[None]:
    """Inference processes that tests start find the test handlers: ``tests.support.handlers:Echo``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def photograph() -> NDArray[np.uint8]:
    """scikit-image's cat, uint8 of shape (300, 451, 3)."""
    from skimage import data

    return np.asarray(data.chelsea())
