"""Phasors against those of NumPy."""

import numpy as np

from multisc.phy.phasor import LARGEST_PHASE, phasors


def test_phasors_are_numpy_s_to_single_precision() -> None:
    rng = np.random.default_rng(1)
    carriers = np.arange(-96.0, 97.0)
    for scale in (1e-9, 1e-3, 1.0, 100.0, LARGEST_PHASE / 200):
        base, slope = scale * rng.uniform(-100, 100, 64), scale * rng.uniform(-1, 1, 64)
        exact = np.exp(-1j * (base[:, None] + carriers * slope[:, None]))
        found = phasors(base, slope, carriers[None])
        assert np.abs(found - exact).max() < 8e-8
        assert np.mean(found != exact.astype(np.complex64)) < 1e-3


def test_each_row_may_have_its_own_carriers() -> None:
    carriers = np.array([[1.0, 2.0], [3.0, -4.0]])
    found = phasors(np.array([0.1, 0.2]), np.array([0.3, 0.4]), carriers)
    assert np.allclose(found, np.exp(-1j * np.array([[0.4, 0.7], [1.4, -1.4]])), atol=1e-7)
