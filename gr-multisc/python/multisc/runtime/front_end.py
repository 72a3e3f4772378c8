"""Front ends of radios: USRP through gr-uhd, HackRF and others through gr-soapy, checked against what they can do.

Neither gr-uhd (which brings Qt) nor gr-soapy is imported before a radio is asked for. Nothing here was ever run on a
USRP; what was tested on what stands in docs/how-to/over-the-air.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from gnuradio import blocks, gr
from gnuradio.filter import fir_filter_ccf, firdes, interp_fir_filter_ccf

from multisc.errors import BadInputError, MultiscError
from multisc.phy.config import PhyConfig

from ..blocks.burst import BUFFER
from .driver_log import DriverLog

DRIVERS = ("soapy", "uhd")
RATE_TOLERANCE = 1e-6  # of a device that makes another sample rate of what was asked for
TUNE_TOLERANCE_HZ = 1000.0
STALL_S = 5.0  # without a sample until a device is given up
FAILED_S = 0.5  # the same when its driver says that it failed
STOP_TIMEOUT_S = 5.0  # for a driver to let go of its device
STOP_BAND = 0.05  # of the device's rate at either edge, where its filters fall off
_NOT_THERE = "there is no such device; `multisc doctor` shows those that are there"
_FORBIDDEN = "no permission: the device's udev rules are missing, or you are not in their group (plugdev, usb)"
_TAKEN = "another program is using the device: end it"
_REMEDIES = {  # by a word in what the driver says
    "no match": _NOT_THERE,
    "no devices found": _NOT_THERE,
    "denied": _FORBIDDEN,
    "permission": _FORBIDDEN,
    "busy": _TAKEN,
    "claim": _TAKEN,
}
Range = tuple[float, float]
T = TypeVar("T")


class StallWatchdog:
    """Looks whether samples still come or go.

    Args:
        log: of the device's driver; once that says that the device failed, less patience is shown.
    """

    def __init__(self, log: DriverLog) -> None:
        self._log = log
        self._count = -1
        self._since = time.monotonic()

    def stalled(self, count: int) -> bool:
        """Take in how many samples there were so far; whether that has not changed for too long."""
        now = time.monotonic()
        if count != self._count:
            self._count, self._since = count, now
        return now - self._since > (FAILED_S if self._log.failure else STALL_S)


def explained(error: Exception) -> str:
    """What a driver raised, as one line, with the remedy where the trouble is a known one."""
    reason = " ".join(str(error).split())
    remedies = [remedy for word, remedy in _REMEDIES.items() if word in reason.lower()]
    return "; ".join([reason, *remedies[:1]])


@dataclass(frozen=True)
class FrontEndSettings:
    """What a front end is asked for.

    Args:
        driver: "soapy" or "uhd".
        args: the device, in the driver's own words such as ``driver=hackrf`` or ``type=b200``.
        rate: Hz, of the waveform.
        frequency: Hz, carrier of the waveform.
        gains: dB by the name of the stage; "" is the device's own division of the sum among its stages.
        antenna: "" leaves the device's own choice.
        lo_offset: Hz by which the oscillator is moved away from the carrier.
        oversample: samples of the device per sample of the waveform.
    """

    driver: str
    args: str
    rate: float
    frequency: float
    gains: dict[str, float] = field(default_factory=dict)
    antenna: str = ""
    lo_offset: float = 0.0
    oversample: int = 1


class _Port(Protocol):
    """One direction of a device."""

    block: gr.basic_block
    shifts: bool

    def rates(self) -> list[Range]: ...
    def frequencies(self) -> list[Range]: ...
    def gains(self) -> dict[str, Range]: ...
    def antennas(self) -> list[str]: ...
    def set_rate(self, rate: float) -> float: ...
    def tune(self, frequency: float, lo_offset: float) -> float: ...
    def set_gain(self, name: str, value: float) -> None: ...
    def gain(self) -> float: ...
    def set_antenna(self, name: str) -> None: ...
    def antenna(self) -> str: ...


class _SoapyPort:
    """One direction of a SoapySDR device, its first channel."""

    shifts = False  # whether the device makes up for the oscillator's offset itself

    def __init__(self, direction: str, args: str) -> None:
        from gnuradio import soapy

        make = soapy.sink if direction == "tx" else soapy.source
        self.block = make(args, "fc32", 1, "", "", [""], [""])

    def rates(self) -> list[Range]:
        return [(r.minimum(), r.maximum()) for r in self.block.get_sample_rate_range(0)]

    def frequencies(self) -> list[Range]:
        return [(r.minimum(), r.maximum()) for r in self.block.get_frequency_range(0)]

    def gains(self) -> dict[str, Range]:
        ranges = {name: self.block.get_gain_range(0, name) for name in self.block.list_gains(0)}
        whole = self.block.get_gain_range(0)
        return {name: (r.minimum(), r.maximum()) for name, r in ({"": whole} | ranges).items()}

    def antennas(self) -> list[str]:
        return list(self.block.list_antennas(0))

    def set_rate(self, rate: float) -> float:
        self.block.set_sample_rate(0, rate)
        return float(self.block.get_sample_rate(0))

    def tune(self, frequency: float, lo_offset: float) -> float:
        self.block.set_frequency(0, frequency + lo_offset)
        return float(self.block.get_frequency(0)) - lo_offset

    def set_gain(self, name: str, value: float) -> None:
        if name:
            self.block.set_gain(0, name, value)
        else:
            self.block.set_gain(0, value)

    def gain(self) -> float:
        return float(self.block.get_gain(0))

    def set_antenna(self, name: str) -> None:
        self.block.set_antenna(0, name)

    def antenna(self) -> str:
        return str(self.block.get_antenna(0))


class _UhdPort:
    """One direction of a USRP, its first channel. Never run on hardware."""

    shifts = True

    def __init__(self, direction: str, args: str) -> None:
        from gnuradio import uhd

        self._tune_request = uhd.tune_request
        make = uhd.usrp_sink if direction == "tx" else uhd.usrp_source
        self.block = make(args, uhd.stream_args("fc32"))

    def rates(self) -> list[Range]:
        whole = self.block.get_samp_rates()
        return [(whole.start(), whole.stop())]

    def frequencies(self) -> list[Range]:
        whole = self.block.get_freq_range(0)
        return [(whole.start(), whole.stop())]

    def gains(self) -> dict[str, Range]:
        ranges = {name: self.block.get_gain_range(name, 0) for name in self.block.get_gain_names(0)}
        whole = self.block.get_gain_range(0)
        return {name: (r.start(), r.stop()) for name, r in ({"": whole} | ranges).items()}

    def antennas(self) -> list[str]:
        return list(self.block.get_antennas(0))

    def set_rate(self, rate: float) -> float:
        self.block.set_samp_rate(rate)
        return float(self.block.get_samp_rate())

    def tune(self, frequency: float, lo_offset: float) -> float:
        request = self._tune_request(frequency, lo_offset) if lo_offset else self._tune_request(frequency)
        self.block.set_center_freq(request, 0)
        return float(self.block.get_center_freq(0))

    def set_gain(self, name: str, value: float) -> None:
        if name:
            self.block.set_gain(value, name, 0)
        else:
            self.block.set_gain(value, 0)

    def gain(self) -> float:
        return float(self.block.get_gain(0))

    def set_antenna(self, name: str) -> None:
        self.block.set_antenna(name, 0)

    def antenna(self) -> str:
        return str(self.block.get_antenna(0))


class FrontEnd:
    """One direction of a radio, opened, set and checked.

    Args:
        direction: "tx" or "rx".
        settings: what is asked for.
        config: numerology, which says how wide the waveform is.

    Attributes:
        blocks: to be connected one after the other; a transmitter's end with the device, a receiver's begin with it.
        gain: dB, all stages, as the device says.
        antenna: as the device says.

    Raises:
        BadInputError: for a value that the device says it cannot do.
        MultiscError: when the device cannot be opened or set.
    """

    def __init__(self, direction: str, settings: FrontEndSettings, config: PhyConfig) -> None:
        self._direction = direction
        self._settings = settings
        ports: dict[str, Callable[[str, str], _Port]] = {"soapy": _SoapyPort, "uhd": _UhdPort}
        check_plan(settings, config)
        port = self._device("cannot be opened", lambda: ports[settings.driver](direction, settings.args))
        self._set_rate(port)
        self._tune(port)
        self._set_gains(port)
        if settings.antenna:
            _check_choice(self._what("antenna"), settings.antenna, self._device("antennas", port.antennas))
            self._device("antenna", lambda: port.set_antenna(settings.antenna))
        self.gain = self._device("gain", port.gain)
        self.antenna = self._device("antenna", port.antenna)
        shift = 0.0 if port.shifts else settings.lo_offset
        self.blocks = self._convert(port.block, shift, config)

    def _what(self, name: str) -> str:
        return f"--{self._direction}-{name}"

    def _device(self, what: str, call: Callable[[], T]) -> T:
        """Call the device; whatever it raises becomes one line."""
        try:
            return call()
        except (RuntimeError, ValueError, LookupError) as error:
            name = self._settings.args or f"{self._settings.driver} without arguments"
            raise MultiscError(f"radio {name!r}: {what}: {explained(error)}") from error

    def _set_rate(self, port: _Port) -> None:
        rate = self._settings.rate * self._settings.oversample
        _check_range("sample rate", rate, self._device("sample rates", port.rates), "sample/s")
        made = self._device("sample rate", lambda: port.set_rate(rate))
        if not math.isclose(made, rate, rel_tol=RATE_TOLERANCE):
            raise BadInputError(f"sample rate {rate:.10g}: the device makes {made:.10g} sample/s of it; ask for that")

    def _tune(self, port: _Port) -> None:
        frequency, offset = self._settings.frequency, self._settings.lo_offset
        ranges = self._device("frequencies", port.frequencies)
        _check_range("--freq", frequency, ranges, "Hz")
        _check_range("--freq with --lo-offset", frequency + offset, ranges, "Hz")
        made = self._device("frequency", lambda: port.tune(frequency, offset))
        if abs(made - frequency) > TUNE_TOLERANCE_HZ:
            raise MultiscError(f"--freq {frequency:.10g}: the device is at {made:.10g} Hz instead")

    def _set_gains(self, port: _Port) -> None:
        ranges = self._device("gains", port.gains)
        for name, value in self._settings.gains.items():
            if name not in ranges:
                raise BadInputError(f"{self._what('gain')} {name}: the device has {', '.join(filter(None, ranges))}")
            _check_range(f"{self._what('gain')} {name}".strip(), value, [ranges[name]], "dB")
            self._device("gain", lambda name=name, value=value: port.set_gain(name, value))

    def _convert(self, device: gr.basic_block, shift: float, config: PhyConfig) -> list[gr.basic_block]:
        """The device and, where needed, what moves and resamples the waveform."""
        factor, rate = self._settings.oversample, self._settings.rate * self._settings.oversample
        turn = 2.0 * math.pi * shift / rate
        sending = self._direction == "tx"
        chain = [device]
        if factor > 1:
            edge = config.occupied / config.fft_size / 2  # of the waveform; the filter falls from there to 0.5
            taps = firdes.low_pass(factor if sending else 1, factor, (edge + 0.5) / 2, 0.5 - edge)
            resample = interp_fir_filter_ccf if sending else fir_filter_ccf
            chain.insert(0 if sending else 1, resample(factor, taps))
        if turn:
            chain.insert(-1 if sending else 1, blocks.rotator_cc(-turn if sending else turn))
        for block in chain[:-1] if sending else chain:
            block.set_min_output_buffer(BUFFER)
        return chain


def check_plan(settings: FrontEndSettings, config: PhyConfig) -> None:
    """Refuse what no device could do: numbers out of range, an oscillator inside the waveform.

    Raises:
        BadInputError: with what would be right.
    """
    if settings.rate <= 0:
        raise BadInputError(f"--sample-rate {settings.rate:g}: must be above 0")
    if not 1 <= settings.oversample <= 16:
        raise BadInputError(f"--oversample {settings.oversample}: must be 1 to 16")
    if settings.lo_offset == 0 or settings.driver == "uhd":
        return
    edge = settings.rate * config.occupied / config.fft_size / 2
    lowest = settings.rate / 2  # from where on the receiver's filter stops the spike
    highest = settings.rate * settings.oversample * (0.5 - STOP_BAND) - edge
    what = f"--lo-offset {settings.lo_offset:g}"
    if highest < lowest:
        raise BadInputError(f"{what}: there is no room beside the waveform; --oversample 2 makes it")
    if not lowest <= abs(settings.lo_offset) <= highest:
        raise BadInputError(f"{what}: must be {lowest:g} to {highest:g} Hz, or minus that")


def _check_range(what: str, value: float, ranges: list[Range], unit: str) -> None:
    if ranges and not any(low <= value <= high for low, high in ranges):
        can = ", ".join(f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}" for low, high in ranges[:16])
        raise BadInputError(f"{what} {value:.10g}: the device can do {can} {unit}")


def _check_choice(what: str, value: str, choices: list[str]) -> None:
    if choices and value not in choices:
        raise BadInputError(f"{what} {value!r}: the device has {', '.join(choices)}")
