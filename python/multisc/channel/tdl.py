"""Tapped delay lines: the profiles TDL-A to TDL-E of 3GPP TR 38.901."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multisc.channel.clock import fractional_kernel
from multisc.channel.fading import TimeVariantFilter, make_gains
from multisc.channel.impairment import in_range
from multisc.channel.noise import Seed
from multisc.errors import BadInputError

MAX_DELAY = 4096  # samples
_TAPS = 32  # of the interpolators that put taps between samples

# TR 38.901 V16.1.0, tables 7.7.2-1 to 7.7.2-5: normalised delay, power in dB.
_A = """0.0000 -13.4 0.3819 0.0 0.4025 -2.2 0.5868 -4.0 0.4610 -6.0 0.5375 -8.2 0.6708 -9.9 0.5750 -10.5 0.7618 -7.5
1.5375 -15.9 1.8978 -6.6 2.2242 -16.7 2.1718 -12.4 2.4942 -15.2 2.5119 -10.8 3.0582 -11.3 4.0810 -12.7 4.4579 -16.2
4.5695 -18.3 4.7966 -18.9 5.0066 -16.6 5.3043 -19.9 9.6586 -29.7"""
_B = """0.0000 0.0 0.1072 -2.2 0.2155 -4.0 0.2095 -3.2 0.2870 -9.8 0.2986 -1.2 0.3752 -3.4 0.5055 -5.2 0.3681 -7.6
0.3697 -3.0 0.5700 -8.9 0.5283 -9.0 1.1021 -4.8 1.2756 -5.7 1.5474 -7.5 1.7842 -1.9 2.0169 -7.6 2.8294 -12.2
3.0219 -9.8 3.6187 -11.4 4.1067 -14.9 4.2790 -9.2 4.7834 -11.3"""
_C = """0.0000 -4.4 0.2099 -1.2 0.2219 -3.5 0.2329 -5.2 0.2176 -2.5 0.6366 0.0 0.6448 -2.2 0.6560 -3.9 0.6584 -7.4
0.7935 -7.1 0.8213 -10.7 0.9336 -11.1 1.2285 -5.1 1.3083 -6.8 2.1704 -8.7 2.7105 -13.2 4.2589 -13.9 4.6003 -13.9
5.4902 -15.8 5.6077 -17.1 6.3065 -16.0 6.6374 -15.7 7.0427 -21.6 8.6523 -22.8"""
_D = """0.0000 -13.5 0.0350 -18.8 0.6120 -21.0 1.3630 -22.8 1.4050 -17.9 1.8040 -20.1 2.5960 -21.9 1.7750 -22.9
4.0420 -27.8 7.9370 -23.6 9.4240 -24.8 9.7080 -30.0 12.5250 -27.7"""
_E = """0.0000 -22.03 0.5133 -15.8 0.5440 -18.1 0.5630 -19.8 0.5440 -22.9 0.7112 -22.4 1.9092 -18.6 1.9293 -20.8
1.9589 -22.6 2.6426 -22.3 3.7136 -25.6 5.4524 -20.2 12.0034 -29.8 20.6519 -29.2"""
_SCATTERED = {"A": _A, "B": _B, "C": _C, "D": _D, "E": _E}
_LINE_OF_SIGHT_DB = {"D": -0.2, "E": -0.03}  # power of the first tap's steady part
PROFILES = tuple(_SCATTERED)


def profile(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a profile of TR 38.901.

    Args:
        name: "A" to "E"; D and E have a line of sight.

    Returns:
        delays in units of the delay spread, mean powers that add up to 1, linear K-factors; each (taps,).

    Raises:
        BadInputError: for an unknown profile.
    """
    if name not in _SCATTERED:
        raise BadInputError(f"TDL profile {name!r}: must be one of {', '.join(PROFILES)}")
    table = np.array(_SCATTERED[name].split(), np.float64).reshape(-1, 2)
    powers = 10.0 ** (table[:, 1] / 10.0)
    k_factors = np.zeros_like(powers)
    if name in _LINE_OF_SIGHT_DB:
        steady = 10.0 ** (_LINE_OF_SIGHT_DB[name] / 10.0)
        k_factors[0] = steady / powers[0]
        powers[0] += steady
    return table[:, 0], powers / powers.sum(), k_factors


class TappedDelayLine(TimeVariantFilter):
    """Frequency-selective fading of unit mean power over a TDL profile of TR 38.901 (7.7.2).

    Taps lie between samples: each is spread by a windowed sinc that is flat to 0.44 of the sample rate, so the delay
    spread is what was asked for at any sample rate. That costs a constant delay of ``lead`` samples.

    Args:
        sample_rate: Hz.
        name: profile, "A" to "E".
        delay_spread_s: root mean square delay spread, s; 0 puts all taps at one place.
        doppler_hz: largest Doppler shift, Hz; 0 for block fading.
        block: without Doppler, samples after which the gains are drawn anew; None keeps them.
        seed: of the fading.

    Raises:
        BadInputError: for an argument outside its range, an unknown profile, or a block together with Doppler.
    """

    lead = _TAPS // 2 - 1

    def __init__(
        self,
        sample_rate: float,
        name: str = "C",
        delay_spread_s: float = 300e-9,
        doppler_hz: float = 0.0,
        block: int | None = None,
        seed: Seed = 0,
    ) -> None:
        in_range("sample rate", sample_rate, 1.0, 1e12, "Hz")
        delays, powers, k_factors = profile(name)
        longest = MAX_DELAY / delays.max() / sample_rate
        places = delays * (in_range("delay spread", delay_spread_s, 0.0, longest, "s") * sample_rate)
        gains = make_gains(powers, k_factors, doppler_hz, sample_rate, block, seed)
        super().__init__(gains, _spread(places))


def _spread(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit-energy interpolators at delays in samples, shape (taps, longest + interpolator length)."""
    whole = np.floor(places).astype(int)
    kernels = fractional_kernel(places - whole, _TAPS, 60.0)
    shape = np.zeros((places.size, int(whole.max()) + _TAPS))
    for row, start, kernel in zip(shape, whole, kernels, strict=True):
        row[start : start + _TAPS] = kernel
    return shape
