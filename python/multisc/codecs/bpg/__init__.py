"""BPG pictures: an HEVC intra picture in libbpg's small container.

``encode`` and ``encode_to_size`` write files that libbpg's own decoder reads; ``decode`` reads the files that libbpg
writes. The HEVC encoder is x265 and the HEVC decoder FFmpeg's, both reached through PyAV; container, parameter sets
and colour are ours, after the BPG specification, version 0.9.5 (``doc/bpg_spec.txt`` in libbpg).
"""

from multisc.codecs.bpg.decoder import Picture, decode
from multisc.codecs.bpg.encoder import PictureEncoder, SizeSearch, encode, encode_to_size

__all__ = ["Picture", "PictureEncoder", "SizeSearch", "decode", "encode", "encode_to_size"]
