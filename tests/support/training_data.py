"""A data folder to train on, in miniature."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SENTENCES = [f"{who} {does} on the grass." for who in ("a dog", "a man", "two children") for does in ("runs", "sits")]


def write_training_data(root: Path) -> Path:
    """Write a data folder as large as it must be, twelve noisy squares, of which two are annotated; return it."""
    rng = np.random.default_rng(0)

    def photograph(folder: str, name: str) -> str:
        (root / folder).mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((96, 80), Image.Resampling.BICUBIC).save(root / folder / name)
        return name

    def named(held_out: bool, of: int) -> str:
        """The name of a photograph that is held out, or not; see ``Photograph.held_out``."""
        names = (f"{number}.jpg" for number in range(100))
        return next(name for name in names if (zlib.crc32(name.encode()) % of == 0) == held_out)

    flickr = {photograph("flickr900/images", f"{number}.jpg"): SENTENCES[:5] for number in range(8)}
    (root / "flickr900/captions.json").write_text(json.dumps(flickr))
    photograph("objects1000/images", "object.jpeg")
    (root / "objects1000/labels.json").write_text("{}")
    for held_out in (False, True):
        photograph("bsds300", named(held_out, 16))
    names = [photograph("coco160/images", named(held_out, 3)) for held_out in (False, True)]
    images = [{"id": k, "file_name": name, "width": 96, "height": 80} for k, name in enumerate(names)]
    outline = {"iscrowd": 0, "category_id": 1, "segmentation": [[10, 10, 60, 10, 60, 60, 10, 60]]}
    said = [{"image_id": k, "caption": SENTENCES[k]} for k in range(2)]
    drawn = [{"image_id": k, **outline} for k in range(2)]
    (root / "coco160/captions.json").write_text(json.dumps({"images": images, "annotations": said}))
    categories = [{"id": 1, "name": "dog"}]
    (root / "coco160/instances.json").write_text(
        json.dumps({"images": images, "annotations": drawn, "categories": categories})
    )
    (root / "captions.txt").write_text("\n".join(SENTENCES * 5))
    return root
