"""The HEVC parameter sets a BPG file leaves out, rebuilt from the few fields it keeps (ITU-T H.265, 7.3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from multisc.codecs.bpg.bits import BitReader, BitWriter, escape, unescape
from multisc.errors import BadInputError

VPS, SPS, PPS, PREFIX_SEI, SUFFIX_SEI = 32, 33, 34, 39, 40
_RANGE_EXTENSIONS = 4  # general_profile_idc of the format range extensions
_LEVEL = 255  # level 8.5: no limits
_RANGE_FLAGS = 9
# Positions of the two flags that BPG forbids among the nine of the range extension.
_EXTENDED_PRECISION, _BYPASS_ALIGNMENT = 4, 8


@dataclass(frozen=True)
class CodingParameters:
    """The fields of the sequence parameter set that BPG keeps, named as in H.265, 7.4.3.2.

    Raises:
        BadInputError: for sizes HEVC does not allow.
    """

    log2_min_cb: int
    log2_diff_cb: int
    log2_min_tb: int
    log2_diff_tb: int
    depth_intra: int
    sao: bool
    pcm: tuple[int, int, int, int, int] | None
    strong_intra_smoothing: bool
    range_flags: tuple[int, ...] | None

    def __post_init__(self) -> None:
        ctb = self.log2_min_cb + self.log2_diff_cb
        max_tb = self.log2_min_tb + self.log2_diff_tb
        if not (3 <= self.log2_min_cb <= ctb <= 6 and ctb >= 4):
            raise BadInputError(f"coding block sizes 2^{self.log2_min_cb} to 2^{ctb} are not HEVC's")
        if not (2 <= self.log2_min_tb < self.log2_min_cb and max_tb <= min(5, ctb)):
            raise BadInputError(f"transform block sizes 2^{self.log2_min_tb} to 2^{max_tb} are not HEVC's")
        if self.depth_intra > ctb - self.log2_min_tb:
            raise BadInputError(f"transform hierarchy depth {self.depth_intra} is not HEVC's")
        if self.range_flags and (self.range_flags[_EXTENDED_PRECISION] or self.range_flags[_BYPASS_ALIGNMENT]):
            raise BadInputError("extended precision and bypass alignment are not allowed in BPG")

    @classmethod
    def read(cls, header: bytes) -> CodingParameters:
        """Read the body of BPG's ``hevc_header``.

        Raises:
            BadInputError: when it is truncated, too long, or holds what HEVC or BPG forbid.
        """
        bits = BitReader(header)
        min_cb, diff_cb, min_tb, diff_tb, depth = (bits.ue() for _ in range(5))
        sao = bool(bits.u(1))
        pcm = (bits.u(4), bits.u(4), bits.ue(), bits.ue(), bits.u(1)) if bits.u(1) else None
        smoothing = bool(bits.u(1))
        range_flags = None
        if bits.u(1):
            has_range, others = bits.u(1), bits.u(7)
            if others:
                raise BadInputError("unknown extensions of the sequence parameter set")
            if has_range:
                range_flags = tuple(bits.u(1) for _ in range(_RANGE_FLAGS))
        if bits.left > 7 or bits.u(bits.left):
            raise BadInputError("the HEVC header does not end where its length says")
        return cls(min_cb + 3, diff_cb, min_tb + 2, diff_tb, depth, sao, pcm, smoothing, range_flags)

    def write(self) -> bytes:
        """Write the body of BPG's ``hevc_header``."""
        bits = BitWriter()
        self._write_blocks(bits)
        bits.ue(self.depth_intra).u(1, self.sao)
        self._write_pcm(bits)
        bits.u(1, self.strong_intra_smoothing)
        self._write_extension(bits)
        return bits.aligned()

    def _write_blocks(self, bits: BitWriter) -> None:
        bits.ue(self.log2_min_cb - 3, self.log2_diff_cb, self.log2_min_tb - 2, self.log2_diff_tb)

    def _write_pcm(self, bits: BitWriter) -> None:
        bits.u(1, self.pcm is not None)
        if self.pcm:
            luma, chroma, log2_min, log2_diff, no_filter = self.pcm
            bits.u(4, luma).u(4, chroma).ue(log2_min, log2_diff).u(1, no_filter)

    def _write_extension(self, bits: BitWriter) -> None:
        bits.u(1, self.range_flags is not None)
        if self.range_flags is not None:
            bits.u(1, 1).u(7, 0)
            for flag in self.range_flags:
                bits.u(1, flag)

    def parameter_sets(self, width: int, height: int, chroma_format: int, bit_depth: int) -> list[bytes]:
        """Rebuild the VPS and SPS NAL units.

        Args:
            width, height: of the picture in pixels; coded sizes are these rounded up to whole smallest coding blocks.
            chroma_format: chroma_format_idc, 0 (monochrome) to 3 (4:4:4).
            bit_depth: bits per sample.

        Returns:
            Two NAL units with emulation prevention, without start codes.
        """
        block = 1 << self.log2_min_cb
        vps = BitWriter().u(4, 0).u(2, 3).u(6, 0).u(3, 0).u(1, 1).u(16, 0xFFFF)
        _write_profile(vps)
        vps.u(1, 1).ue(1, 0, 0).u(6, 0).ue(0).u(1, 0).u(1, 0)

        sps = BitWriter().u(4, 0).u(3, 0).u(1, 1)
        _write_profile(sps)
        sps.ue(0, chroma_format)
        if chroma_format == 3:
            sps.u(1, 0)
        sps.ue(-(-width // block) * block, -(-height // block) * block).u(1, 0)
        sps.ue(bit_depth - 8, bit_depth - 8, 4).u(1, 1).ue(1, 0, 0)
        self._write_blocks(sps)
        sps.ue(self.depth_intra, self.depth_intra).u(1, 0).u(1, 1).u(1, self.sao)
        self._write_pcm(sps)
        sps.ue(0).u(1, 0).u(1, 1).u(1, self.strong_intra_smoothing).u(1, 0)
        self._write_extension(sps)
        return [b"\x40\x01" + escape(vps.with_stop_bit()), b"\x42\x01" + escape(sps.with_stop_bit())]

    @classmethod
    def from_sps(cls, nal: bytes) -> CodingParameters:
        """Take the fields from the SPS that an encoder wrote.

        Raises:
            BadInputError: when the SPS uses what a BPG file cannot say (sub-layers, scaling lists, reference picture
                sets, long-term references).
        """
        bits = BitReader(unescape(nal[2:]))
        if bits.u(4) or bits.u(3):
            raise BadInputError("the SPS has sub-layers or refers to a VPS other than 0")
        bits.u(1 + 2 + 1 + 5 + 32 + 48 + 8)
        bits.ue()
        if bits.ue() == 3:
            bits.u(1)
        bits.ue(), bits.ue()
        if bits.u(1):
            [bits.ue() for _ in range(4)]
        bits.ue(), bits.ue(), bits.ue()
        bits.u(1)
        [bits.ue() for _ in range(3)]
        min_cb, diff_cb, min_tb, diff_tb, _, depth = (bits.ue() for _ in range(6))
        if bits.u(1):
            raise BadInputError("the SPS has scaling lists")
        bits.u(1)
        sao = bool(bits.u(1))
        pcm = (bits.u(4), bits.u(4), bits.ue(), bits.ue(), bits.u(1)) if bits.u(1) else None
        if bits.ue() or bits.u(1):
            raise BadInputError("the SPS has reference picture sets")
        bits.u(1)
        smoothing = bool(bits.u(1))
        return cls(min_cb + 3, diff_cb, min_tb + 2, diff_tb, depth, sao, pcm, smoothing, None)


def _write_profile(bits: BitWriter) -> None:
    """profile_tier_level(1, 0), 7.3.3: the range extensions' profile, progressive frames, the highest level."""
    bits.u(2, 0).u(1, 0).u(5, _RANGE_EXTENSIONS).u(32, 1 << (31 - _RANGE_EXTENSIONS))
    bits.u(4, 0b1001).u(43, 0).u(1, 0).u(8, _LEVEL)
