"""The checkpoints of the models: what there is, fetching, and checking.

  list    the parts of every profile: name, revision, licence, sizes, and whether they are here
  fetch   download a profile; an attempt that was broken off goes on where it stopped
  verify  check that a profile is complete, as published, and loads; exit code 1 when it is not

examples:
  multisc models list
  multisc models fetch --models foundation
  multisc models fetch --models foundation --to models && multisc serve --models models
  multisc models verify --models foundation --parts llava,bart
  HF_ENDPOINT=https://hub.example.org multisc models fetch --models foundation
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from multisc.errors import BadInputError
from multisc.models import hub, verify
from multisc.models.profile import CATALOGUE, PARTS, Profile, load_profile


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("action", choices=("list", "fetch", "verify"), metavar="list|fetch|verify")
    parser.add_argument(
        "--models", metavar="PROFILE", help="embedded, foundation, foundation-7b or a directory; list: default all"
    )
    parser.add_argument("--parts", metavar="PART,...", help=f"default: all of the profile; of {', '.join(PARTS)}")
    parser.add_argument("--to", type=Path, metavar="DIR", help="fetch into a directory that --models takes")
    parser.add_argument("--json", action="store_true", help="list: as JSON")


def run(args: argparse.Namespace) -> int:
    """List, fetch or verify."""
    if args.to is not None and args.action != "fetch":
        raise BadInputError("--to DIR goes with fetch")
    if args.action == "list":
        names = [args.models] if args.models else ["embedded", *CATALOGUE]
        rows = [row for name in names for row in rows_of(load_profile(name))]
        print(json.dumps({"rows": rows}) if args.json else table(rows))
        return 0
    profile = load_profile(args.models or ("foundation" if args.action == "fetch" else "embedded"))
    parts = _parts(args.parts, profile)
    if args.action == "fetch":
        return _fetch(profile, parts, args.to)
    problems = verify.verify(profile, parts, lambda line: print(line, file=sys.stderr))
    for line in problems:
        print(line)
    if not problems:
        print(f"{profile.name}: {', '.join(parts)}: all well")
    return 1 if problems else 0


def _parts(text: str | None, profile: Profile) -> tuple[str, ...]:
    parts = tuple(profile.sources) if text is None else tuple(text.split(","))
    for part in parts:
        if part not in profile.sources:
            raise BadInputError(f"--parts {part}: {profile.name} has {', '.join(profile.sources)}")
    return parts


def _fetch(profile: Profile, parts: tuple[str, ...], to: Path | None) -> int:
    if profile.name not in CATALOGUE:
        raise BadInputError(f"--models {profile.name}: nothing to fetch; must be one of {', '.join(CATALOGUE)}")
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        (to / verify.ORIGIN).write_text(profile.name + "\n")
    for part in parts:
        checkpoint = CATALOGUE[profile.name].get(part)
        if checkpoint is None:
            continue  # trained here, not published
        print(f"{part}: {checkpoint.repository}, about {_size(checkpoint.download)}", file=sys.stderr)
        with tqdm(unit="B", unit_scale=True, desc=part, disable=None, leave=False) as bar:

            def show(done: int, total: int, bar: Any = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            print(f"{part}: {hub.fetch_checkpoint(checkpoint, to / part if to else None, show)}")
    return 0


def rows_of(profile: Profile) -> list[dict[str, Any]]:
    """Describe the parts of a profile.

    Returns:
        For each part: "profile", "part", "name", "revision", "licence", "download_bytes" (0 for what comes with this
        package or is a directory), "disk_bytes" (what is here; null when it is not), "gpu_bytes" (of the weights at
        half precision), "present".
    """
    rows = []
    for part, source in profile.sources.items():
        checkpoint = verify.published(profile).get(part)
        directory = verify.directory_of(profile, part)
        disk = None
        weights = checkpoint.parameters * 2 if checkpoint else None
        if directory is not None:
            files = [file for file in directory.rglob("*") if file.is_file()]
            disk = sum(file.stat().st_size for file in files)
            weights = weights or sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
        rows.append(
            {
                "profile": profile.name,
                "part": part,
                "name": checkpoint.repository if checkpoint else str(Path(source).name),
                "revision": checkpoint.revision if checkpoint else "",
                "licence": checkpoint.licence if checkpoint else "see its README.md",
                "download_bytes": checkpoint.download if checkpoint else 0,
                "disk_bytes": disk,
                "gpu_bytes": weights,
                "present": directory is not None,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows of ``rows_of`` out for people."""
    head = ("profile", "part", "name", "revision", "licence", "download", "disk", "GPU", "here")
    cells = [head]
    for row in rows:
        cells.append(
            (
                row["profile"],
                row["part"],
                row["name"],
                row["revision"][:12] or "-",
                row["licence"],
                _size(row["download_bytes"]),
                _size(row["disk_bytes"]),
                _size(row["gpu_bytes"]),
                "yes" if row["present"] else "no",
            )
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    for name in dict.fromkeys(row["profile"] for row in rows):
        chosen = [row for row in rows if row["profile"] == name]
        sums = [_size(sum(row[key] or 0 for row in chosen)) for key in ("download_bytes", "gpu_bytes")]
        lines.append(f"{name}: {sums[0]} to download, {sums[1]} of weights on a GPU when all parts are loaded")
    return "\n".join(lines)


def _size(count: int | None) -> str:
    if not count:
        return "-"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
