"""The simulated channel as a stream block."""

from __future__ import annotations

import numpy as np
import pmt
from gnuradio import gr
from numpy.typing import NDArray

from multisc.channel import Awgn, Chain
from multisc.errors import BadInputError
from multisc.phy.units import db

from .burst import BUFFER, END_TAG
from .message_block import Faults, guarded_work

ROOM = 256  # a clock offset makes a few samples more of what comes in
ENERGY_BLOCK = 4096


class channel(gr.basic_block):
    """Complex samples through a chain of impairments and calibrated white noise, measured on the way.

    A clock offset changes the number of samples; the tag ``end`` moves to the last sample that comes out.

    Args:
        chain: what ``multisc.channel.make_channel`` returns; one of its stages is ``Awgn``.
        faults: shared record of failures.

    Raises:
        BadInputError: when the chain has not exactly one stage of white noise.
    """

    def __init__(self, chain: Chain, faults: Faults | None = None) -> None:
        gr.basic_block.__init__(self, "multisc_channel", in_sig=[np.complex64], out_sig=[np.complex64])
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.set_min_noutput_items(2 * ROOM)
        self.set_min_output_buffer(BUFFER)
        self.faults = faults or Faults()
        self._next: Chain | None = None
        self._use(chain)

    def set_chain(self, chain: Chain) -> None:
        """Change the channel while the flowgraph runs, from any thread; the measurement starts anew.

        Raises:
            BadInputError: when the chain has not exactly one stage of white noise.
        """
        _noise_stage(chain)
        self._next = chain

    def _use(self, chain: Chain) -> None:
        index = _noise_stage(chain)
        self._before = Chain(chain.stages[:index])
        self._noise = chain.stages[index]
        self._after = Chain(chain.stages[index + 1 :])
        self._sent = _Energy()
        self._arrived = _Energy()
        self._added = _Energy()

    def forecast(self, outputs: int, inputs: int) -> list[int]:
        """Any input is enough."""
        return [1] * inputs

    @guarded_work
    def general_work(self, input_items: list, output_items: list) -> int:
        """Process as much as there is room for."""
        chain, self._next = self._next, None
        if chain is not None:
            self._use(chain)
        sent = input_items[0][: output_items[0].size - ROOM]
        ends = self.get_tags_in_window(0, 0, sent.size, END_TAG)
        arrived = self._before.process(sent)
        if ends:
            arrived = np.concatenate([arrived, self._before.finish()])[: output_items[0].size]
        noisy = self._noise.process(arrived)
        received = self._after.process(noisy)
        output_items[0][: received.size] = received
        self._sent.add(sent)
        self._arrived.add(arrived)
        self._added.add(noisy - arrived)
        if ends:
            self.add_item_tag(0, self.nitems_written(0) + received.size - 1, END_TAG, pmt.PMT_T)
        self.consume(0, sent.size)
        return received.size

    def snr_db(self, symbol_energy: float) -> float:
        """Measured Es/N0 per channel use.

        Args:
            symbol_energy: mean energy of the transmitted data symbols on their subcarriers (unitary transforms).

        Returns:
            In dB: the symbol energy times the measured power gain of what lies before the noise, over the measured
            noise power per complex sample. NaN unless both signal and noise have passed.
        """
        sent, arrived, added = self._sent.total(), self._arrived.total(), self._added.total()
        if not (sent and arrived and added and symbol_energy):
            return float("nan")
        return db(symbol_energy * (arrived / sent) / (added / self._added.samples))


def _noise_stage(chain: Chain) -> int:
    """Where in the chain the white noise is added."""
    noise = [index for index, stage in enumerate(chain.stages) if isinstance(stage, Awgn)]
    if len(noise) != 1:
        raise BadInputError(f"a channel with {len(noise)} stages of white noise: must be one")
    return noise[0]


class _Energy:
    """Energy of a stream of samples, the same to the last digit however the scheduler cuts it into pieces."""

    def __init__(self) -> None:
        self.samples = 0
        self._whole = 0.0
        self._rest = np.zeros(0, np.complex64)

    def add(self, samples: NDArray[np.complex64]) -> None:
        self.samples += samples.size
        waiting = np.concatenate([self._rest, samples])
        blocks = waiting.size // ENERGY_BLOCK
        for block in waiting[: blocks * ENERGY_BLOCK].reshape(blocks, ENERGY_BLOCK):
            self._whole += _energy(block)
        self._rest = waiting[blocks * ENERGY_BLOCK :].copy()

    def total(self) -> float:
        return self._whole + _energy(self._rest)


def _energy(samples: NDArray[np.complex64]) -> float:
    return float(np.square(samples.view(np.float32), dtype=np.float64).sum())
