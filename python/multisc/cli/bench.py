"""Measure speed beside other implementations, all in one run on this machine.

  ldpc   LDPC decoding, beside pyldpc and, where installed, gr-fec and Sionna
  phy    transmitter and receiver, beside GNU Radio's ofdm_tx and ofdm_rx
  link   the link to the inference process, beside plain ZeroMQ

examples:
  multisc bench ldpc
  multisc bench ldpc --json --seconds 5
"""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any

from multisc.cli.arguments import finite_float

BENCHES = ("ldpc", "phy", "link")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("what", choices=BENCHES, metavar="|".join(BENCHES))
    parser.add_argument("--seconds", type=finite_float, default=2.0, help="time per row; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and print: module ``multisc.bench.WHAT`` has ``measure(seconds) -> {"rows": [...], ...}``."""
    result = importlib.import_module(f"multisc.bench.{args.what}").measure(seconds=args.seconds)
    print(json.dumps(result) if args.json else _table(result), flush=True)
    return 0


def _table(result: dict[str, Any]) -> str:
    """Columns are the keys of the rows in their order; what is not a row follows below."""
    rows = result["rows"]
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    for key, value in result.items():
        if key != "rows" and value != {}:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
