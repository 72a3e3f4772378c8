"""Channels by name: one validated configuration, one order of impairments, independent seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from multisc.channel.clock import ClockOffset
from multisc.channel.fading import FlatFading
from multisc.channel.frontend import CarrierOffset, Clipping, DcOffset, Delay, Gain, IqImbalance, Quantisation
from multisc.channel.impairment import Chain, Impairment, in_range
from multisc.channel.noise import Awgn, PhaseNoise
from multisc.channel.tdl import TappedDelayLine
from multisc.errors import BadInputError

KINDS = ("awgn", "rayleigh", "rician", "tdl")


@dataclass(frozen=True)
class ChannelConfig:
    """A channel and the radios at its ends; everything but the noise is off unless asked for.

    Random parts draw from generators of their own, all derived from ``seed``: turning one impairment on does not
    change what another one draws.

    Args:
        kind: "awgn" (no fading), "rayleigh", "rician" or "tdl". All have unit mean power gain.
        noise_variance: N0 of the complex noise per sample at the receiver's input, at least 0.
        seed: at least 0.
        sample_rate: Hz.
        doppler_hz: largest Doppler shift of fading, Hz; 0 for block fading.
        fading_block: block fading only, samples after which the gain is drawn anew; None: one draw for the whole run.
        k_factor_db: Rician fading only, line of sight over scattered power, dB, -100 to 100.
        profile: TDL only, "A" to "E".
        delay_spread_s: TDL only, root mean square delay spread, s.
        gain_db: level change on the way, dB; negative attenuates. Noise is added after it.
        delay: samples on the way.
        cfo_hz: carrier frequency offset, Hz.
        clock_ppm: receiver clock over transmitter clock, parts per million.
        linewidth_hz: of the oscillators' phase noise, Hz.
        iq_gain_db: gain imbalance of the receiver's mixer, dB.
        iq_phase_deg: phase imbalance of the receiver's mixer, degrees.
        dc_offset: magnitude of the local oscillator's leakage into the real and into the imaginary branch.
        clip: magnitude at which the transmitter's amplifier limits; None: it does not.
        adc_bits: of the receiver's converter, 2 to 16; None: it does not quantise.
        adc_full_scale: magnitude per rail at which the converter saturates.

    Raises:
        BadInputError: for an unknown kind, an option that the kind does not have, or a value outside its range.
    """

    kind: str = "awgn"
    noise_variance: float = 0.0
    seed: int = 0
    sample_rate: float = 2e6
    doppler_hz: float = 0.0
    fading_block: int | None = None
    k_factor_db: float = 6.0
    profile: str = "C"
    delay_spread_s: float = 300e-9
    gain_db: float = 0.0
    delay: int = 0
    cfo_hz: float = 0.0
    clock_ppm: float = 0.0
    linewidth_hz: float = 0.0
    iq_gain_db: float = 0.0
    iq_phase_deg: float = 0.0
    dc_offset: float = 0.0
    clip: float | None = None
    adc_bits: int | None = None
    adc_full_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInputError(f"channel {self.kind!r}: must be one of {', '.join(KINDS)}")
        if self.kind == "awgn" and (self.doppler_hz or self.fading_block is not None):
            raise BadInputError("channel awgn does not fade: Doppler and fading block need rayleigh, rician or tdl")
        if self.seed < 0:
            raise BadInputError(f"seed {self.seed}: must be at least 0")
        in_range("sample rate", self.sample_rate, 1.0, 1e12, "Hz")
        in_range("K-factor", self.k_factor_db, -100.0, 100.0, "dB")
        self.build()  # every impairment checks its own arguments

    def build(self) -> Chain:
        """Return a fresh chain at the start of its random draws."""
        fading_seed, phase_seed, noise_seed = np.random.SeedSequence(self.seed).spawn(3)
        rate = self.sample_rate
        stages: list[Impairment] = []
        if self.clip is not None:
            stages.append(Clipping(self.clip))
        if self.kind in ("rayleigh", "rician"):
            k_factor = 10.0 ** (self.k_factor_db / 10.0) if self.kind == "rician" else 0.0
            stages.append(FlatFading(rate, k_factor, self.doppler_hz, self.fading_block, fading_seed))
        if self.kind == "tdl":
            fading = (self.doppler_hz, self.fading_block, fading_seed)
            stages.append(TappedDelayLine(rate, self.profile, self.delay_spread_s, *fading))
        if self.gain_db:
            stages.append(Gain(self.gain_db))
        if self.delay:
            stages.append(Delay(self.delay))
        if self.cfo_hz:
            stages.append(CarrierOffset(self.cfo_hz, rate))
        if self.linewidth_hz:
            stages.append(PhaseNoise(self.linewidth_hz, rate, phase_seed))
        if self.clock_ppm:
            stages.append(ClockOffset(self.clock_ppm))
        stages.append(Awgn(self.noise_variance, noise_seed))
        if self.iq_gain_db or self.iq_phase_deg:
            stages.append(IqImbalance(self.iq_gain_db, self.iq_phase_deg))
        if self.dc_offset:
            stages.append(DcOffset(complex(self.dc_offset, self.dc_offset)))
        if self.adc_bits is not None:
            stages.append(Quantisation(self.adc_bits, self.adc_full_scale))
        return Chain(stages)


def make_channel(
    kind: str, noise_variance: float, seed: int = 0, sample_rate: float = 2e6, **impairments: Any
) -> Chain:
    """Return the channel that ``ChannelConfig`` describes; ``impairments`` are its further fields.

    Raises:
        BadInputError: as ``ChannelConfig``.
    """
    return ChannelConfig(kind, noise_variance, seed, sample_rate, **impairments).build()
