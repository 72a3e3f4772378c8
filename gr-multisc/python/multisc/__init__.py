"""GNU Radio blocks of gr-multisc: thin adapters over the library ``multisc``."""

from .blocks.bpg import bpg_decoder, bpg_encoder
from .blocks.burst import burst_receiver, burst_transmitter
from .blocks.channel import channel
from .blocks.image_files import example_photograph, image_file_sink, image_source
from .blocks.image_sink import image_sink
from .blocks.ldpc import ldpc_decoder, ldpc_encoder
from .blocks.link_statistics import link_statistics
from .blocks.message_block import Faults, collector
from .blocks.modulator import demodulator, modulator
from .blocks.multiplexer import demultiplexer, multiplexer
from .blocks.quantiser import dequantiser, quantiser
from .blocks.semantic import semantic_decoder, semantic_encoder
from .blocks.sigmf import sigmf_sink, sigmf_source
from .blocks.statistics_panel import statistics_panel
from .runtime.ending import plain_errors, run_to_end, run_until_enter
from .runtime.loopback import loopback

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
