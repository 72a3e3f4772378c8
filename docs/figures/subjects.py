"""How well the embedded FCN, its labels and its teacher find subjects: the figures of the FCN's model card.

    .venv/bin/python docs/figures/subjects.py --data ../shared/data --work models/work/image

``--work`` is that of ``multisc train fcn``: what is kept there (the teacher's features, the labels) is not made
again. Writes subjects.json beside this file. The cross-validation takes a quarter of an hour on one core, the rest
minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from multisc.models.fcn import Fcn
from multisc.models.profile import load_profile
from multisc.models.segmenter import Segmenter, main_region
from multisc.training.fcn import CLASS_COUNT, overlap
from multisc.training.photographs import Photograph, load_photographs
from multisc.training.subjects import (
    PROBES,
    canvas_size,
    fit_probe,
    label_subjects,
    principal,
    subject_map,
    teacher_features,
)
from multisc.training.teacher import TEACHER_FILE, TEACHER_SIDE

HERE = Path(__file__).parent
PARTS = 5
SIDES = (192, 224, 256, 320)


def on_photograph(canvas: NDArray, size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge maps (..., h, w) of the teacher's canvas to it, and cut the photograph out."""
    maps = torch.from_numpy(np.asarray(canvas, np.float32)).reshape(1, -1, *canvas.shape[-2:])
    large = functional.interpolate(maps, (TEACHER_SIDE, TEACHER_SIDE), mode="bilinear", align_corners=False)[0]
    return large[:, : size[0], : size[1]].numpy()


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def middle(size: tuple[int, int]) -> NDArray[np.bool_]:
    """A box of half the picture's height and width in its middle."""
    box = np.zeros(size, bool)
    box[size[0] // 4 : size[0] - size[0] // 4, size[1] // 4 : size[1] - size[1] // 4] = True
    return box


def scores(
    photographs: list[Photograph], rows: NDArray[np.intp], find: Callable[[int], NDArray[np.bool_]]
) -> dict[str, float]:
    """Mean IoU over annotated photographs: with the largest category, and with the one that fits best."""
    found = overlap([photographs[row] for row in rows], [find(row) for row in rows])
    return {"largest": round(found["subject_iou"], 3), "best_fitting": round(found["best_group_iou"], 3)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: %(default)s")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    photographs = load_photographs(args.data)
    sizes = {row: canvas_size(photograph) for row, photograph in enumerate(photographs)}
    raw = teacher_features(photographs, args.data / TEACHER_FILE, args.work / "teacher_features.npy")
    features = principal(raw)
    labels = label_subjects(photographs, features, args.work / "subjects.npy")
    outlined = np.array([bool(photograph.polygons) for photograph in photographs])
    held_out = np.array([photograph.held_out for photograph in photographs])
    seen, unseen = np.flatnonzero(outlined & ~held_out), np.flatnonzero(outlined & held_out)
    segmenter = Segmenter.load(load_profile("embedded").fcn)

    def of_labels(row: int) -> NDArray[np.bool_]:
        return main_region(on_photograph(labels[row] / 255.0, sizes[row])[0])[0]

    def of_teacher(row: int) -> NDArray[np.bool_]:
        logits = raw[row][..., -CLASS_COUNT:].transpose(2, 0, 1)
        return on_photograph(logits, sizes[row]).argmax(0) > 0

    def of_fcn(row: int) -> NDArray[np.bool_]:
        return segmenter.segment(photographs[row].load(TEACHER_SIDE)).mask[: sizes[row][0], : sizes[row][1]]

    report: dict = {"photographs": {"outlined, for the labels": len(seen), "outlined, held out": len(unseen)}}
    finders = {"box in the middle": lambda row: middle(sizes[row]), "teacher": of_teacher, "labels": of_labels}
    report["held out"] = {
        name: scores(photographs, unseen, find) for name, find in (finders | {"fcn": of_fcn}).items()
    }
    print(report, flush=True)

    # The network's working size, and what the slice's box holds, on held-out photographs that nobody outlined.
    others = np.flatnonzero(held_out & ~outlined)
    network = segmenter._model
    assert isinstance(network, Fcn)
    config = network.config
    agreement = {}
    for side in SIDES:
        network.config = replace(config, long_side=side)
        agreement[side] = round(float(np.mean([iou(of_fcn(row), of_labels(row)) for row in others])), 3)
    network.config = config
    held = []
    for row in others:
        label = of_labels(row)
        x, y, w, h = segmenter.segment(photographs[row].load(TEACHER_SIDE)).box
        held.append(label[y : y + h, x : x + w].sum() / label.sum())
    report["agreement with the labels"] = {"photographs": len(others), "by long side": agreement}
    report["share of the label in the box"] = round(float(np.mean(held)), 3)
    print(report, flush=True)

    folds: dict[int, NDArray[np.bool_]] = {}
    for part in np.array_split(np.random.default_rng(0).permutation(seen), PARTS):
        probes = [fit_probe(photographs, features, np.setdiff1d(seen, part), seed) for seed in range(PROBES)]
        for row in part:
            canvas = subject_map(probes, features[row], sizes[row]) / 255.0
            folds[row] = main_region(on_photograph(canvas, sizes[row])[0])[0]
    report["cross-validation of the labels"] = scores(photographs, seen, folds.__getitem__)
    print(report)
    (HERE / "subjects.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
