"""Frame error rates of the 5G NR LDPC codes beside the curves AFF3CT publishes.

Writes ldpc_fer.json and ldpc_fer.png beside this file and prints the horizontal distance of each point in dB:

    .venv/bin/python docs/figures/ldpc_fer.py

The published values are those of https://github.com/aff3ct/error_rate_references, LDPC/AWGN/BPSK, AFF3CT 4.5.0,
100 frame errors a point: a published point is uncertain by +-20 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from multisc.phy.montecarlo import Link

# (N, K, decoder, schedule, iterations) -> {Eb/N0 dB: frame error rate}
PUBLISHED = {
    (40, 20, "spa", "flooding", 20): {1: 4.70e-1, 2: 2.62e-1, 3: 9.85e-2, 4: 2.00e-2, 5: 4.07e-3, 6: 5.31e-4},
    (40, 20, "offset-minsum", "flooding", 20): {
        1: 5.09e-1,
        2: 2.96e-1,
        3: 1.13e-1,
        4: 1.99e-2,
        5: 3.84e-3,
        6: 4.42e-4,
    },
    (40, 20, "offset-minsum", "layered", 10): {
        1: 4.68e-1,
        2: 3.07e-1,
        3: 9.27e-2,
        4: 1.85e-2,
        5: 3.09e-3,
        6: 4.22e-4,
    },
    (1024, 512, "spa", "flooding", 20): {
        1: 4.77e-1,
        1.25: 2.33e-1,
        1.5: 6.23e-2,
        1.75: 1.69e-2,
        2: 2.80e-3,
        2.25: 4.08e-4,
    },
    (1024, 512, "spa", "layered", 10): {
        1: 5.05e-1,
        1.25: 2.46e-1,
        1.5: 7.38e-2,
        1.75: 2.02e-2,
        2: 3.65e-3,
        2.25: 6.28e-4,
    },
    (1024, 512, "offset-minsum", "flooding", 20): {
        1.25: 3.91e-1,
        1.5: 1.52e-1,
        1.75: 3.84e-2,
        2: 5.61e-3,
        2.25: 6.62e-4,
    },
    (1024, 512, "offset-minsum", "layered", 10): {
        1.25: 3.84e-1,
        1.5: 1.86e-1,
        1.75: 5.56e-2,
        2: 9.14e-3,
        2.25: 1.14e-3,
    },
    (12288, 6144, "spa", "flooding", 20): {1: 3.88e-1, 1.1: 1.34e-1, 1.2: 2.18e-2, 1.3: 1.88e-3},
    (12288, 6144, "offset-minsum", "flooding", 20): {1.2: 3.72e-1, 1.3: 1.21e-1, 1.4: 1.49e-2},
    (12288, 6144, "offset-minsum", "layered", 10): {
        1.2: 6.61e-1,
        1.3: 2.57e-1,
        1.4: 6.17e-2,
        1.5: 7.98e-3,
        1.6: 4.11e-4,
    },
}
HERE = Path(__file__).parent


def measure(errors: int) -> list[dict]:
    """Simulate every published point and print it beside the published value."""
    rows = []
    for (n, k, decoder, schedule, iterations), points in PUBLISHED.items():
        link = Link(f"nr:{n}:{k}", "bpsk", decoder, schedule, iterations)
        ebn0, fer = np.array(list(points)), np.array(list(points.values()))
        for at, published in points.items():
            rates = link.simulate(at, min_frame_errors=errors, max_frames=2_000_000, seed=1)
            # Where the published curve (straight in log FER between its points) has our frame error rate.
            slope = np.gradient(np.log(fer), ebn0)[list(points).index(at)]
            distance = (np.log(published) - np.log(rates.fer)) / slope
            rows.append(
                {
                    "code": f"nr:{n}:{k}",
                    "decoder": decoder,
                    "schedule": schedule,
                    "iterations": iterations,
                    "ebn0_db": at,
                    "fer": rates.fer,
                    "ci95": rates.ci95,
                    "frames": rates.frames,
                    "published": published,
                    "distance_db": float(distance),
                }
            )
            print(
                f"nr:{n}:{k:<5} {decoder:14} {schedule:9} {at:5.2f} dB  {rates.fer:9.2e}"
                f"  published {published:9.2e}  {distance:+.3f} dB",
                flush=True,
            )
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Draw our points with their intervals over the published curves, one panel per length."""
    codes = list(dict.fromkeys(row["code"] for row in rows))
    figure, panels = plt.subplots(1, len(codes), figsize=(13, 4.6), sharey=True, layout="constrained")
    for panel, code in zip(panels, codes, strict=True):
        kinds = dict.fromkeys((r["decoder"], r["schedule"], r["iterations"]) for r in rows if r["code"] == code)
        for colour, kind in enumerate(kinds):
            own = [r for r in rows if r["code"] == code and (r["decoder"], r["schedule"], r["iterations"]) == kind]
            x, y = np.array([r["ebn0_db"] for r in own]), np.array([r["fer"] for r in own])
            spread = np.abs(np.array([r["ci95"] for r in own]).T - y)
            label = f"{kind[0]}, {kind[1]}, {kind[2]} iterations"
            panel.plot(x, [r["published"] for r in own], color=f"C{colour}", linewidth=1, alpha=0.7)
            panel.errorbar(x, y, spread, fmt="o", markersize=4, color=f"C{colour}", capsize=2, label=label)
        panel.set(yscale="log", xlabel="Eb/N0 in dB", title=f"N = {code.split(':')[1]}, K = {code.split(':')[2]}")
        panel.grid(which="both", alpha=0.25)
        panel.legend(fontsize=8, loc="lower left")
    panels[0].set_ylabel("frame error rate")
    figure.suptitle("5G NR LDPC, BPSK, AWGN: this project (points, 95 % intervals) and AFF3CT (lines)")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, or plot again what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", type=int, default=100, help="frame errors a point; default: %(default)s")
    parser.add_argument("--plot-only", action="store_true", help="use ldpc_fer.json as it is")
    args = parser.parse_args()
    data = HERE / "ldpc_fer.json"
    if not args.plot_only:
        data.write_text(json.dumps(measure(args.errors), indent=1) + "\n")
    plot(json.loads(data.read_text()), HERE / "ldpc_fer.png")


if __name__ == "__main__":
    main()
