"""How well the embedded FCN finds subjects: the figures of its model card.

    .venv/bin/python docs/figures/subjects.py --data ../shared/data

Writes subjects.json beside this file; some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from multisc.models.profile import EMBEDDED_DIRECTORY
from multisc.models.segmenter import Segmenter
from multisc.training.fcn import measure_voc, overlap
from multisc.training.photographs import load_photographs
from multisc.training.subjects import UNKNOWN, labelled_voc, voc_files

HERE = Path(__file__).parent
SIDE = 480  # of the photographs, as ``multisc train fcn`` measures them


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def middle(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """A box of half the picture's height and width in its middle."""
    height, width = image.shape[:2]
    box = np.zeros((height, width), bool)
    box[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return box


def on_voc(find: Callable[[NDArray[np.uint8]], NDArray[np.bool_]], masks: list[Path]) -> float:
    """Mean IoU with the class that covers most of each VOC photograph."""
    scores = []
    for photograph in map(labelled_voc, masks):
        known = photograph.subject != UNKNOWN
        scores.append(iou(find(photograph.pixels) & known, photograph.subject == 1))
    return round(float(np.mean(scores)), 3)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outlined = [
        photograph for photograph in load_photographs(args.data) if photograph.held_out and photograph.polygons
    ]
    pictures = [photograph.load(SIDE) for photograph in outlined]
    masks = voc_files(args.data)[1]
    segmenter = Segmenter.load(EMBEDDED_DIRECTORY / "fcn")

    def fcn(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return segmenter.segment(image).mask

    report: dict = {"photographs": {"COCO": len(outlined), "VOC": len(masks)}}
    for name, find in {"box in the middle": middle, "fcn": fcn}.items():
        found = overlap(outlined, [find(picture) for picture in pictures])
        report[name] = {key: round(value, 3) for key, value in found.items()} | {"voc_subject": on_voc(find, masks)}
    report["fcn"]["voc_union"] = measure_voc(segmenter, args.data)["voc_iou"]
    held = []
    for mask in masks:
        photograph = labelled_voc(mask)
        x, y, w, h = segmenter.segment(photograph.pixels).box
        subject = photograph.subject == 1
        held.append(subject[y : y + h, x : x + w].sum() / subject.sum())
    report["share of the VOC subject in the box"] = round(float(np.mean(held)), 3)
    start = time.process_time()
    for picture in pictures:
        segmenter.segment(picture)
    report["processor seconds a picture"] = round((time.process_time() - start) / len(pictures), 3)
    print(report)
    (HERE / "subjects.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
