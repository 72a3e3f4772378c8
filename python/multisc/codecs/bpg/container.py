"""The BPG container (BPG specification 0.9.5, clause 3): parsing and writing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from multisc.codecs.bpg.bits import nal_layer, nal_type, split_nals
from multisc.codecs.bpg.hevc import CodingParameters
from multisc.errors import BadInputError

MAGIC = b"BPG\xfb"
MAX_PIXELS = 1 << 25
MAX_FILE_BYTES = 1 << 26
_ANIMATION_CONTROL = 5
_FIRST_SLICE = 0x80


class PixelFormat(IntEnum):
    """How chroma is sampled; the VIDEO formats have it at MPEG-2's positions, the others at JPEG's."""

    GREY = 0
    YUV420 = 1
    YUV422 = 2
    YUV444 = 3
    YUV420_VIDEO = 4
    YUV422_VIDEO = 5

    @property
    def chroma_format(self) -> int:
        """HEVC's chroma_format_idc."""
        return self - 3 if self > PixelFormat.YUV444 else int(self)

    @property
    def chroma_between(self) -> bool:
        """Whether a subsampled chroma sample lies between two luma samples of a row, rather than on the left one."""
        return self <= PixelFormat.YUV444


class ColorSpace(IntEnum):
    """What the three planes mean."""

    BT601 = 0
    RGB = 1
    YCGCO = 2
    BT709 = 3
    BT2020 = 4


class Alpha(IntEnum):
    """What the fourth plane means: bit 1 is the file's alpha1_flag, bit 0 its alpha2_flag."""

    NONE = 0
    WHITE = 1
    STRAIGHT = 2
    PREMULTIPLIED = 3


@dataclass(frozen=True)
class Header:
    """The picture header.

    Args:
        width, height: in pixels, at least 1, together at most ``MAX_PIXELS``.
        pixel_format: chroma sampling.
        bit_depth: bits per sample, 8 to 14 in the format.
        color_space: what the planes mean; BT601 when grey.
        limited_range: video range (16 to 235 at 8 bits) instead of the full one.
        alpha: what the fourth plane means, if there is one.

    Raises:
        BadInputError: when a field is outside its range.
    """

    width: int
    height: int
    pixel_format: PixelFormat
    bit_depth: int = 8
    color_space: ColorSpace = ColorSpace.BT601
    limited_range: bool = False
    alpha: Alpha = Alpha.NONE

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.width * self.height > MAX_PIXELS:
            raise BadInputError(f"a picture of {self.width}x{self.height}: must be 1 to {MAX_PIXELS} pixels")
        if not 8 <= self.bit_depth <= 14:
            raise BadInputError(f"bit depth {self.bit_depth}: must be 8 to 14")
        if self.pixel_format == PixelFormat.GREY and (self.color_space or self.alpha == Alpha.WHITE):
            raise BadInputError("a grey picture with a colour space or a white plane")


@dataclass(frozen=True)
class BpgFile:
    """A parsed file.

    Args:
        header: of the picture.
        parameters: HEVC coding parameters of the colour planes.
        nals: NAL units of the colour planes of the (first) picture, without start codes.
        alpha_parameters, alpha_nals: the same of the fourth plane; None and empty without one.
    """

    header: Header
    parameters: CodingParameters
    nals: list[bytes]
    alpha_parameters: CodingParameters | None = None
    alpha_nals: tuple[bytes, ...] = ()


class _Cursor:
    """A position in a file that never runs past its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        """Read ``count`` bytes."""
        if count > len(self.data) - self.position:
            raise BadInputError(f"truncated BPG file: {what} needs {count} bytes at {self.position}")
        self.position += count
        return self.data[self.position - count : self.position]

    def ue7(self, what: str) -> int:
        """Read ue7(32), which must be in its shortest form."""
        value = 0
        for index in range(5):
            byte = self.take(1, what)[0]
            if index == 0 and byte == 0x80:
                raise BadInputError(f"BPG file: {what} is not in its shortest form")
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                break
        else:
            value = 1 << 32
        if value >= 1 << 32:
            raise BadInputError(f"BPG file: {what} has more than 32 bits")
        return value


def ue7(value: int) -> bytes:
    """Write ue7: seven bits a byte, most significant first, the top bit set in all but the last."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(0x80 | value & 0x7F)
    return bytes(reversed(out))


def parse(data: bytes) -> BpgFile:
    """Parse a BPG file; of an animation, the first picture.

    Args:
        data: the whole file, at most ``MAX_FILE_BYTES``; what follows a picture of known length is ignored.

    Raises:
        BadInputError: when it is not a BPG file, is truncated, or breaks the specification.
    """
    if len(data) > MAX_FILE_BYTES:
        raise BadInputError(f"BPG file of {len(data)} bytes: at most {MAX_FILE_BYTES}")
    cursor = _Cursor(data)
    if cursor.take(4, "the magic number") != MAGIC:
        raise BadInputError("not a BPG file: it does not begin with the bytes 42 50 47 FB")
    flags1, flags2 = cursor.take(2, "the picture header")
    if flags1 >> 5 > max(PixelFormat):
        raise BadInputError(f"BPG file: pixel format {flags1 >> 5} is reserved")
    if flags2 >> 4 > max(ColorSpace):
        raise BadInputError(f"BPG file: colour space {flags2 >> 4} is reserved")
    header = Header(
        width=cursor.ue7("the width"),
        height=cursor.ue7("the height"),
        pixel_format=PixelFormat(flags1 >> 5),
        bit_depth=8 + (flags1 & 15),
        color_space=ColorSpace(flags2 >> 4),
        limited_range=bool(flags2 & 2),
        alpha=Alpha((flags1 >> 3 & 2) | (flags2 >> 2 & 1)),
    )
    length = cursor.ue7("the length of the picture")
    extensions = cursor.take(cursor.ue7("the length of the extensions"), "the extensions") if flags2 & 8 else b""
    tags = _extension_tags(extensions)
    animation = bool(flags2 & 1)
    if animation and _ANIMATION_CONTROL not in tags:
        raise BadInputError("BPG file: an animation without its control extension")
    picture = _Cursor(cursor.take(length or len(data) - cursor.position, "the picture"))
    alpha_parameters = _coding_parameters(picture) if header.alpha else None
    parameters = _coding_parameters(picture)
    nals, alpha_nals = _first_picture(split_nals(picture.data[picture.position :]), bool(header.alpha), animation)
    return BpgFile(header, parameters, nals, alpha_parameters, tuple(alpha_nals))


def _extension_tags(data: bytes) -> set[int]:
    """Walk over the extension data; its content (EXIF, ICC, XMP, thumbnail, animation control) is not used."""
    cursor = _Cursor(data)
    tags = set()
    while cursor.position < len(data):
        tags.add(cursor.ue7("an extension's tag"))
        cursor.take(cursor.ue7("an extension's length"), "an extension")
    return tags


def _coding_parameters(cursor: _Cursor) -> CodingParameters:
    body = cursor.take(cursor.ue7("the length of the HEVC header"), "the HEVC header")
    try:
        return CodingParameters.read(body)
    except BadInputError as error:
        raise BadInputError(f"damaged BPG file: {error}") from error


def _first_picture(nals: list[bytes], has_alpha: bool, animation: bool) -> tuple[list[bytes], list[bytes]]:
    """Sort the NAL units of the first picture into colour and alpha."""
    layers: tuple[list[bytes], list[bytes]] = ([], [])
    begun = [False, False]
    for nal in nals:
        if len(nal) < 3:
            raise BadInputError("BPG file: a NAL unit of less than 3 bytes")
        layer = nal_layer(nal)
        if layer > has_alpha:
            raise BadInputError(f"BPG file: a NAL unit of layer {layer}, which no plane has")
        if nal_type(nal) < 32 and nal[2] & _FIRST_SLICE:
            if begun[layer] and animation:
                break
            if begun[layer]:
                raise BadInputError("BPG file: more than one picture, though it is not an animation")
            begun[layer] = True
        layers[layer].append(bytes([nal[0] & 0xFE, nal[1] & 7]) + nal[2:])
    if not begun[0] or begun[1] != has_alpha:
        raise BadInputError("BPG file: no picture in it")
    return layers


def write(file: BpgFile) -> bytes:
    """Write a BPG file with the length of its picture in the header, so that a cut file is known as such.

    Args:
        file: what ``parse`` would return of the result.
    """
    header = file.header
    picture = b""
    if file.alpha_parameters:
        body = file.alpha_parameters.write()
        picture += ue7(len(body)) + body
    body = file.parameters.write()
    picture += ue7(len(body)) + body
    # Alpha comes before colour, in layer 1 (clause 3.2).
    alpha = [bytes([nal[0], nal[1] | 8]) + nal[2:] for nal in file.alpha_nals]
    picture += b"\x00\x00\x01".join([*alpha, *file.nals])
    flags1 = header.pixel_format << 5 | (header.alpha >> 1) << 4 | header.bit_depth - 8
    flags2 = header.color_space << 4 | (header.alpha & 1) << 2 | header.limited_range << 1
    size = ue7(header.width) + ue7(header.height) + ue7(len(picture))
    return MAGIC + bytes([flags1, flags2]) + size + picture
