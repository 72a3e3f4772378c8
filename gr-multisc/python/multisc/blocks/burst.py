"""Blocks between symbols of streams and samples: bursts out, bursts in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from numpy.typing import NDArray

from multisc.phy.assembly import AssembledImage, Assembler
from multisc.phy.burst import BurstTransmitter, burst_uses
from multisc.phy.config import PhyConfig
from multisc.phy.grid import ResourceGrid, multiplex
from multisc.phy.ofdm import grid_of, to_samples
from multisc.phy.pipeline import ReceiverPipeline
from multisc.phy.receiver import BurstReceiver, ReceivedBurst
from multisc.phy.sequences import qpsk
from multisc.phy.transport import ModulatedStream

from .. import pdu
from . import grid_pdu
from .message_block import Faults, guarded_work, is_watched
from .reassembly import ReassemblyBuffer

END_TAG = pmt.intern("end")
LEAD = 1000
CONSTELLATION = 1024  # symbols of a burst
WARM_UP_SYMBOLS = 32
WARM_UP_SEED = 0x57524D
BUFFER = 65536  # samples; the receiver works in fewer and larger pieces than GNU Radio's default of 8192 gives


class burst_transmitter(gr.sync_block):
    """Symbols of an image's streams in, bursts of samples out, multiplexed onto orthogonal channels.

    Input ``symbols``: one PDU of c32 per stream (pdu.md); the bursts leave when all streams of an image are
    there. Input ``grid``: instead, one PDU per burst from a ``multiplexer``. Output: complex samples, ``LEAD`` zeros
    before the first burst. After ``pdu.END`` it sends ``tail`` zeros, marks the last one with the tag ``end`` and
    finishes.

    ``continuous`` is for radios, whose converters take a sample at every tick: between the bursts there are zeros, as
    many as are asked for, so that a burst waits no longer than the buffers behind this block are deep. A stretch of
    OFDM without preamble comes first, which no receiver takes for a burst: radios spoil the beginning. Real and
    imaginary part are limited to +-1, where converters wrap around or worse.

    Args:
        config: numerology, orthogonal mode, amplitude.
        faults: shared record of failures.
        continuous: whether there is a radio behind this block.
        tail: zeros after ``pdu.END``; in front of a radio as many as it may hold back when the stream ends.

    Attributes:
        channel_uses: payload data symbols of all streams so far.
        channel_uses_total: these and preamble, header, pilots and padding.
        bursts: bursts made so far.
        clipped: samples that were limited.
        waiting: samples of bursts that have not left yet.
    """

    def __init__(
        self, config: PhyConfig, faults: Faults | None = None, continuous: bool = False, tail: int = LEAD
    ) -> None:
        gr.sync_block.__init__(self, "multisc_burst_transmitter", in_sig=None, out_sig=[np.complex64])
        self.set_min_output_buffer(BUFFER)
        self.faults = faults or Faults()
        self._config = config
        self._transmitter = BurstTransmitter(config)
        self._streams: ReassemblyBuffer[ModulatedStream] = ReassemblyBuffer(self.alias())
        self._samples: deque[NDArray[np.complex64]] = deque()
        self._continuous = continuous
        self._tail = tail
        self._ended = False
        self.clipped = 0
        self.waiting = 0
        self._append(np.zeros(LEAD, np.complex64))
        if continuous:
            self._append(_warm_up(config))
            self._append(np.zeros(LEAD, np.complex64))
        self.channel_uses = 0
        self.channel_uses_total = 0
        self.bursts = 0
        for port, handler in (("symbols", self._handle_symbols), ("grid", self._handle_grid)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)

    def _handle_symbols(self, message: pmt.pmt_base) -> None:
        self._handle(message, self._grids)

    def _handle_grid(self, message: pmt.pmt_base) -> None:
        self._handle(message, lambda meta, data: [grid_pdu.unpack_grid(meta, data)])

    def _handle(self, message: pmt.pmt_base, grids: Callable[[dict[str, Any], NDArray], list[ResourceGrid]]) -> None:
        try:
            if pdu.is_end(message):
                self._append(np.zeros(self._tail, np.complex64))
                self._ended = True
            else:
                for grid in grids(*pdu.unpack(message)):
                    self._send(grid)
        except Exception as error:
            self.faults.add(error, self.alias())

    def _grids(self, meta: dict[str, Any], data: NDArray) -> list[ResourceGrid]:
        envelope = pdu.envelope_of(meta)
        streams = self._streams.add(envelope, pdu.unpack_symbols(meta, data))
        if streams is None:
            return []
        return multiplex(self._config, envelope.image_id, streams, envelope.side_info, envelope.system)

    def _send(self, grid: ResourceGrid) -> None:
        burst = self._transmitter.assemble(grid)
        self._append(burst)
        self.bursts += 1
        self.channel_uses += sum(grid.header.counts())
        self.channel_uses_total += burst_uses(self._config, burst)

    def _append(self, samples: NDArray[np.complex64]) -> None:
        if self._continuous:
            parts = samples.view(np.float32).reshape(-1, 2)
            outside = np.abs(parts).max(axis=1) > 1.0
            if outside.any():
                self.clipped += int(np.count_nonzero(outside))
                samples = np.clip(parts, -1.0, 1.0).view(np.complex64).ravel()
        self._samples.append(samples)
        self.waiting += samples.size

    @guarded_work
    def work(self, input_items: list, output_items: list) -> int:
        """Hand on what is waiting."""
        out = output_items[0]
        filled = 0
        while self._samples and filled < out.size:
            piece = self._samples.popleft()
            count = min(piece.size, out.size - filled)
            out[filled : filled + count] = piece[:count]
            filled += count
            if count < piece.size:
                self._samples.appendleft(piece[count:])
        self.waiting -= filled
        if self._continuous and not self._ended:
            out[filled:] = 0
            return out.size
        if not filled:
            if self._ended:
                return -1
            time.sleep(1e-3)  # the scheduler calls a source without output again at once
            return 0
        if self._ended and not self._samples:
            self.add_item_tag(0, self.nitems_written(0) + filled - 1, END_TAG, pmt.PMT_T)
        return filled


class burst_receiver(gr.sync_block):
    """Samples in, the streams of the images in them out, as equalised symbols.

    Output ``symbols``: one PDU of c32 per stream with the noise variance of each symbol (pdu.md), when an image
    is whole or no more of it is to be expected. Output ``grid``: one PDU per burst before it is demultiplexed, with
    what the receiver measured. Output ``status``: the measurements of each burst without its symbols, and what the
    receiver has counted, also when a detection had no right header behind it. Output ``constellation``: some of the
    equalised symbols of each burst, for the eye. At the tag ``end``, or a message at the input ``end``, everything
    under way is handed on, then ``pdu.END`` is sent. Fastest behind an output buffer of ``BUFFER`` samples: the work
    function only searches, two threads behind it do the rest.

    Args:
        config: the transmitter's numerology; the orthogonal mode is learned from each burst.
        receiver: another receiver than ``BurstReceiver(config)``, such as one with ideal synchronisation.
        faults: shared record of failures.

    Attributes:
        receiver: its counters tell what was found and what failed.
        last_image: the image handed on last.
    """

    def __init__(
        self, config: PhyConfig, receiver: BurstReceiver | None = None, faults: Faults | None = None
    ) -> None:
        gr.sync_block.__init__(self, "multisc_burst_receiver", in_sig=[np.complex64], out_sig=None)
        self.faults = faults or Faults()
        self.receiver = receiver or BurstReceiver(config)
        self._pipeline = ReceiverPipeline(self.receiver, self._take, self._fail)
        self._failed = False  # in a thread of the pipeline
        self._assembler = Assembler()
        self.last_image: AssembledImage | None = None
        self._told = 0  # header failures
        for port in ("symbols", "grid", "status", "constellation"):
            self.message_port_register_out(pmt.intern(port))
        self.message_port_register_in(pmt.intern("end"))
        self.set_msg_handler(pmt.intern("end"), self._handle_end)

    def _handle_end(self, message: pmt.pmt_base) -> None:
        try:
            self._finish()
        except Exception as error:
            self.faults.add(error, self.alias())

    @guarded_work
    def work(self, input_items: list, output_items: list) -> int:
        """Search for bursts.

        The last sample at hand stays behind until all that was found before it has been handed on: a block that has
        read its whole input ends, and those behind it with it, whatever threads have still to send.
        """
        samples = input_items[0]
        if samples.size > 1:
            samples = samples[:-1]
        ends = self.get_tags_in_window(0, 0, samples.size, END_TAG)
        self._pipeline.push(samples)
        if samples.size == 1:
            self._pipeline.drain()
        if ends:
            self._finish()
        return -1 if self._failed else samples.size

    def stop(self) -> bool:
        """End the threads; GNU Radio calls it when the block has ended or the flowgraph is stopped."""
        self._pipeline.close()
        return True

    def _finish(self) -> None:
        self._pipeline.flush()
        self._pipeline.close()
        self._send(self._assembler.flush())
        for port in ("symbols", "grid", "status"):
            self.message_port_pub(pmt.intern(port), pdu.END)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self.faults.add(error, self.alias())

    def _take(self, bursts: list[ReceivedBurst]) -> None:
        for burst in bursts:
            self._take_one(burst)
        if self.receiver.counters.header_failures > self._told:
            self._tell({})

    def _take_one(self, burst: ReceivedBurst) -> None:
        if is_watched(self, "constellation"):
            message = pdu.pack({"image_id": burst.header.image_id}, _some_symbols(burst))
            self.message_port_pub(pmt.intern("constellation"), message)
        if is_watched(self, "grid"):
            self.message_port_pub(pmt.intern("grid"), grid_pdu.pack_burst(burst))
        self._tell(grid_pdu.measurements(burst) | {"image_id": burst.header.image_id})
        self._send(self._assembler.add(burst))

    def _tell(self, measured: dict[str, Any]) -> None:
        """Publish measurements of a burst, if there are any, and the counters."""
        self._told = self.receiver.counters.header_failures
        about = measured | {"counters": asdict(self.receiver.counters), "fft_size": self.receiver.config.fft_size}
        self.message_port_pub(pmt.intern("status"), pdu.pack(about, np.zeros(0, np.uint8)))

    def _send(self, images: list[AssembledImage]) -> None:
        for image in images:
            self.last_image = image
            for message in pdu.pack_image_symbols(image):
                self.message_port_pub(pmt.intern("symbols"), message)


def _some_symbols(burst: ReceivedBurst) -> NDArray[np.complex64]:
    """At most ``CONSTELLATION`` of the symbols that arrived, evenly spaced over the streams."""
    arrived = [segment.symbols[np.isfinite(segment.noise_variance)] for segment in burst.segments]
    symbols = np.concatenate([np.zeros(0, np.complex64), *arrived])
    return symbols[:: -(-symbols.size // CONSTELLATION) or 1]


def _warm_up(config: PhyConfig) -> NDArray[np.complex64]:
    """OFDM symbols without preamble and header, at the level of a burst."""
    data = qpsk(WARM_UP_SEED, WARM_UP_SYMBOLS * config.data_carriers).reshape(WARM_UP_SYMBOLS, -1)
    return (to_samples(grid_of(config).fill(data), config) * np.float32(config.amplitude)).astype(np.complex64)
