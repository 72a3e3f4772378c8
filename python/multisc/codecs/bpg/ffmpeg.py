"""HEVC through PyAV: one intra picture encoded by x265 or decoded by FFmpeg, planes in, planes out."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from multisc.codecs.bpg.bits import escape, join_nals, nal_type, unescape
from multisc.errors import BadInputError, MultiscError

# Sample format by chroma_format_idc and bit depth, as FFmpeg names them.
_LAYOUTS = ("gray", "yuv420p", "yuv422p", "yuv444p")

# One thread and no wavefronts: entry points and context resets cost bytes. Psycho-visual trade-offs and adaptive
# quantisation are off and the tuning is for PSNR because PSNR is what this field's curves show. ipratio 1 makes the
# intra picture's QP the one that was asked for.
_X265 = (
    "keyint=1:bframes=0:rc-lookahead=0:scenecut=0:repeat-headers=1:info=0:hrd=0:log-level=none:frame-threads=1:pools=none:"
    "wpp=0:log2-max-poc-lsb=8:ipratio=1:aq-mode=0:psy-rd=0:psy-rdoq=0:rdoq-level=2:cutree=0"
)
_RANGE_LEFT = 254  # what the CABAC decoder's offset is at least when a slice ends
# Bits before the decoder's last 9, counted from the stop bit; several, as a wrong bin may give the same samples.
_BEFORE_WINDOW = range(10, 27, 2)


def encode_intra(planes: list[NDArray[np.uint8]], chroma_format: int, qp: int, min_cb: int) -> bytes:
    """Encode one picture with x265.

    Args:
        planes: luma (H, W), then chroma at its own size unless ``chroma_format`` is 0; uint8.
        chroma_format: chroma_format_idc, 0 to 3.
        qp: quantisation parameter of the picture, 0 to 51.
        min_cb: smallest coding block, 8 or 16; the sides of the planes are multiples of it.

    Returns:
        The byte stream with VPS, SPS, PPS and slices.

    Raises:
        MultiscError: when x265 refuses.
    """
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, _LAYOUTS[chroma_format])
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.zeros((samples.shape[0], plane.line_size), np.uint8)
        rows[:, : samples.shape[1]] = samples
        plane.update(rows.tobytes())
    frame.pts = 0
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, _LAYOUTS[chroma_format]
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"preset": "slow", "tune": "psnr", "x265-params": f"qp={qp}:min-cu-size={min_cb}:{_X265}"}
    try:
        packets = [*encoder.encode(frame), *encoder.encode(None)]
    except av.FFmpegError as error:
        raise MultiscError(f"x265 could not encode a {width}x{height} picture: {error}") from error
    return b"".join(bytes(packet) for packet in packets)


def decode_intra(nals: list[bytes], bit_depth: int, chroma_format: int, strict: bool) -> list[NDArray]:
    """Decode one picture with FFmpeg.

    Args:
        nals: VPS, SPS, PPS and slices of one picture.
        bit_depth, chroma_format: as in its SPS.
        strict: refuse a picture whose last slice is shorter or longer than its CABAC code; see ``_check_end``.

    Returns:
        The planes at their coded size, uint8 or uint16, one when ``chroma_format`` is 0, else three.

    Raises:
        BadInputError: when nothing can be decoded or, if ``strict``, the code does not end where the data does.
    """
    planes = _decode(join_nals(nals), bit_depth, chroma_format)
    if planes is None:
        raise BadInputError("damaged BPG file: FFmpeg cannot decode its HEVC picture")
    if strict:
        _check_end(nals, bit_depth, chroma_format, planes)
    return planes


def _decode(stream: bytes, bit_depth: int, chroma_format: int) -> list[NDArray] | None:
    decoder = av.CodecContext.create("hevc", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "crccheck+explode"}
    try:
        frames = [*decoder.decode(av.Packet(stream)), *decoder.decode(None)]
    except av.FFmpegError:
        return None
    depth_suffix = "" if bit_depth == 8 else f"{bit_depth}le"
    if not frames or frames[0].format.name != _LAYOUTS[chroma_format] + depth_suffix:
        return None
    dtype = np.dtype("u1" if bit_depth == 8 else "<u2")
    return [
        np.frombuffer(bytes(plane), dtype).reshape(plane.height, -1)[:, : plane.width].copy()
        for plane in frames[0].planes
    ]


def _check_end(nals: list[bytes], bit_depth: int, chroma_format: int, planes: list[NDArray]) -> None:
    """Raise unless the last slice's arithmetic code ends where its data does.

    FFmpeg fills in zeros when a slice is cut short and ignores what is left when it ends early, and shows a picture
    either way. But the CABAC encoder (9.3.5.6) ends a slice on the topmost two of the at least 256 values its range
    has left, the stop bit telling the two apart. So one may subtract 254 at the stop bit without changing any sample,
    which fails if the true end lies further on; and a bit inverted before those 9 must change something, which fails
    if it lies further back.
    """
    last = max(i for i, nal in enumerate(nals) if nal_type(nal) < 32)
    data = unescape(nals[last])
    while data.endswith(b"\x00\x00\x03"):  # cabac_zero_words
        data = data[:-3].rstrip(b"\x00")
    code = int.from_bytes(data, "big")
    stop = code & -code

    def changes(other_code: int) -> bool:
        other_nal = escape(other_code.to_bytes(len(data), "big"))
        other = _decode(join_nals([*nals[:last], other_nal, *nals[last + 1 :]]), bit_depth, chroma_format)
        return other is None or any(not np.array_equal(a, b) for a, b in zip(planes, other, strict=True))

    if changes(code - _RANGE_LEFT * stop):
        raise BadInputError("truncated BPG file: its HEVC picture is not complete")
    flips = (stop << shift for shift in _BEFORE_WINDOW if (stop << shift).bit_length() <= 8 * (len(data) - 2))
    if not any(changes(code ^ flip) for flip in flips):
        raise BadInputError("damaged BPG file: its HEVC picture ends before its data")
