"""Modulation and coding schemes of the digital reference chain, and which of them an SNR carries.

A scheme is a rate of the NR LDPC chain and a modulation, written ``1/2:16qam``. How often each fails on the AWGN
channel is measured with this project's own encoder, demapper and decoder by ``python -m multisc.systems.mcs`` and
committed as ``mcs_table.json``; nothing is taken from a formula or another code's curves.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from multisc.errors import BadInputError
from multisc.files import write_atomically
from multisc.phy.fec import ALGORITHM, ITERATIONS, MAX_PAYLOAD_BITS, RATES, SCHEDULE, make_code
from multisc.phy.modulation import BITS_PER_SYMBOL, bits_per_symbol, demap, map_bits
from multisc.phy.units import noise_variance

TABLE = Path(__file__).with_name("mcs_table.json")
PAYLOADS = (1024, 8192)  # bits of the measured frames
TARGET_OUTAGE = 0.01  # of a whole picture, for the scheme that ``choose`` takes
# The grid of the literature: (k, n) of (1536, 4608), (3072, 6144), (3072, 4608) with 4, 16 and 64-QAM.
LITERATURE = tuple(f"{rate}:{name}" for rate in ("1/3", "1/2", "2/3") for name in ("qpsk", "16qam", "64qam"))
# What is measured: that grid, and the schemes between and beyond that carry more at some SNR.
_MEASURED = {
    "qpsk": ("1/5", "1/3", "2/5", "1/2", "3/5", "2/3", "3/4"),
    "16qam": ("1/3", "2/5", "1/2", "3/5", "2/3", "3/4", "5/6"),
    "64qam": ("1/3", "1/2", "3/5", "2/3", "3/4", "5/6"),
    "256qam": ("2/3", "3/4", "5/6", "8/9"),
}
_THRESHOLD_FER = 1e-3
_STEP_DB = 0.1


@dataclass(frozen=True)
class Mcs:
    """A modulation and coding scheme.

    Args:
        rate: one of ``multisc.phy.fec.RATES``.
        modulation: a digital modulation.

    Raises:
        BadInputError: for a rate or a modulation that does not exist.
    """

    rate: str
    modulation: str

    def __post_init__(self) -> None:
        if self.rate not in RATES or self.modulation not in BITS_PER_SYMBOL:
            raise BadInputError(
                f"mcs {self.rate}:{self.modulation}: must be auto or RATE:MODULATION, with a rate of "
                f"{', '.join(RATES)} and a modulation of {', '.join(BITS_PER_SYMBOL)}"
            )

    @classmethod
    def parse(cls, text: str) -> Mcs:
        """Read ``1/2:16qam``.

        Raises:
            BadInputError: when it is not of that form.
        """
        rate, _, modulation = text.partition(":")
        return cls(rate, modulation)

    def __str__(self) -> str:
        return f"{self.rate}:{self.modulation}"

    @property
    def code(self) -> str:
        """The specification of its code for ``multisc.phy.fec``."""
        return f"nr:{self.rate}"

    @property
    def efficiency(self) -> float:
        """Information bits per channel use, without CRC and rounding."""
        return RATES[self.rate] * bits_per_symbol(self.modulation)


@lru_cache(maxsize=1024)
def payload_bits(code: str, modulation: str, channel_uses: int) -> int:
    """The most payload bits, in whole bytes, whose coded bits fit into ``channel_uses`` symbols.

    The code itself is asked, so that the transport block's CRC, the code blocks' CRCs and the rounding of rate
    matching are counted exactly. 0 when not even one byte fits.

    Raises:
        BadInputError: for an unknown code or modulation.
    """
    width = bits_per_symbol(modulation)
    room = channel_uses * width

    def coded(count: int) -> int:
        return make_code(code, 8 * count, width).coded_bits

    low, high = 0, min(room, MAX_PAYLOAD_BITS) // 8 + 1  # low fits, high does not
    guess = high // 2
    while high - low > 1:
        size = coded(guess)
        low, high = (guess, high) if size <= room else (low, guess)
        # Coded bits are almost proportional to payload bits, so the second guess is almost right.
        step = math.ceil(guess * room / size) - guess
        guess = min(max(guess + (step or 1 if size <= room else min(step, -1)), low + 1), high - 1)
    return 8 * low


@dataclass(frozen=True)
class ErrorRate:
    """Measured frame error rates of a scheme at one payload size.

    Args:
        payload_bits: bits of a frame.
        points: (Es/N0 in dB, frames, frame errors), ascending in SNR.
    """

    payload_bits: int
    points: tuple[tuple[float, int, int], ...]

    def log10_fer(self, snr_db: float) -> float:
        """log10 of the frame error rate, linear between and beyond the points, 0 before the first one.

        A point without an error counts as a third of one.
        """
        snr, logs = self._logs()
        if snr_db < snr[0] - _STEP_DB:
            return 0.0
        if snr_db >= snr[-1]:
            return min(0.0, logs[-1] + self._last_slope() * (snr_db - snr[-1]))
        return float(np.interp(snr_db, snr, logs))

    def snr_at(self, fer: float) -> float:
        """The smallest Es/N0 in dB, rounded up to 0.01 dB, from which the frame error rate is at most ``fer``."""
        snr, logs = self._logs()
        wanted = math.log10(fer)
        above = max((i for i, log in enumerate(logs) if log > wanted), default=-1)
        if above == len(logs) - 1:
            crossing = snr[-1] + (wanted - logs[-1]) / self._last_slope()
        elif above < 0:
            crossing = snr[0]
        else:
            crossing = float(np.interp(-wanted, [-logs[above], -logs[above + 1]], snr[above : above + 2]))
        return math.ceil(100 * crossing - 1e-6) / 100

    def _logs(self) -> tuple[list[float], list[float]]:
        logs = [math.log10(max(errors, 1 / 3) / frames) for _, frames, errors in self.points]
        return [point[0] for point in self.points], logs

    def _last_slope(self) -> float:
        """Decades per dB between the last two points; falling, as the measurement ends below its other points."""
        snr, logs = self._logs()
        return (logs[-1] - logs[-2]) / (snr[-1] - snr[-2])


def outage(mcs: Mcs, snr_db: float, bits: int) -> float:
    """Probability that a payload of ``bits`` bits does not arrive at an Es/N0, from the measured table.

    The table's frame length that is nearest below is used; longer payloads are as many independent frames.

    Raises:
        BadInputError: for a scheme that is not in the table.
    """
    rates = table().get(str(mcs))
    if rates is None:
        raise BadInputError(f"mcs {mcs}: not in the table of measured schemes, which has {', '.join(table())}")
    fitting = [rate for rate in rates if rate.payload_bits <= bits] or rates[:1]
    fer = 10.0 ** fitting[-1].log10_fer(snr_db)
    return 1.0 - (1.0 - fer) ** max(1.0, bits / fitting[-1].payload_bits)


def choose(snr_db: float, channel_uses: int, at_least: int = 0) -> Mcs:
    """The scheme that carries most bits in ``channel_uses`` symbols with an outage of at most ``TARGET_OUTAGE``.

    When every scheme fails more often, the one that needs the least SNR: what it sends will most likely be an outage.

    Args:
        snr_db: Es/N0 per channel use.
        channel_uses: symbols there are.
        at_least: payload bits a scheme must carry to be considered.

    Raises:
        BadInputError: when no scheme carries ``at_least`` bits.
    """
    by_rate = sorted(map(Mcs.parse, table()), key=lambda mcs: -mcs.efficiency)
    reliable = [mcs for mcs in by_rate if outage(mcs, snr_db, int(mcs.efficiency * channel_uses)) <= TARGET_OUTAGE]
    for mcs in [*reliable, *sorted(by_rate, key=threshold_db)]:
        if payload_bits(mcs.code, mcs.modulation, channel_uses) >= max(at_least, 8):
            return mcs
    raise BadInputError(f"no modulation and coding scheme gets {at_least} bits into {channel_uses} channel uses")


@cache
def threshold_db(mcs: Mcs) -> float:
    """Es/N0 in dB at which frames of the longest measured length fail once in a thousand times."""
    return table()[str(mcs)][-1].snr_at(_THRESHOLD_FER)


@cache
def table() -> dict[str, list[ErrorRate]]:
    """The committed measurement: error rates by payload size, ascending, of every scheme."""
    rows = json.loads(TABLE.read_text())["rows"]
    rates: dict[str, list[ErrorRate]] = {}
    for row in rows:
        points = tuple((float(snr), int(frames), int(errors)) for snr, frames, errors in row["points"])
        rates.setdefault(row["mcs"], []).append(ErrorRate(row["payload_bits"], points))
    return {name: sorted(found, key=lambda rate: rate.payload_bits) for name, found in rates.items()}


# ---- measurement


def count_errors(
    code: str, modulation: str, bits: int, snr_db: float, frames: int, errors: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Send frames over AWGN until ``frames`` were sent or ``errors`` failed.

    Args:
        code, modulation: of the frames.
        bits: payload bits of a frame.
        snr_db: Es/N0 per channel use.
        frames, errors: the two limits.
        rng: of payloads and noise.

    Returns:
        Frames sent, and frames whose CRC failed or whose bits are wrong.
    """
    width = bits_per_symbol(modulation)
    chain = make_code(code, bits, width)
    variance = noise_variance(snr_db)
    sent = failed = 0
    while sent < frames and failed < errors:
        payload = rng.integers(0, 2, bits, dtype=np.uint8)
        symbols = map_bits(chain.encode(payload), modulation)
        noise = rng.standard_normal(2 * symbols.size, np.float32).view(np.complex64) * np.float32(
            math.sqrt(variance / 2)
        )
        result = chain.decode(demap(symbols + noise, variance, modulation))
        sent += 1
        failed += not (result.crc_ok and np.array_equal(result.bits, payload))
    return sent, failed


def measure(mcs: Mcs, bits: int, seed: int) -> ErrorRate:
    """Measure the waterfall of a scheme, from frames that mostly fail to an error rate of two in a thousand."""
    rng = np.random.default_rng([seed, bits, list(RATES).index(mcs.rate), bits_per_symbol(mcs.modulation)])

    def point(tenths: int, frames: int, errors: int) -> tuple[float, int, int]:
        snr_db = round(tenths * _STEP_DB, 1)
        return (snr_db, *count_errors(mcs.code, mcs.modulation, bits, snr_db, frames, errors, rng))

    # Shannon's limit is a lower bound; from there in steps of 0.5 dB up to the first SNR where a frame arrives.
    tenths = math.floor(10 * 10 * math.log10(2**mcs.efficiency - 1))
    while point(tenths, 20, 20)[2] == 20:
        tenths += 5
    points = list(_waterfall(point, tenths - 5))
    return ErrorRate(bits, tuple(points))


def _waterfall(
    point: Callable[[int, int, int], tuple[float, int, int]], tenths: int
) -> Iterator[tuple[float, int, int]]:
    while True:
        found = point(tenths, 2000, 30)
        yield found
        if found[2] / found[1] <= 2 * _THRESHOLD_FER:
            return
        tenths += 1


def tasks(seed: int) -> list[tuple[str, int, int]]:
    """What is measured: scheme, payload bits and seed of every row."""
    names = [f"{rate}:{modulation}" for modulation, rates in _MEASURED.items() for rate in rates]
    return [(name, bits, seed) for name in names for bits in PAYLOADS]


def measure_row(task: tuple[str, int, int]) -> dict[str, Any]:
    """One row of the table; a row depends on its own task only."""
    name, bits, seed = task
    rate = measure(Mcs.parse(name), bits, seed)
    return {"mcs": name, "payload_bits": bits, "threshold_db": rate.snr_at(_THRESHOLD_FER), "points": rate.points}


def write_table(rows: list[dict[str, Any]], seed: int, out: Path) -> None:
    """Write the table, a row a line."""
    decoder = {"algorithm": ALGORITHM, "schedule": SCHEDULE, "iterations": ITERATIONS, "demapper": "exact"}
    head = {"command": "python -m multisc.systems.mcs", "seed": seed, "decoder": decoder}
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomically(out, (json.dumps(head)[:-1] + ', "rows": [\n' + lines + "\n]}\n").encode())


def main() -> None:
    """Measure every scheme and write the table (some five minutes on two cores)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(args.processes) as pool:
        for row in pool.map(measure_row, tasks(args.seed)):
            rows.append(row)
            print(row["mcs"], row["payload_bits"], row["threshold_db"], flush=True)
    write_table(rows, args.seed, args.out)


if __name__ == "__main__":
    main()
