"""What several tests share: where the data is, and a photograph that ships with a dependency."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see multisc.libraries

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


# The same examples in every run; a run that looks further: pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def kodak() -> Path:
    """The folder of the 24 Kodak images; the test is skipped where it is absent."""
    folder = SHARED / "kodak24"
    if not folder.is_dir():
        pytest.skip("the Kodak images are not beside this checkout (../shared/data/kodak24)")
    return folder


@pytest.fixture(scope="module")
def handlers_can_be_imported() -> Iterator[None]:
    """Inference processes that tests start find the modules beside them: ``link_handlers:Echo``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def photograph() -> NDArray[np.uint8]:
    """scikit-image's cat, uint8 of shape (300, 451, 3)."""
    from skimage import data

    return np.asarray(data.chelsea())
