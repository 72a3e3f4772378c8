"""The captions and photographs that the text models are trained on, and their fixed split.

``../shared/data`` beside the developers' checkout holds them (see its README for sources and terms). Kodak is never
read.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.errors import BadInputError

HELD_OUT_IMAGES = 500
SPLIT_SEED = 20261120
VOC_CLASSES = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse",
    "motorcycle", "person", "plant", "sheep", "sofa", "train", "television",
)  # fmt: skip
LEAST_SHARE = 0.02  # of a photograph that a class of VOC must cover to be named


@dataclass(frozen=True)
class CaptionedImage:
    """A photograph and its sentences.

    Args:
        path: of the image file, relative to the data directory.
        captions: normalised sentences; empty when nobody described the photograph.
    """

    path: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class CaptionData:
    """Everything the text models learn from, split once and for all by ``SPLIT_SEED``.

    Args:
        root: the data directory.
        train: captioned photographs to train on.
        named: photographs of which only the classes of what they show are known; their captions say those.
        held_out: captioned photographs that no training sees.
        unlabelled: photographs without captions.
        sentences: further sentences to train on.
        held_out_sentences: two of each held-out photograph.
    """

    root: Path
    train: tuple[CaptionedImage, ...]
    named: tuple[CaptionedImage, ...]
    held_out: tuple[CaptionedImage, ...]
    unlabelled: tuple[CaptionedImage, ...]
    sentences: tuple[str, ...]
    held_out_sentences: tuple[str, ...]

    @property
    def training_sentences(self) -> list[str]:
        """All sentences that may be trained on: those of the training photographs and the further ones."""
        return [c for image in (*self.train, *self.named) for c in image.captions] + list(self.sentences)


def normalise_caption(text: str) -> str:
    """Return a sentence in the one form all text models use: ASCII, lower case, single spaces, one final period.

    Punctuation is attached to the word before it. Returns "" when nothing but punctuation is left.
    """
    text = text.encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[\"`#()]", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ([.,;:!?'])", r"\1", text).strip(" .,;:!?-'")
    return f"{text}." if text else ""


def load_caption_data(root: Path) -> CaptionData:
    """Read the captions and list the photographs.

    The further sentences are those that no photograph has, held out or not: many of theirs stand among them.

    Args:
        root: the data directory.

    Raises:
        BadInputError: when a file of the data set is missing.
    """
    try:
        large = _flickr(root, "flickr8k")
        small = _flickr(root, "flickr900")
        coco = _coco(json.loads((root / "coco160" / "captions.json").read_text()))
        labels = json.loads((root / "objects1000" / "labels.json").read_text())
        lines = (root / "captions.txt").read_text().splitlines()
    except FileNotFoundError as error:
        raise BadInputError(
            f"training data: {error.filename} is missing; --data must name the data directory"
        ) from None
    random.Random(SPLIT_SEED).shuffle(large)
    held_out = tuple(large[:HELD_OUT_IMAGES])
    # Many photographs are in both folders, under one name.
    known = {Path(image.path).name for image in large}
    train = (*large[HELD_OUT_IMAGES:], *(image for image in small if Path(image.path).name not in known), *coco)
    named = (*_objects(labels), *_voc(root / "voc_subjects"))
    listed = {Path(image.path).name for image in (*large, *small, *train, *named)}
    unlabelled = tuple(
        CaptionedImage(str(path.relative_to(root)), ())
        for folder in ("coco160", "bsds300")
        for path in sorted((root / folder).rglob("*"))
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"} and path.name not in listed
    )
    spoken = {caption for image in (*train, *held_out) for caption in image.captions}
    return CaptionData(
        root=root,
        train=train,
        named=named,
        held_out=held_out,
        unlabelled=unlabelled,
        sentences=tuple(text for text in map(normalise_caption, lines) if text and text not in spoken),
        held_out_sentences=tuple(caption for image in held_out for caption in image.captions[:2]),
    )


def _flickr(root: Path, folder: str) -> list[CaptionedImage]:
    captions = json.loads((root / folder / "captions.json").read_text())
    images = "images/" if (root / folder / "images").is_dir() else ""
    return [
        CaptionedImage(f"{folder}/{images}{name}", tuple(filter(None, map(normalise_caption, sentences))))
        for name, sentences in sorted(captions.items())
    ]


def _coco(document: dict) -> list[CaptionedImage]:
    captions: dict[int, list[str]] = {}
    for annotation in document["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(normalise_caption(annotation["caption"]))
    return [
        CaptionedImage(f"coco160/images/{image['file_name']}", tuple(filter(None, captions[image["id"]])))
        for image in sorted(document["images"], key=lambda image: image["id"])
        if image["id"] in captions
    ]


def _objects(labels: dict[str, str]) -> list[CaptionedImage]:
    return [
        CaptionedImage(f"objects1000/images/{name}", name_captions([label])) for name, label in sorted(labels.items())
    ]


def _voc(folder: Path) -> list[CaptionedImage]:
    """The photographs of VOC with the classes that their masks show, the largest first."""
    found = []
    for path in sorted((folder / "masks").glob("*.png")):
        with Image.open(path) as mask:
            counts = np.bincount(np.asarray(mask).ravel(), minlength=256)[1:21]
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k] >= LEAST_SHARE * counts.sum()]
        if order:
            names = [VOC_CLASSES[k] for k in order]
            found.append(CaptionedImage(f"voc_subjects/images/{path.stem}.jpg", name_captions(names)))
    return found


def name_captions(names: Sequence[str]) -> tuple[str, ...]:
    """Say that a picture shows things of these classes, at least one.

    Nothing is put around the names: sentences of one form would agree with each other whatever they name, and win
    the captioner's vote.
    """
    things = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in map(str.lower, names))
    return (normalise_caption(things),)


def load_pixels(root: Path, path: str, longest: int | None = None) -> NDArray[np.uint8]:
    """Read a photograph of the data set as uint8 (H, W, 3), its longer side reduced to ``longest`` if it is more."""
    with Image.open(root / path) as image:
        rgb = image.convert("RGB")
    if longest is not None:
        rgb.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def quarters(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut an image (H, W, 3) of at least 2x2 pixels in four: top left, top right, bottom left, bottom right."""
    middle_y, middle_x = image.shape[0] // 2, image.shape[1] // 2
    return [
        image[:middle_y, :middle_x],
        image[:middle_y, middle_x:],
        image[middle_y:, :middle_x],
        image[middle_y:, middle_x:],
    ]
