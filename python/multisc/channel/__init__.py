"""Channel impairments: seeded, composable, of unit mean power gain, indifferent to how the samples are chopped."""

from multisc.channel.clock import ClockOffset
from multisc.channel.factory import KINDS, ChannelConfig, make_channel
from multisc.channel.fading import FlatFading
from multisc.channel.frontend import CarrierOffset, Clipping, DcOffset, Delay, Gain, IqImbalance, Quantisation
from multisc.channel.impairment import Chain, Impairment
from multisc.channel.noise import Awgn, PhaseNoise
from multisc.channel.tdl import PROFILES, TappedDelayLine

__all__ = [
    "KINDS",
    "PROFILES",
    "Awgn",
    "CarrierOffset",
    "Chain",
    "ChannelConfig",
    "Clipping",
    "ClockOffset",
    "DcOffset",
    "Delay",
    "FlatFading",
    "Gain",
    "Impairment",
    "IqImbalance",
    "PhaseNoise",
    "Quantisation",
    "TappedDelayLine",
    "make_channel",
]
