"""Uncoded bit error rate over fading, through the whole waveform with real synchronisation, beside theory.

Every burst has a channel of its own. Its frequency response is probed with an impulse, and theory is the error rate
of QPSK, Q(sqrt(|H|^2 Es/N0)), averaged over the subcarriers of the very bursts that were received: deep fades hide
whole bursts, and a receiver cannot err on bits it never saw. The line is the average over all fades in closed form,
(1 - sqrt(g / (1 + g))) / 2 with g = Es/N0 / 2, which theory approaches where no burst is lost.

    .venv/bin/python docs/figures/fading_ber.py [BURSTS]

writes fading_ber.json and fading_ber.png beside this file, and prints how many dB the receiver is off theory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from multisc.channel import make_channel
from multisc.phy import units
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver
from multisc.phy.transport import demodulate, modulate
from multisc.streams import Stream

SNRS_DB = (0, 4, 8, 12, 16, 20, 24)
CHANNELS = {
    "Rayleigh, flat, one gain per burst": {"kind": "rayleigh"},
    "TDL-A, 300 ns, one draw per burst": {"kind": "tdl", "profile": "A", "delay_spread_s": 300e-9},
    "TDL-C, 1 us, 10 Hz Doppler": {"kind": "tdl", "profile": "C", "delay_spread_s": 1e-6, "doppler_hz": 10.0},
}
LEAD = 3000  # samples before the burst


def closed_form(esn0_db: float) -> float:
    """Mean bit error rate of QPSK over all Rayleigh fades."""
    ebn0 = units.linear(units.esn0_to_ebn0_db(esn0_db, 2))
    return 0.5 * (1.0 - np.sqrt(ebn0 / (1.0 + ebn0)))


def conditional(gains: np.ndarray, esn0_db: float) -> float:
    """Mean bit error rate of QPSK over subcarriers of known power gains."""
    return float(ndtr(-np.sqrt(gains * units.linear(esn0_db))).mean())


def power_gains(config: PhyConfig, options: dict, seed: int) -> np.ndarray:
    """Power gain of each occupied subcarrier in the middle of the burst of a draw of the channel."""
    impulse = np.zeros(LEAD + 4000, np.complex64)
    impulse[LEAD + 3000] = 1.0
    response = make_channel(seed=seed, noise_variance=0.0, **options).process(impulse)[LEAD + 3000 :]
    half = config.occupied // 2
    used = np.r_[1 : half + 1, -half:0]
    return np.abs(np.fft.fft(response[: config.fft_size])[used]) ** 2


def measure(options: dict, esn0_db: float, count: int) -> dict:
    """Send bursts, each over its own draw of the channel."""
    config = PhyConfig()
    rng = np.random.default_rng(int(esn0_db))
    silence = np.zeros(LEAD, np.complex64)
    errors = bits = 0
    heard = []
    for k in range(count):
        sent = rng.integers(0, 2, 4000, dtype=np.uint8)
        burst = BurstTransmitter(config).transmit(k, [modulate(Stream("bits", sent, "qpsk"))])[0]
        channel = make_channel(seed=k, noise_variance=units.time_noise_variance(esn0_db), **options)
        receiver = BurstReceiver(config)
        bursts = receiver.push(channel.process(np.concatenate([silence, burst, silence]))) + receiver.flush()
        for found in bursts[:1]:
            segment = found.segments[0]
            received = demodulate(segment.entry.descriptor, segment.symbols, segment.noise_variance).data
            errors += int((received != sent).sum())
            bits += sent.size
            heard.append(power_gains(config, options, k))
    gains = np.array(heard)
    ber = errors / bits
    loss = brentq(lambda x: conditional(gains, esn0_db - x) - ber, -10, 20) if errors else float("nan")
    expected = conditional(gains, esn0_db)
    return {"esn0_db": esn0_db, "lost": count - len(heard), "bits": bits, "errors": errors, "ber": ber,
            "theory": expected, "loss_db": round(loss, 3)}  # fmt: skip


def main(count: int) -> None:
    """Measure, write, plot."""
    here = Path(__file__).parent
    rows = {}
    for name, options in CHANNELS.items():
        rows[name] = [measure(options, snr, count) for snr in SNRS_DB]
        print(name)
        for p in rows[name]:
            print(
                f"{p['esn0_db']:4} dB: BER {p['ber']:.3e}, theory {p['theory']:.3e}, off by {p['loss_db']:.2f} dB, "
                f"closed form {closed_form(p['esn0_db']):.3e}, lost {p['lost']}/{count}"
            )
    (here / "fading_ber.json").write_text(json.dumps({"bursts": count, "channels": rows}, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    fine = np.linspace(SNRS_DB[0], SNRS_DB[-1], 100)
    axes.semilogy(fine, [closed_form(s) for s in fine], "k-", lw=0.8, label="Rayleigh, all fades, closed form")
    for (name, points), mark in zip(rows.items(), "os^", strict=True):
        (line,) = axes.semilogy([p["esn0_db"] for p in points], [p["theory"] for p in points], "--", lw=0.8)
        axes.semilogy(
            [p["esn0_db"] for p in points],
            [p["ber"] for p in points],
            mark,
            color=line.get_color(),
            label=name,
            fillstyle="none",
        )
    axes.set(xlabel="mean Es/N0 (dB)", ylabel="bit error rate of QPSK, uncoded")
    axes.set_title("markers: measured; dashed: theory for the bursts received", fontsize=9)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(here / "fading_ber.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
