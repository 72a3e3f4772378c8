"""The captions and photographs that the text models are trained on, and their fixed split.

``../shared/data`` beside the developers' checkout holds them (see its README for sources and terms). Kodak is never
read.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multisc.errors import BadInputError

HELD_OUT_IMAGES = 60
HELD_OUT_SENTENCES = 1000
SPLIT_SEED = 20261120


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
        held_out: captioned photographs that no training sees.
        unlabelled: photographs without captions.
        sentences: further sentences to train on.
        held_out_sentences: sentences that no training sees.
    """

    root: Path
    train: tuple[CaptionedImage, ...]
    held_out: tuple[CaptionedImage, ...]
    unlabelled: tuple[CaptionedImage, ...]
    sentences: tuple[str, ...]
    held_out_sentences: tuple[str, ...]

    @property
    def training_sentences(self) -> list[str]:
        """All sentences that may be trained on: those of the training photographs and the further ones."""
        return [c for image in self.train for c in image.captions] + list(self.sentences)


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

    Args:
        root: the data directory.

    Raises:
        BadInputError: when a file of the data set is missing.
    """
    try:
        flickr_text = (root / "flickr900" / "captions.json").read_text()
        coco_text = (root / "coco160" / "captions.json").read_text()
        lines = (root / "captions.txt").read_text().splitlines()
    except FileNotFoundError as error:
        raise BadInputError(
            f"training data: {error.filename} is missing; --data must name the data directory"
        ) from None
    flickr = [
        CaptionedImage(f"flickr900/images/{name}", tuple(filter(None, map(normalise_caption, sentences))))
        for name, sentences in sorted(json.loads(flickr_text).items())
    ]
    random.Random(SPLIT_SEED).shuffle(flickr)
    coco = _coco(json.loads(coco_text))
    described = {image.path for image in flickr + coco}
    unlabelled = tuple(
        CaptionedImage(str(path.relative_to(root)), ())
        for folder in ("flickr900", "coco160", "objects1000", "bsds300")
        for path in sorted((root / folder).rglob("*"))
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"} and str(path.relative_to(root)) not in described
    )
    sentences = tuple(filter(None, map(normalise_caption, lines)))
    return CaptionData(
        root=root,
        train=tuple(flickr[HELD_OUT_IMAGES:] + coco),
        held_out=tuple(flickr[:HELD_OUT_IMAGES]),
        unlabelled=unlabelled,
        # Sentences of one photograph are neighbours; the gap keeps the photograph at the border out of both parts.
        sentences=sentences[: -HELD_OUT_SENTENCES - 5],
        held_out_sentences=sentences[-HELD_OUT_SENTENCES:],
    )


def _coco(document: dict) -> list[CaptionedImage]:
    captions: dict[int, list[str]] = {}
    for annotation in document["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(normalise_caption(annotation["caption"]))
    return [
        CaptionedImage(f"coco160/images/{image['file_name']}", tuple(filter(None, captions[image["id"]])))
        for image in sorted(document["images"], key=lambda image: image["id"])
        if image["id"] in captions
    ]


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
