"""Encode and decode BPG pictures; the files are those of libbpg's bpgenc and bpgdec.

examples:
  multisc bpg encode photo.png photo.bpg --qp 30           quality 0 (best) to 51
  multisc bpg encode photo.png photo.bpg --bytes 20000     the best that fits
  multisc bpg encode photo.png photo.bpg --chroma 444      chroma at full resolution
  multisc bpg decode photo.bpg photo.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from multisc.codecs import bpg
from multisc.codecs.bpg.container import MAX_FILE_BYTES
from multisc.codecs.bpg.encoder import FORMATS, MAX_QP
from multisc.errors import BadInputError
from multisc.files import printable, write_atomically
from multisc.images import load_image

_DEFAULT_QP = 29


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    actions = parser.add_subparsers(dest="action", metavar="encode|decode", required=True)
    encode = actions.add_parser("encode", help="a picture of any common kind to BPG")
    encode.add_argument("input", type=Path, metavar="in.png")
    encode.add_argument("output", type=Path, metavar="out.bpg")
    quality = encode.add_mutually_exclusive_group()
    quality.add_argument("--qp", type=int, metavar="N", help=f"0 (best) to {MAX_QP}; default: {_DEFAULT_QP}")
    quality.add_argument("--bytes", type=int, metavar="N", help="the largest quality whose file has at most N bytes")
    encode.add_argument("--chroma", choices=list(FORMATS), default="420", help="default: %(default)s")
    decode = actions.add_parser("decode", help="a BPG file to PNG")
    decode.add_argument("input", type=Path, metavar="in.bpg")
    decode.add_argument("output", type=Path, metavar="out.png")


def run(args: argparse.Namespace) -> int:
    """Encode or decode one file."""
    return _encode(args) if args.action == "encode" else _decode(args)


def _encode(args: argparse.Namespace) -> int:
    image = load_image(args.input)
    if args.bytes is None:
        qp = _DEFAULT_QP if args.qp is None else args.qp
        data = bpg.encode(image, qp, args.chroma)
    else:
        found = bpg.encode_to_size(image, args.bytes, args.chroma)
        data, qp = found.data, found.qp
    write_atomically(args.output, data)
    rate = 8 * len(data) / (image.shape[0] * image.shape[1])
    print(f"{printable(args.output)}: {len(data)} bytes, qp {qp}, {rate:.3f} bits per pixel")
    return 0


def _decode(args: argparse.Namespace) -> int:
    name = printable(args.input)
    try:
        if not args.input.is_file():
            raise BadInputError("not a file" if args.input.exists() else "no such file")
        with open(args.input, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        picture = bpg.decode(data)
    except BadInputError as error:
        raise BadInputError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInputError(f"{name}: cannot be read: {reason}") from error
    pixels = picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    write_atomically(args.output, png.getvalue())
    header = picture.header
    print(f"{printable(args.output)}: {header.width}x{header.height}, from {header.bit_depth} bits per sample")
    return 0
