"""Quality against SNR of BPG + LDPC + QAM on the AWGN channel, and of BPG at the capacity of that channel.

Two kinds of independent tasks: what BPG makes of an image in a number of bytes, and how often a scheme's stream of
the full budget fails at an SNR. Each result is kept in a file of its own, so that an interrupted run goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from multisc.codecs import bpg
from multisc.errors import BadInputError
from multisc.evaluation.metrics import MetricUnavailable, ms_ssim, psnr_db
from multisc.files import write_atomically
from multisc.images import load_image
from multisc.phy.fec import ALGORITHM, ITERATIONS, SCHEDULE
from multisc.phy.units import linear
from multisc.systems.budget import channel_uses
from multisc.systems.mcs import TARGET_OUTAGE, Mcs, count_errors, payload_bits

CAPACITY, ENVELOPE = "bpg-at-capacity", "envelope"
_VERSION = 1  # of the kept results
_DECISIVE_ERRORS = 20  # frame errors after which an SNR needs no more frames


@dataclass(frozen=True)
class CurveConfig:
    """What is measured.

    Args:
        images: image files, at least one.
        cbr: channel bandwidth ratio as text, such as "1/12".
        snr_db: Es/N0 values, ascending.
        schemes: modulation and coding schemes as text.
        chroma: "420" or "444".
        frames: streams sent per scheme and SNR, fewer once 20 of them failed.
        seed: of bits and noise.
    """

    images: tuple[Path, ...]
    cbr: str
    snr_db: tuple[float, ...]
    schemes: tuple[str, ...]
    chroma: str = "420"
    frames: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Args:
        curve: the scheme, ``ENVELOPE`` or ``CAPACITY``.
        snr_db: Es/N0.
        mcs: the scheme in use; empty for ``CAPACITY`` and where the envelope has none.
        outage: probability that the receiver has nothing to show, the mean over the images.
        outage_ci95: its confidence interval from the frames that were sent (Clopper-Pearson).
        psnr_db, ms_ssim: mean over the images that get through; None where none does.
        bytes: mean size of their files.
        images: how many images have a BPG file that fits the budget.
    """

    curve: str
    snr_db: float
    mcs: str
    outage: float
    outage_ci95: tuple[float, float]
    psnr_db: float | None
    ms_ssim: float | None
    bytes: float | None
    images: int


# ---- tasks


@dataclass(frozen=True)
class _ImageTask:
    """BPG of one image at the largest quality within each of some numbers of bytes."""

    path: Path
    budgets: tuple[int, ...]
    chroma: str

    def key(self) -> list[Any]:
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return ["image", digest, self.budgets, self.chroma]

    def run(self) -> dict[str, Any]:
        """By budget: None where no file fits, else qp, bytes, PSNR and MS-SSIM."""
        image = load_image(self.path)
        encoder = bpg.PictureEncoder(image, self.chroma)
        by_qp: dict[int, dict[str, float | None]] = {}
        result: dict[str, Any] = {}
        for budget in sorted(self.budgets, reverse=True):
            try:
                found = encoder.fit(budget)
            except BadInputError:
                result[str(budget)] = None
                continue
            if found.qp not in by_qp:
                shown = bpg.decode(found.data).rgb
                by_qp[found.qp] = {"psnr_db": _value(psnr_db, image, shown), "ms_ssim": _value(ms_ssim, image, shown)}
            result[str(budget)] = {"qp": found.qp, "bytes": len(found.data), **by_qp[found.qp]}
        return result


@dataclass(frozen=True)
class _LinkTask:
    """How often a stream of some payload fails."""

    mcs: str
    bits: int
    snr_db: float
    frames: int
    seed: int

    def key(self) -> list[Any]:
        return ["link", *asdict(self).values(), ALGORITHM, SCHEDULE, ITERATIONS]

    def run(self) -> dict[str, Any]:
        """Frames sent and frames failed."""
        scheme = Mcs.parse(self.mcs)
        rng = np.random.default_rng([self.seed, self.bits, round(1000 * (self.snr_db + 100))])
        limits = (self.frames, _DECISIVE_ERRORS)
        sent, failed = count_errors(scheme.code, scheme.modulation, self.bits, self.snr_db, *limits, rng)
        return {"frames": sent, "failed": failed}


def _value(metric: Callable[..., float], *pictures: Any) -> float | None:
    try:
        return metric(*pictures)
    except MetricUnavailable:
        return None


def _run(task: _ImageTask | _LinkTask) -> dict[str, Any]:
    return task.run()


def _results(
    tasks: Sequence[_ImageTask | _LinkTask], kept: Path, jobs: int, progress: Callable[[int, int], None]
) -> dict[_ImageTask | _LinkTask, dict[str, Any]]:
    """Run what has no kept result, in parallel, and keep each result as it comes."""
    kept.mkdir(parents=True, exist_ok=True)
    files, results = {}, {}
    for task in tasks:
        name = hashlib.sha256(json.dumps([_VERSION, *task.key()]).encode()).hexdigest()[:24]
        files[task] = kept / f"{name}.json"
        if files[task].exists():
            results[task] = json.loads(files[task].read_text())
    progress(len(results), len(files))
    missing = [task for task in files if task not in results]
    # Processes of their own, not forks: numba's and x265's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_run, task): task for task in missing}
        try:
            for future in as_completed(futures):
                task = futures[future]
                results[task] = future.result()
                write_atomically(files[task], json.dumps(results[task]).encode())
                progress(len(results), len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


# ---- the curves


def measure(
    config: CurveConfig, work: Path, jobs: int = 0, progress: Callable[[int, int], None] = lambda done, all_: None
) -> dict[str, Any]:
    """Measure all curves.

    Args:
        config: what is measured.
        work: directory of the kept results; a run of the same configuration goes on from there.
        jobs: processes, 0 for one per core.
        progress: called with the number of tasks done and of all.

    Returns:
        What ``curve.json`` holds: configuration, every point, every image at every scheme.

    Raises:
        BadInputError: for an image that cannot be read, images of different size, or an unknown scheme.
    """
    schemes = [Mcs.parse(name) for name in config.schemes]
    sizes = {load_image(path).shape[:2] for path in config.images}
    if len({height * width for height, width in sizes}) != 1:
        found = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise BadInputError(f"the images have different numbers of pixels ({found}): a curve is for one")
    uses = channel_uses(Fraction(config.cbr), *next(iter(sizes)))
    bits = {str(scheme): payload_bits(scheme.code, scheme.modulation, uses) for scheme in schemes}
    capacity = {snr: math.floor(uses * math.log2(1 + linear(snr)) / 8) for snr in config.snr_db}
    budgets = tuple(sorted({*(b // 8 for b in bits.values()), *capacity.values()}))

    image_tasks = [_ImageTask(path, budgets, config.chroma) for path in config.images]
    links = {
        (name, snr): _LinkTask(name, bits[name], snr, config.frames, config.seed)
        for name in bits
        for snr in config.snr_db
        if bits[name]
    }
    tasks: list[_ImageTask | _LinkTask] = [*image_tasks, *links.values()]
    results = _results(tasks, work, jobs or os.cpu_count() or 1, progress)

    pictures = [results[task] for task in image_tasks]
    points = []
    for name in bits:
        shown = [picture[str(bits[name] // 8)] for picture in pictures]
        for snr in config.snr_db:
            link = results[links[name, snr]] if (name, snr) in links else {"frames": 1, "failed": 1}
            points.append(_point(name, name, snr, shown, link))
    points += _envelope(points, config.snr_db)
    for snr in config.snr_db:
        shown = [picture[str(capacity[snr])] for picture in pictures]
        points.append(_point(CAPACITY, "", snr, shown, {"frames": 0, "failed": 0}))
    return {
        "images": [path.name for path in config.images],
        "cbr": config.cbr,
        "channel_uses": uses,
        "snr": "Es/N0 per channel use, dB",
        "chroma": config.chroma,
        "frames": config.frames,
        "seed": config.seed,
        "decoder": {"algorithm": ALGORITHM, "schedule": SCHEDULE, "iterations": ITERATIONS},
        "schemes": {
            name: {
                "payload_bits": bits[name],
                "images": {
                    path.name: picture[str(bits[name] // 8)]
                    for path, picture in zip(config.images, pictures, strict=True)
                },
            }
            for name in bits
        },
        "points": [asdict(point) for point in points],
    }


def _point(curve: str, mcs: str, snr: float, shown: list[dict[str, Any] | None], link: dict[str, int]) -> Point:
    """Join pictures and link: an image gets through when a file of it fits the budget and its stream arrives."""
    pictures = [picture for picture in shown if picture]
    fitting = len(pictures) / len(shown)
    frames, failed = link["frames"], link["failed"]
    low = float(beta.ppf(0.025, failed, frames - failed + 1)) if failed else 0.0
    high = float(beta.ppf(0.975, failed + 1, frames - failed)) if failed < frames else float(frames > 0)
    lost = failed / frames if frames else 0.0
    outage, low, high = (1.0 - fitting * (1.0 - p) for p in (lost, low, high))
    if outage == 1.0:
        pictures = []

    def mean(key: str) -> float | None:
        values = [picture[key] for picture in pictures if picture[key] is not None]
        return round(float(np.mean(values)), 4) if values else None

    return Point(curve, snr, mcs, outage, (low, high), mean("psnr_db"), mean("ms_ssim"), mean("bytes"), len(pictures))


def _envelope(points: Sequence[Point], snrs: Sequence[float]) -> Iterator[Point]:
    """At each SNR the scheme of the highest mean PSNR among those whose outage is at most the target."""
    for snr in snrs:
        here = [p for p in points if p.snr_db == snr and p.outage <= TARGET_OUTAGE and p.psnr_db is not None]
        best = max(here, key=lambda p: p.psnr_db or 0.0, default=None)
        if best is None:
            yield Point(ENVELOPE, snr, "", 1.0, (1.0, 1.0), None, None, None, 0)
        else:
            yield Point(
                ENVELOPE,
                snr,
                best.mcs,
                best.outage,
                best.outage_ci95,
                best.psnr_db,
                best.ms_ssim,
                best.bytes,
                best.images,
            )
