"""The training photographs: where they are, what is known of each, and which are held out for measuring.

The Kodak images are never among them: they only measure.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from multisc.errors import BadInputError

FOLDERS = ("flickr900/images", "coco160/images", "objects1000/images", "bsds300")


@dataclass(frozen=True)
class Polygon:
    """One annotated object: its category, and rings of x, y in pixels of the original photograph."""

    category: str
    rings: list[list[float]]


@dataclass(frozen=True)
class Photograph:
    """One training photograph.

    Args:
        path: the file.
        captions: what people, or a list of class names, say of it; may be empty.
        polygons: annotated objects; None where the photograph is not annotated.
        size: (width, height) that the polygons refer to; (0, 0) when not annotated.
    """

    path: Path
    captions: list[str] = field(default_factory=list)
    polygons: list[Polygon] | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def held_out(self) -> bool:
        """Whether the photograph is kept from training, by a hash of its name: 1 in 16, of annotated ones 1 in 3."""
        return zlib.crc32(self.path.name.encode()) % (16 if self.polygons is None else 3) == 0

    def load(self, long_side: int | None = None) -> NDArray[np.uint8]:
        """Read the picture, uint8 RGB of shape (H, W, 3), its long side ``long_side`` pixels or as it is."""
        with Image.open(self.path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
        if long_side is None:
            return np.asarray(picture)
        scale = long_side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC))

    def mask(self, polygon: Polygon, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Draw one polygon; bool of ``shape`` = (height, width)."""
        size = (shape[1], shape[0])
        canvas = Image.new("1", size)
        draw = ImageDraw.Draw(canvas)
        scale = np.array([size[0] / self.size[0], size[1] / self.size[1]])
        for ring in polygon.rings:
            points = np.asarray(ring, float).reshape(-1, 2) * scale
            draw.polygon([tuple(point) for point in points], fill=1)
        return np.asarray(canvas)


def load_photographs(data: Path) -> list[Photograph]:
    """List the training photographs below the data folder, in a fixed order.

    Raises:
        BadInputError: when a folder or an index file is missing.
    """
    for folder in FOLDERS:
        if not (data / folder).is_dir():
            raise BadInputError(f"training data {data / folder}: no such folder")
    flickr = json.loads((data / "flickr900/captions.json").read_text())
    labels = json.loads((data / "objects1000/labels.json").read_text())
    spoken, polygons, sizes = _coco(data / "coco160")
    photographs = []
    for folder in FOLDERS:
        for path in sorted((data / folder).glob("*.jp*g")):
            captions = flickr.get(path.name) or spoken.get(path.name) or []
            if path.name in labels:
                captions = [f"a photo of a {labels[path.name]}"]
            photographs.append(Photograph(path, captions, polygons.get(path.name), sizes.get(path.name, (0, 0))))
    return photographs


def _coco(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[Polygon]], dict[str, tuple[int, int]]]:
    spoken: dict[str, list[str]] = {}
    captions = json.loads((folder / "captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in captions["images"]}
    for entry in captions["annotations"]:
        spoken.setdefault(names[entry["image_id"]], []).append(entry["caption"].strip())
    instances = json.loads((folder / "instances.json").read_text())
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    polygons: dict[str, list[Polygon]] = {image["file_name"]: [] for image in instances["images"]}
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in instances["images"]}
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    for entry in instances["annotations"]:
        if not entry["iscrowd"]:  # a crowd is a run-length mask over many objects, not a polygon
            polygons[names[entry["image_id"]]].append(
                Polygon(categories[entry["category_id"]], entry["segmentation"])
            )
    return spoken, polygons, sizes
