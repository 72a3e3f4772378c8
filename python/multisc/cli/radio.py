"""Options that say what the waveform and the channel are like, shared by the commands that transmit or receive."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from multisc.channel import KINDS, PROFILES, ChannelConfig
from multisc.cli.arguments import finite_float, option, snr_of
from multisc.errors import BadInputError
from multisc.phy.config import ORTHOGONAL_MODES, PhyConfig
from multisc.phy.units import time_noise_variance

DEFAULT_RATE = 2e6
WEAKEST_DB = -40.0  # of a stream against the strongest one: what the header can say


def add_waveform(parser: argparse.ArgumentParser) -> None:
    """Add the numerology that both ends must agree on."""
    group = parser.add_argument_group("waveform (both ends must agree)")
    default = PhyConfig()
    group.add_argument("--fft-size", type=int, default=default.fft_size, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--cyclic-prefix", type=int, default=default.cyclic_prefix, metavar="N", help="samples; default: %(default)s"
    )
    group.add_argument(
        "--occupied", type=int, default=default.occupied, metavar="N", help="subcarriers in use; default: %(default)s"
    )
    group.add_argument(
        "--burst-symbols",
        type=int,
        default=default.max_payload_symbols,
        metavar="N",
        help="payload OFDM symbols of a burst at most; default: %(default)s",
    )


def waveform(args: argparse.Namespace, amplitude: float = 1.0, gap: int = 0, orthogonal: str = "fdm") -> PhyConfig:
    """Return the numerology asked for."""
    return PhyConfig(args.fft_size, args.cyclic_prefix, args.occupied, orthogonal, args.burst_symbols, amplitude, gap)


def add_orthogonal(parser: argparse.ArgumentParser) -> None:
    """Add how the streams share a burst; the receiver learns it from the header."""
    parser.add_argument(
        "--orthogonal",
        choices=ORTHOGONAL_MODES,
        default="fdm",
        help="how streams share a burst; default: %(default)s",
    )


def add_channel(parser: argparse.ArgumentParser) -> None:
    """Add the impairments of ``ChannelConfig``."""
    group = parser.add_argument_group("channel (docs/reference/channels.md)")
    group.add_argument("--channel", choices=KINDS, default="awgn", help="default: %(default)s")

    def number(flag: str, help: str, unit: str = "") -> None:
        group.add_argument(flag, type=finite_float, default=0.0, metavar=unit or "X", help=help)

    number("--doppler", "largest Doppler shift of fading; 0 is block fading (default)", "HZ")
    group.add_argument("--fading-block", type=int, metavar="N", help="samples per fading block; default: all of them")
    # Without defaults of their own, so that one which the channel does not have is refused.
    usual = ChannelConfig
    group.add_argument("--k-factor", type=finite_float, metavar="DB", help=f"rician; default: {usual.k_factor_db:g}")
    group.add_argument("--profile", choices=PROFILES, help=f"TDL-A to TDL-E; default: {usual.profile}")
    group.add_argument(
        "--delay-spread", type=finite_float, metavar="S", help=f"tdl, seconds; default: {usual.delay_spread_s:g}"
    )
    number("--cfo", "carrier frequency offset", "HZ")
    number("--clock-ppm", "receiver's clock against the transmitter's", "PPM")
    number("--linewidth", "of the oscillators' phase noise", "HZ")
    number("--iq-gain", "gain imbalance of the receiver's mixer", "DB")
    number("--iq-phase", "phase imbalance of the receiver's mixer", "DEG")
    number("--dc-offset", "carrier leakage into each branch")
    group.add_argument("--clip", type=finite_float, metavar="LEVEL", help="magnitude at which the amplifier limits")
    group.add_argument("--adc-bits", type=int, metavar="N", help="of the receiver's converter")
    group.add_argument(
        "--adc-full-scale", type=finite_float, metavar="LEVEL", help="default: 4 times the transmitter's amplitude"
    )


def channel(
    args: argparse.Namespace, snr_db: float | None, amplitude: float, sample_rate: float = DEFAULT_RATE
) -> ChannelConfig:
    """Return the channel asked for.

    Args:
        args: parsed by ``add_channel``, with a ``seed``.
        snr_db: Es/N0 of the strongest stream; None is without noise.
        amplitude: of the transmitter.
        sample_rate: Hz.

    Raises:
        BadInputError: for values that ``ChannelConfig`` refuses, or that this channel does not have.
    """
    chosen: dict[str, Any] = {}
    for flag, value, field, kind in (
        ("--k-factor", args.k_factor, "k_factor_db", "rician"),
        ("--profile", args.profile, "profile", "tdl"),
        ("--delay-spread", args.delay_spread, "delay_spread_s", "tdl"),
    ):
        if value is not None and args.channel != kind:
            shown = value if isinstance(value, str) else f"{value:g}"
            raise BadInputError(f"{flag} {shown} goes with --channel {kind}, not {args.channel}")
        if value is not None:
            chosen[field] = value
    if args.adc_full_scale is not None and args.adc_bits is None:
        raise BadInputError(f"--adc-full-scale {args.adc_full_scale:g} goes with --adc-bits")
    return ChannelConfig(
        kind=args.channel,
        noise_variance=0.0 if snr_db is None else time_noise_variance(snr_db, amplitude),
        seed=args.seed,
        sample_rate=sample_rate,
        doppler_hz=args.doppler,
        fading_block=args.fading_block,
        cfo_hz=args.cfo,
        clock_ppm=args.clock_ppm,
        linewidth_hz=args.linewidth,
        iq_gain_db=args.iq_gain,
        iq_phase_deg=args.iq_phase,
        dc_offset=args.dc_offset,
        clip=args.clip,
        adc_bits=args.adc_bits,
        adc_full_scale=4.0 * amplitude if args.adc_full_scale is None else args.adc_full_scale,
        **chosen,
    )


def strongest_db(plan: dict[str, float]) -> float:
    """Return the highest SNR of a plan: the level of pilots and header, to which ``power_db`` refers."""
    return max(plan.values())


def power_db(plan: dict[str, float] | None, stream: str) -> float:
    """Return a stream's level against the pilots, in dB, that gives it its own SNR in a common noise.

    Raises:
        BadInputError: when no SNR of the plan fits the stream, or it is more than 40 dB below the strongest.
    """
    if plan is None:
        return 0.0
    level = snr_of(plan, stream) - strongest_db(plan)
    if level < WEAKEST_DB:
        raise BadInputError(f"SNR of stream {stream}: {-level:g} dB below the strongest, at most {-WEAKEST_DB:g} dB")
    return level


def add_models(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add where systems with models run."""
    group = parser.add_argument_group("inference")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--inference", metavar="ADDRESS", help="of `multisc serve`; default: a process of our own")
    where.add_argument(
        "--models", default="embedded", metavar="PROFILE", help="embedded (default), foundation or a directory"
    )
    group.add_argument("--inference-keys", type=Path, metavar="FILE", help="client.key of a remote inference process")
    return group


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add where systems with models run, and their options."""
    group = add_models(parser)
    group.add_argument(
        "--set", dest="options", action="append", default=[], type=option, metavar="NAME=VALUE",
        help="an option of the system; may be repeated",
    )  # fmt: skip
    for name, what in (("cbr", "channel bandwidth ratio such as 1/12"), ("mcs", "auto, or such as 1/2:16qam")):
        group.add_argument(
            f"--{name}", dest="options", action="append", default=[], type=partial(_named, name), metavar="X",
            help=f"short for --set {name}=X: {what}",
        )  # fmt: skip


def _named(name: str, text: str) -> tuple[str, str]:
    return name, text
