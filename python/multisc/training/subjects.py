"""What the FCN learns from: photographs with the class of each pixel, and which pixels belong to the main subject.

The main subject is what covers most of the photograph: all objects of one class or category, so that two parrots are
one subject. VOC's masks and COCO's polygons say where it is. ``objects1000`` says only what a photograph shows; there
the pretrained classifier's class activation map (Zhou et al. 2016) of the right class shows where, roughly.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from multisc.errors import BadInputError
from multisc.models.efficientnet_lite import DEVIATION, MEAN, EfficientNetLite
from multisc.training.photographs import Photograph

# The VOC classes, and "object" for every annotated category that VOC does not know.
# fmt: off
CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    "object",
]
# fmt: on
VOC_NAMES = {
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
UNKNOWN = 255  # in maps: says nothing about this pixel
LOADED_SIDE = 320  # of the longer side, in pixels
SURE_SUBJECT, SURE_REST = 0.5, 0.15  # activation, as a share of the picture's highest
LEAST_SURE = 0.3  # the classifier's probability of the right class, below which its map is not used


@dataclass(frozen=True)
class Labelled:
    """A photograph and what is known of its pixels.

    Args:
        pixels: uint8 RGB (H, W, 3).
        classes: uint8 (H, W), indices into ``CLASSES``, or ``UNKNOWN``.
        subject: uint8 (H, W): 1 where the main subject is, 0 where it is not, or ``UNKNOWN``.
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    subject: NDArray[np.uint8]


def voc_files(data: Path) -> tuple[list[Path], list[Path]]:
    """List the masks of the VOC photographs: those to train on, and the tenth that is held out by a hash of the name.

    Raises:
        BadInputError: when the folder is missing.
    """
    folder = data / "voc_subjects" / "masks"
    if not folder.is_dir():
        raise BadInputError(f"training data {folder}: no such folder")
    files = sorted(folder.glob("*.png"))
    held_out = [file for file in files if zlib.crc32(file.name.encode()) % 10 == 0]
    return [file for file in files if file not in set(held_out)], held_out


def labelled_voc(mask: Path) -> Labelled:
    """Read a VOC photograph by its mask; the class that covers most is the subject."""
    with Image.open(mask) as file:
        classes = np.array(file)
    with Image.open(mask.parent.parent / "images" / f"{mask.stem}.jpg") as file:
        pixels = np.array(file.convert("RGB"))
    counts = np.bincount(classes.ravel(), minlength=UNKNOWN + 1)[1:UNKNOWN]
    subject = (classes == 1 + counts.argmax()).astype(np.uint8)
    subject[classes == UNKNOWN] = UNKNOWN
    return Labelled(pixels, classes, subject)


def labelled_polygons(photograph: Photograph) -> Labelled:
    """Read an outlined photograph; large objects are drawn first so that small ones stay visible."""
    pixels = photograph.load(LOADED_SIDE)
    shape = pixels.shape[:2]
    classes = np.zeros(shape, np.uint8)
    masks = [(photograph.mask(p, shape), p.category) for p in photograph.polygons or []]
    for mask, category in sorted(masks, key=lambda item: -item[0].sum()):
        name = VOC_NAMES.get(category, category)
        classes[mask] = CLASSES.index(name if name in CLASSES else "object")
    return Labelled(pixels, classes, subject_group(photograph, shape).astype(np.uint8))


@torch.inference_mode()
def labelled_activation(photograph: Photograph, label: int, classifier: EfficientNetLite) -> Labelled | None:
    """Find a photograph's subject by the activation of its class; None where the classifier does not recognise it.

    Args:
        photograph: shows one of ImageNet's classes.
        label: that class.
        classifier: pretrained.
    """
    pixels = photograph.load(LOADED_SIDE)
    batch = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32)) / 255
    features = classifier.features((batch - MEAN) / DEVIATION)
    if classifier.classifier(features.mean((2, 3))).softmax(1)[0, label] < LEAST_SURE:
        return None
    activation = torch.einsum("c,bchw->bhw", classifier.classifier.weight[label], features)[None]
    large = functional.interpolate(activation, pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    share = (large / large.max()).numpy()
    subject = np.full(share.shape, UNKNOWN, np.uint8)
    subject[share >= SURE_SUBJECT] = 1
    subject[share < SURE_REST] = 0
    return Labelled(pixels, np.full(share.shape, UNKNOWN, np.uint8), subject)


def subject_group(photograph: Photograph, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The annotated category that covers most of a photograph: all of its objects, bool of ``shape``."""
    return max(annotated_groups(photograph, shape).values(), key=lambda mask: int(mask.sum()))


def annotated_groups(photograph: Photograph, shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """The annotated objects of a photograph, joined by category."""
    groups: dict[str, NDArray[np.bool_]] = {}
    for polygon in photograph.polygons or []:
        drawn = photograph.mask(polygon, shape)
        groups[polygon.category] = groups.get(polygon.category, np.zeros_like(drawn)) | drawn
    return groups


def soft_iou_loss(scores: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """1 - intersection over union of probabilities with masks where they are known, mean over pictures.

    Args:
        scores: before the sigmoid, (B, H, W).
        truth: 0 or 1, (B, H, W).
        known: 1 where ``truth`` counts, else 0, (B, H, W).
    """
    probability = scores.sigmoid() * known
    truth = truth * known
    both = (probability * truth).sum((1, 2))
    return 1.0 - (both / ((probability + truth).sum((1, 2)) - both + 1.0)).mean()
