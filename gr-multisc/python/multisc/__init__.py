"""GNU Radio blocks of gr-multisc: thin adapters over the library ``multisc``."""

from .bpg import bpg_decoder, bpg_encoder
from .burst import burst_receiver, burst_transmitter
from .channel import channel
from .files import image_file_sink, image_source
from .ldpc import ldpc_decoder, ldpc_encoder
from .loopback import loopback
from .message_block import Faults, collector
from .modulator import demodulator, modulator
from .multiplexer import demultiplexer, multiplexer
from .quantiser import dequantiser, quantiser
from .semantic import semantic_decoder, semantic_encoder

__all__ = [
    "Faults",
    "bpg_decoder",
    "bpg_encoder",
    "burst_receiver",
    "burst_transmitter",
    "channel",
    "collector",
    "demodulator",
    "demultiplexer",
    "dequantiser",
    "image_file_sink",
    "image_source",
    "ldpc_decoder",
    "ldpc_encoder",
    "loopback",
    "modulator",
    "multiplexer",
    "quantiser",
    "semantic_decoder",
    "semantic_encoder",
]
