"""BPG decoding: container, HEVC, colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.bpg import colour
from multisc.codecs.bpg.container import Alpha, Header, parse
from multisc.codecs.bpg.hevc import CodingParameters
from multisc.codecs.bpg.sandbox import decoder_process
from multisc.errors import BadInputError

DECODABLE_DEPTHS = (8, 9, 10, 12)  # of FFmpeg's HEVC decoder; the format also knows 11, 13 and 14


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Args:
        rgb: uint8 of shape (height, width, 3); not premultiplied.
        alpha: uint8 of shape (height, width), or None.
        header: what the file says of it.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    header: Header


def decode(data: bytes, strict: bool = True) -> Picture:
    """Decode a BPG file; of an animation, the first picture.

    FFmpeg runs in a child process with limits of memory and time, so that no file can take the caller down.

    Args:
        data: the whole file.
        strict: refuse a picture whose arithmetic code does not end where its data does, as that of a cut or random
            payload. False shows what FFmpeg makes of it: error concealment, not a decode.

    Raises:
        BadInputError: when it is not a BPG file, is damaged, or has a bit depth FFmpeg does not decode.
    """
    file = parse(data)
    header = file.header
    if header.bit_depth not in DECODABLE_DEPTHS:
        depths = ", ".join(map(str, DECODABLE_DEPTHS))
        raise BadInputError(f"BPG file of {header.bit_depth} bits per sample: can decode {depths}")
    planes = _planes(file.parameters, file.nals, header, header.pixel_format.chroma_format, strict)
    rgb = colour.to_rgb(planes, header)
    if file.alpha_parameters is None:
        return Picture(rgb, None, header)
    fourth = _planes(file.alpha_parameters, list(file.alpha_nals), header, 0, strict)[0]
    alpha = colour.alpha_plane(fourth, header)
    rgb = colour.apply_alpha(rgb, alpha, header.alpha)
    return Picture(rgb, None if header.alpha == Alpha.WHITE else alpha, header)


def _planes(
    parameters: CodingParameters, nals: list[bytes], header: Header, chroma_format: int, strict: bool
) -> list[NDArray]:
    sets = parameters.parameter_sets(header.width, header.height, chroma_format, header.bit_depth)
    planes = decoder_process.decode_intra([*sets, *nals], header.bit_depth, chroma_format, strict)
    if planes[0].shape[0] < header.height or planes[0].shape[1] < header.width:
        raise BadInputError("damaged BPG file: its HEVC picture is smaller than its header says")
    return planes
