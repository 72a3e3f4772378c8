"""BLEU of captions against SNR, for every mode of the text channel, with and without LDPC, before and after BART.

Writes text_channel.json and text_channel.png beside this file; the sentences are those that no training saw:

    .venv/bin/python docs/figures/text_channel.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from multisc.codecs.text import letters
from multisc.models.captioner import Captioner
from multisc.models.corrector import Corrector
from multisc.models.profile import load_profile
from multisc.phy.transport import channel_uses
from multisc.training.bart import bleu
from multisc.training.channel import NoisyCaptions
from multisc.training.data import load_caption_data

# About 16 channel uses a token each: (mode, modulation, code, coefficients per token)
SCHEMES: tuple[tuple[str, str, str, int | None], ...] = (
    ("embedding", "qpsk", "none", 32),
    ("embedding", "qpsk", "nr:2/3", 20),
    ("token", "bpsk", "none", None),
    ("token", "qpsk", "nr:2/5", None),
    ("byte", "qpsk", "none", None),
    ("byte", "16qam", "nr:1/2", None),
)
SNR_DB = np.arange(-4.0, 13.0)
HERE = Path(__file__).parent


def measure(data: Path, count: int) -> list[dict]:
    """Send held-out sentences through every scheme at every SNR."""
    profile = load_profile("embedded")
    captioner, corrector = Captioner.load(profile.llava), Corrector.load(profile.bart)
    held_out = load_caption_data(data).held_out_sentences[::2]
    sent = list(held_out[:: len(held_out) // count][:count])
    length = sum(len(captioner.encode(text)) for text in sent)
    tokens = corrector.tokens_of(captioner.processor.tokenizer, len(captioner.table))
    rows = []
    for mode, modulation, code, dimensions in SCHEMES:
        channel = NoisyCaptions(captioner, mode, modulation, code, dimensions)
        uses = sum(channel_uses(channel.stream(text)) for text in sent) / length
        for snr_db in SNR_DB:
            readings = channel.read_all(sent, float(snr_db), np.random.default_rng(1))
            received = [reading.text for reading in readings]
            spell = letters if mode == "byte" else captioner.encode
            chosen = corrector.correct_readings(readings, None, spell)
            corrected = chosen if mode == "byte" else corrector.correct_readings(readings, tokens, spell)
            row = {
                "mode": mode,
                "modulation": modulation,
                "code": code,
                "uses_per_token": round(uses, 2),
                "snr_db": float(snr_db),
                "bleu_received": round(bleu(received, sent), 4),
                "bleu_corrected": round(bleu(corrected, sent), 4),
                "bleu_corrected_without_common_tokens": round(bleu(chosen, sent), 4),
                "captions_wrong": round(float(np.mean([a != b for a, b in zip(received, sent, strict=True)])), 4),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Draw one panel without code and one with."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 5.4), sharey=True, layout="constrained")
    colours = {"embedding": "C0", "token": "C1", "byte": "C2"}
    for panel, title in zip(panels, ("without code", "with LDPC"), strict=True):
        for mode, colour in colours.items():
            own = [r for r in rows if r["mode"] == mode and (r["code"] != "none") == (title == "with LDPC")]
            x, first = [r["snr_db"] for r in own], own[0]
            code = "" if first["code"] == "none" else f" {first['code']}"
            label = f"{mode}: {first['modulation']}{code}, {first['uses_per_token']:.1f} uses a token"
            panel.plot(x, [r["bleu_corrected"] for r in own], color=colour, marker="o", markersize=4, label=label)
            panel.plot(x, [r["bleu_received"] for r in own], color=colour, linestyle="--", marker="x", markersize=4)
        panel.set(xlabel="Es/N0 per channel use in dB", title=title, xlim=(SNR_DB[0], SNR_DB[-1]), ylim=(0, 1.02))
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    panels[0].set_ylabel("corpus BLEU-4 against the sent captions")
    figure.suptitle("Captions over white Gaussian noise: as received (dashed) and after BART (solid)")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, or plot again what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: %(default)s")
    parser.add_argument("--captions", type=int, default=100, help="sentences a point; default: %(default)s")
    parser.add_argument("--plot-only", action="store_true", help="use text_channel.json as it is")
    args = parser.parse_args()
    data = HERE / "text_channel.json"
    if not args.plot_only:
        data.write_text(json.dumps(measure(args.data, args.captions), indent=1) + "\n")
    plot(json.loads(data.read_text()), HERE / "text_channel.png")


if __name__ == "__main__":
    main()
