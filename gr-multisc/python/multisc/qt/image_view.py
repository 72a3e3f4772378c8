"""What there is to see of a picture while it arrives, read out of its PDU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.images import MAX_PIXELS

MAX_CAPTIONS = 16
MAX_CAPTION = 300  # characters


@dataclass(frozen=True)
class View:
    """What there is to see of one image.

    Args:
        image_id: from the header.
        system: name of the system.
        picture: uint8 of shape (H, W, 3), or None while there is none.
        size: width and height of the picture, also before it is there; zeros when not known.
        piece: the main subject by itself, uint8 of shape (h, w, 3), before the picture is there.
        box: x, y, width and height of the place of ``piece`` in the picture.
        received, corrected: captions as they came and after correction.
        outage_reason: why nothing can be shown; empty without an outage.
        lost: streams that were not delivered.
    """

    image_id: int
    system: str
    picture: NDArray[np.uint8] | None = None
    size: tuple[int, int] = (0, 0)
    piece: NDArray[np.uint8] | None = None
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    received: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    outage_reason: str = ""
    lost: list[str] = field(default_factory=list)

    @property
    def is_draft(self) -> bool:
        """Whether the picture is still to come."""
        return self.picture is None and not self.outage_reason


def view_of(meta: dict[str, Any], flat: NDArray) -> View:
    """What an image PDU, or the draft of one, shows.

    Raises:
        BadInputError: when metadata are missing, contradict the vector, or are out of range.
    """
    try:
        size = int(meta["width"]), int(meta["height"])
        about = {"image_id": int(meta["image_id"]), "system": _text(meta.get("system", ""))}
        about |= {name: _texts(meta.get(name)) for name in ("received", "corrected", "lost")}
        if meta.get("draft"):
            piece_size = int(meta["piece_width"]), int(meta["piece_height"])
            x, y, width, height = (int(value) for value in meta["box"])
            inside = 0 <= x <= x + width <= size[0] and 0 <= y <= y + height <= size[1]
            if not inside or min(size) < 1:
                raise BadInputError(f"a draft's box {(x, y, width, height)} lies outside its picture {size}")
            _check_size(size)
            return View(size=size, piece=_picture(flat, piece_size), box=(x, y, width, height), **about)
        if meta["outage"]:
            return View(outage_reason=_text(meta["outage_reason"]) or "no reason was given", **about)
        return View(picture=_picture(flat, size), size=size, **about)
    except KeyError as missing:
        raise BadInputError(f"an image PDU has no metadata {missing}") from None
    except (TypeError, ValueError) as error:
        raise BadInputError(f"an image PDU's metadata cannot be read: {error}") from None


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 0 or size[0] * size[1] > MAX_PIXELS:
        raise BadInputError(f"a picture of {size[0]}x{size[1]}: at most {MAX_PIXELS} pixels can be shown")


def _picture(flat: NDArray, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    _check_size(size)
    if flat.dtype != np.uint8 or flat.size != size[0] * size[1] * 3:
        raise BadInputError(f"image PDU of {flat.size} {flat.dtype} items: {size[0]}x{size[1]} RGB has other ones")
    return flat.reshape(size[1], size[0], 3) if flat.size else None


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in list(value or ())[:MAX_CAPTIONS]]


def _text(value: Any) -> str:
    """Text from the air: one line of characters that can be shown."""
    text = str(value)[: MAX_CAPTION + 1]
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= MAX_CAPTION else text[:MAX_CAPTION] + "…"
