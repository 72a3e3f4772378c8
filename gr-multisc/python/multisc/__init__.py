"""GNU Radio blocks of gr-multisc: thin adapters over the library ``multisc``."""

from .bpg import bpg_decoder, bpg_encoder
from .burst import burst_receiver, burst_transmitter
from .channel import channel
from .ending import plain_errors, run_to_end, run_until_enter
from .files import example_photograph, image_file_sink, image_source
from .image_sink import image_sink
from .ldpc import ldpc_decoder, ldpc_encoder
from .link_statistics import link_statistics
from .loopback import loopback
from .message_block import Faults, collector
from .modulator import demodulator, modulator
from .multiplexer import demultiplexer, multiplexer
from .quantiser import dequantiser, quantiser
from .semantic import semantic_decoder, semantic_encoder
from .sigmf import sigmf_sink, sigmf_source
from .statistics_panel import statistics_panel

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
    "example_photograph",
    "image_file_sink",
    "image_sink",
    "image_source",
    "ldpc_decoder",
    "ldpc_encoder",
    "link_statistics",
    "loopback",
    "modulator",
    "multiplexer",
    "plain_errors",
    "quantiser",
    "run_to_end",
    "run_until_enter",
    "semantic_decoder",
    "semantic_encoder",
    "sigmf_sink",
    "sigmf_source",
    "statistics_panel",
]
