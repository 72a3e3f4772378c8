"""GNU Radio blocks of gr-multisc: thin adapters over the library ``multisc``."""

from .burst import burst_receiver, burst_transmitter
from .channel import channel
from .files import image_file_sink, image_source
from .loopback import loopback
from .message_block import Faults, collector
from .modulator import demodulator, modulator
from .quantiser import dequantiser, quantiser
from .semantic import semantic_decoder, semantic_encoder

__all__ = [
    "Faults",
    "burst_receiver",
    "burst_transmitter",
    "channel",
    "collector",
    "demodulator",
    "dequantiser",
    "image_file_sink",
    "image_source",
    "loopback",
    "modulator",
    "quantiser",
    "semantic_decoder",
    "semantic_encoder",
]
