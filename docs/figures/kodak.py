"""Multi-SC on the Kodak images, each through run_flowgraph.py: the numbers of docs/multi-sc.md.

    .venv/bin/python docs/figures/kodak.py --snr 0 20

Writes kodak_multi_sc.json beside this file and prints the means.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from multisc.link.process import OwnInferenceProcess

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KODAK = ROOT.parent / "shared" / "data" / "kodak24"
SHOWN = ("psnr_db", "ms_ssim", "cosine", "bleu_received", "bleu_corrected", "slice_psnr_db")


def main() -> None:
    """Run every image at every SNR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 20.0], metavar="DB")
    parser.add_argument("--images", type=Path, default=KODAK, metavar="DIR")
    args = parser.parse_args()
    rows = []
    with OwnInferenceProcess("embedded") as inference, tempfile.TemporaryDirectory() as folder:
        for snr_db in args.snr:
            for path in sorted(args.images.glob("*.png")):
                arguments = ["--image", path, "--snr", str(snr_db), "--inference", inference.address, "--out", folder]
                command = [sys.executable, ROOT / "run_flowgraph.py", *arguments]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                result = json.loads((Path(folder) / "result.json").read_text())
                measured = result["channel"]["snr_measured_db"]
                row = {"image": path.stem, "snr_db": snr_db, "snr_measured_db": measured, "cbr": result["cbr"]}
                row |= {name: result["metrics"][name] for name in SHOWN}
                row["captions_intact"] = sum(
                    a == b for a, b in zip(result["text"]["sent"], result["text"]["received"], strict=True)
                )
                rows.append(row)
            at = [row for row in rows if row["snr_db"] == snr_db]
            means = {name: np.mean([row[name] for row in at if row[name] is not None]) for name in ("cbr", *SHOWN)}
            worst = max(abs(row["snr_measured_db"] - snr_db) for row in at)
            intact = sum(row["captions_intact"] for row in at)
            line = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            line += f"; {intact} of {4 * len(at)} captions intact; SNR off by at most {worst:.3f} dB"
            print(f"{snr_db:g} dB: {line}")
    (HERE / "kodak_multi_sc.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
