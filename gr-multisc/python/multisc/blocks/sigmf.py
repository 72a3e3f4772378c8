"""Blocks between samples and recordings, SigMF or raw."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pmt
from gnuradio import gr
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.recording import RecordingWriter, open_recording

from .burst import BUFFER, END_TAG
from .message_block import Faults, guarded_work


class sigmf_source(gr.sync_block):
    """The samples of a recording out, then the tag ``end`` on the last one, and the block finishes.

    Args:
        path: a SigMF recording, or a raw file with a known ending (``multisc.recording``).
        samp_rate: Hz that the flowgraph works at; 0 takes any.
        faults: shared record of failures.

    Raises:
        BadInputError: when there is no such recording, it is malformed, or it was made at another sample rate.
    """

    def __init__(self, path: str, samp_rate: float = 0.0, faults: Faults | None = None) -> None:
        gr.sync_block.__init__(self, "multisc_sigmf_source", in_sig=None, out_sig=[np.complex64])
        self.set_min_output_buffer(BUFFER)
        self.faults = faults or Faults()
        self._recording = open_recording(path)
        made_at = self._recording.sample_rate
        if samp_rate and made_at is not None and made_at != samp_rate:
            raise BadInputError(f"{path}: made at {made_at:g} samples/s, the flowgraph works at {samp_rate:g}")
        self._blocks: Iterator[NDArray[np.complex64]] = iter(())
        self._waiting = np.zeros(0, np.complex64)
        self._left = 0

    def start(self) -> bool:
        """Begin at the beginning."""
        self._blocks = self._recording.blocks()
        self._waiting = np.zeros(0, np.complex64)
        self._left = self._recording.count
        return super().start()

    @guarded_work
    def work(self, input_items: list, output_items: list) -> int:
        """Read as much as there is room for."""
        if not self._left:
            return -1
        out = output_items[0]
        if not self._waiting.size:
            self._waiting = next(self._blocks)
        count = min(self._waiting.size, out.size)
        out[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        self._left -= count
        if not self._left:
            self.add_item_tag(0, self.nitems_written(0) + count - 1, END_TAG, pmt.PMT_T)
        return count


class sigmf_sink(gr.sync_block):
    """Samples in, a recording out. The files appear under their names when the flowgraph stops.

    Args:
        path: ending .sigmf-meta or .sigmf-data for SigMF, .cf32, .ci16, .ci8 or .cu8 for samples only.
        samp_rate: Hz.
        frequency: centre frequency, Hz; 0 when there is none.
        format: cf32, ci16, ci8 or cu8; empty takes it from the ending, cf32 for SigMF.
        description: of the recording, for people.
        faults: shared record of failures.

    Raises:
        BadInputError: as ``multisc.recording.RecordingWriter``, whose folder must be there.

    Attributes:
        done: set when the sample with the tag ``end`` has come.
    """

    def __init__(
        self,
        path: str,
        samp_rate: float,
        frequency: float = 0.0,
        format: str = "",
        description: str = "",
        faults: Faults | None = None,
    ) -> None:
        gr.sync_block.__init__(self, "multisc_sigmf_sink", in_sig=[np.complex64], out_sig=None)
        self.faults = faults or Faults()
        self._arguments = (path, samp_rate, format or None, frequency or None, description)
        RecordingWriter(*self._arguments).__exit__(BadInputError, None, None)  # checks them and leaves no file
        self._writer: RecordingWriter | None = None
        self.done = threading.Event()

    def start(self) -> bool:
        """Begin a recording."""
        try:
            self._writer = RecordingWriter(*self._arguments)
        except Exception as error:
            self.faults.add(error, self.alias())
        return super().start()

    def stop(self) -> bool:
        """Complete the recording."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.__exit__(None, None, None)
        except Exception as error:
            self.faults.add(error, self.alias())
        return super().stop()

    @guarded_work
    def work(self, input_items: list, output_items: list) -> int:
        """Write the samples."""
        if self._writer is None:
            return -1
        samples = input_items[0]
        self._writer.write(samples)
        if self.get_tags_in_window(0, 0, samples.size, END_TAG):
            self.done.set()
        return int(samples.size)
