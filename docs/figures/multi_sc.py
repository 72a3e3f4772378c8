"""The picture of the README: one photograph over the link at several SNRs, through run_flowgraph.py.

    .venv/bin/python docs/figures/multi_sc.py [PHOTO]

Writes multi_sc.png beside this file and prints the numbers of each run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PHOTO = ROOT.parent / "shared" / "data" / "kodak24" / "kodim23.png"
SNRS_DB = (0, 6, 12)
TILE = (384, 256)
LINE = 22


def main() -> None:
    """Run, compose, write."""
    photo = Path(sys.argv[1]) if len(sys.argv) > 1 else PHOTO
    with tempfile.TemporaryDirectory() as folder:
        tiles = [("source", Image.open(photo).convert("RGB"), "")]
        for snr_db in SNRS_DB:
            out = Path(folder) / str(snr_db)
            arguments = ["--image", photo, "--snr", str(snr_db), "--out", out]
            subprocess.run([sys.executable, ROOT / "run_flowgraph.py", *arguments], check=True)
            result = json.loads((out / "result.json").read_text())
            metrics = result["metrics"]
            print(snr_db, {k: round(v, 4) for k, v in metrics.items() if v is not None}, f"CBR {result['cbr']:.4f}")
            text = f"slice PSNR {metrics['slice_psnr_db']:.1f} dB, BLEU {metrics['bleu']:.2f}"
            tiles.append((f"{snr_db} dB", Image.open(out / "received.png").convert("RGB"), text))
    sheet = Image.new("RGB", (2 * TILE[0] + 8, 2 * (TILE[1] + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for index, (name, picture, text) in enumerate(tiles):
        x, y = (index % 2) * (TILE[0] + 8), (index // 2) * (TILE[1] + LINE)
        sheet.paste(picture.resize(TILE, Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 4, y + TILE[1] + 3), f"{name}   {text}", fill="black", font=font)
    sheet.save(HERE / "multi_sc.png", optimize=True)


if __name__ == "__main__":
    main()
