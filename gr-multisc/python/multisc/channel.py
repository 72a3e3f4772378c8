"""The simulated channel as a stream block."""

from __future__ import annotations

import numpy as np
from gnuradio import gr

from multisc.channel import Awgn, Chain
from multisc.errors import BadInputError
from multisc.phy.units import db

from .message_block import Faults, guarded_work


class channel(gr.sync_block):
    """Complex samples through a chain of impairments and calibrated white noise, measured on the way.

    Args:
        chain: what ``multisc.channel.make_channel`` returns; one of its stages is ``Awgn``.
        faults: shared record of failures.

    Raises:
        BadInputError: when the chain has not exactly one stage of white noise.
    """

    def __init__(self, chain: Chain, faults: Faults | None = None) -> None:
        gr.sync_block.__init__(self, "multisc_channel", in_sig=[np.complex64], out_sig=[np.complex64])
        self.faults = faults or Faults()
        noise = [index for index, stage in enumerate(chain.stages) if isinstance(stage, Awgn)]
        if len(noise) != 1:
            raise BadInputError(f"a channel with {len(noise)} stages of white noise: must be one")
        self._before = Chain(chain.stages[: noise[0]])
        self._noise = chain.stages[noise[0]]
        self._after = Chain(chain.stages[noise[0] + 1 :])
        self._sent = 0.0
        self._arrived = 0.0
        self._noise_energy = 0.0
        self._samples = 0

    @guarded_work
    def work(self, input_items: list, output_items: list) -> int:
        """Process what the scheduler gives."""
        sent = input_items[0]
        arrived = self._before.process(sent)
        noisy = self._noise.process(arrived)
        output_items[0][:] = self._after.process(noisy)
        self._sent += _energy(sent)
        self._arrived += _energy(arrived)
        self._noise_energy += _energy(noisy - arrived)
        self._samples += sent.size
        return sent.size

    def snr_db(self, symbol_energy: float) -> float:
        """Measured Es/N0 per channel use.

        Args:
            symbol_energy: mean energy of the transmitted data symbols on their subcarriers (unitary transforms).

        Returns:
            In dB: the symbol energy times the measured power gain of what lies before the noise, over the measured
            noise power per complex sample. NaN unless both signal and noise have passed.
        """
        if not (self._sent and self._arrived and self._noise_energy and symbol_energy):
            return float("nan")
        noise_variance = self._noise_energy / self._samples
        return db(symbol_energy * self._arrived / self._sent / noise_variance)


def _energy(samples: np.ndarray) -> float:
    return float(np.vdot(samples, samples).real)
