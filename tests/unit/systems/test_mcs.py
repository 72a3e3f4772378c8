"""Modulation and coding schemes: the committed table against the chain it was measured with, and against Shannon."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from multisc.errors import BadInputError
from multisc.phy.fec import ALGORITHM, ITERATIONS, RATES, SCHEDULE, make_code
from multisc.phy.modulation import bits_per_symbol
from multisc.systems import mcs
from multisc.systems.mcs import ErrorRate, Mcs, choose, count_errors, outage, payload_bits, table, threshold_db


def test_table_was_measured_with_the_decoder_in_use() -> None:
    head = json.loads(mcs.TABLE.read_text())
    assert head["decoder"] == {
        "algorithm": ALGORITHM,
        "schedule": SCHEDULE,
        "iterations": ITERATIONS,
        "demapper": "exact",
    }
    assert head["command"] == "python -m multisc.systems.mcs"
    assert set(mcs.LITERATURE) <= set(table())


@pytest.mark.parametrize("name", ["1/3:qpsk", "1/2:16qam", "2/3:64qam", "5/6:256qam"])
def test_table_agrees_with_a_fresh_simulation(name: str) -> None:
    """At the measured point nearest to an error rate of one half, within 4 standard deviations of both counts."""
    scheme = Mcs.parse(name)
    rate = table()[name][0]
    snr_db, frames, errors = min(rate.points, key=lambda point: abs(point[2] / point[1] - 0.5))
    rng = np.random.default_rng(7)
    sent, failed = count_errors(scheme.code, scheme.modulation, rate.payload_bits, snr_db, 400, 400, rng)
    p = (errors + failed) / (frames + sent)
    deviation = math.sqrt(p * (1 - p) * (1 / frames + 1 / sent))
    assert abs(failed / sent - errors / frames) < 4 * deviation


@pytest.mark.parametrize("name", sorted(table()))
def test_threshold_lies_within_2_db_above_shannon(name: str) -> None:
    scheme = Mcs.parse(name)
    limit = 10 * math.log10(2**scheme.efficiency - 1)
    # Square QAM falls short of Gaussian inputs by up to 1.53 dB, the code of 8192 bits by about 1 dB.
    assert limit < threshold_db(scheme) < limit + 2.6


def test_thresholds_rise_with_the_rate() -> None:
    for modulation in ("qpsk", "16qam", "64qam", "256qam"):
        names = [f"{rate}:{modulation}" for rate in RATES if f"{rate}:{modulation}" in table()]
        thresholds = [threshold_db(Mcs.parse(name)) for name in names]
        assert thresholds == sorted(thresholds)


def test_longer_frames_need_less_snr() -> None:
    for name, (short, long) in table().items():
        assert long.snr_at(1e-3) < short.snr_at(1e-3), name


@pytest.mark.parametrize(
    ("code", "modulation", "uses"),
    [
        ("nr:1/2", "16qam", 98304),
        ("nr:2/3", "64qam", 196608),
        ("nr:1/5", "qpsk", 1000),
        ("nr:8/9", "256qam", 77),
        ("pyldpc:648:3:6", "qpsk", 5000),
    ],
)
def test_payload_is_the_largest_that_fits(code: str, modulation: str, uses: int) -> None:
    width = bits_per_symbol(modulation)
    bits = payload_bits(code, modulation, uses)
    assert bits % 8 == 0
    assert make_code(code, bits, width).coded_bits <= uses * width
    assert make_code(code, bits + 8, width).coded_bits > uses * width


def test_worked_example_of_the_documentation() -> None:
    """docs/explanation/bpg-ldpc.md: 768x512 at CBR 1/12, rate 1/2, 16-QAM."""
    assert payload_bits("nr:1/2", "16qam", 768 * 512 * 3 // 12) == 196008
    assert payload_bits("nr:1/2", "16qam", 0) == 0


def test_outage_of_a_long_payload_is_that_of_many_frames() -> None:
    scheme = Mcs.parse("1/2:16qam")
    rate = table()["1/2:16qam"][-1]
    snr_db = rate.snr_at(1e-2)
    fer = 10 ** rate.log10_fer(snr_db)
    assert outage(scheme, snr_db, rate.payload_bits) == pytest.approx(fer)
    assert outage(scheme, snr_db, 10 * rate.payload_bits) == pytest.approx(1 - (1 - fer) ** 10)
    assert outage(scheme, snr_db - 3, rate.payload_bits) == 1.0
    assert outage(scheme, snr_db + 3, rate.payload_bits) < 1e-9


def test_error_rate_interpolates_its_points() -> None:
    rate = ErrorRate(100, ((1.0, 100, 90), (1.1, 100, 10), (1.2, 10000, 10)))
    assert 10 ** rate.log10_fer(1.1) == pytest.approx(0.1)
    assert rate.log10_fer(1.15) == pytest.approx(-2)
    assert rate.log10_fer(1.3) == pytest.approx(-5)
    assert rate.log10_fer(0.0) == 0.0
    assert rate.snr_at(1e-2) == pytest.approx(1.15, abs=0.011)


def test_choice_carries_more_the_better_the_channel() -> None:
    uses = 98304
    carried = []
    for snr_db in np.arange(-2.5, 26.0, 1.0):
        scheme = choose(float(snr_db), uses)
        bits = payload_bits(scheme.code, scheme.modulation, uses)
        assert outage(scheme, float(snr_db), bits) <= mcs.TARGET_OUTAGE
        assert bits < uses * math.log2(1 + 10 ** (snr_db / 10))  # below capacity
        carried.append(bits)
    assert carried == sorted(carried)
    assert len(set(carried)) > 12


def test_choice_below_every_threshold_is_the_most_robust_that_carries_enough() -> None:
    assert choose(-20.0, 98304) == Mcs("1/5", "qpsk")
    assert choose(-20.0, 98304, 50000) == Mcs("1/3", "qpsk")
    with pytest.raises(BadInputError, match="no modulation and coding scheme"):
        choose(10.0, 100, 10000)
    with pytest.raises(BadInputError):
        choose(10.0, 1)


def test_an_outage_is_what_happens_below_the_threshold() -> None:
    rng = np.random.default_rng(0)
    scheme = choose(-6.0, 5000)
    bits = payload_bits(scheme.code, scheme.modulation, 5000)
    assert count_errors(scheme.code, scheme.modulation, bits, -6.0, 20, 20, rng) == (20, 20)


@pytest.mark.parametrize("text", ["", "1/2", "1/2:8psk", "0.5:qpsk", "1/2:16qam:x", "auto"])
def test_refuses_what_is_no_scheme(text: str) -> None:
    with pytest.raises(BadInputError, match=r"must be auto or RATE:MODULATION"):
        Mcs.parse(text)


def test_refuses_the_outage_of_a_scheme_that_was_not_measured() -> None:
    with pytest.raises(BadInputError, match="not in the table"):
        outage(Mcs("8/9", "bpsk"), 0.0, 1000)
