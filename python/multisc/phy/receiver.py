"""The receiver: samples in, bursts out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multisc.phy.buffer import SampleBuffer
from multisc.phy.config import PhyConfig
from multisc.phy.estimation import BurstEstimator, IdealEstimator
from multisc.phy.grid import ResourceGrid, Segment, demultiplex
from multisc.phy.header import BurstHeader, Control, HeaderCodec, HeaderError
from multisc.phy.ofdm import grid_of, to_grid
from multisc.phy.orthogonal import fits
from multisc.phy.preamble import LONG_SYMBOLS, preamble_of
from multisc.phy.sync import BACKOFF, DETECTION_BLOCK, Detection, Detector, FineTiming, Timing

PIECE = 1 << 16  # samples of a long push taken in at once, so that memory stays bounded
MAX_OVERLAP = 4  # bursts that may be on the air at once; headers that claim more are refused


@dataclass(frozen=True)
class ReceivedBurst:
    """A burst whose header was right.

    Args:
        header: what the burst says of itself.
        segments: what it brings of each stream in its table.
        grid: its equalised payload, of which the segments were taken.
        snr_db: Es/N0 per channel use of a stream at 0 dB.
        cfo: carrier offset in subcarriers.
        clock_ppm: clock offset; positive when the receiver's clock is the faster one.
        evm: root-mean-square error of the payload's pilots against their amplitude; NaN without payload.
        start: index of the preamble's first sample among all samples pushed.
        length: samples of the burst.
        header_symbols: OFDM symbols of its header.
        truncated: whether the samples ended before the burst did.
    """

    header: BurstHeader
    segments: tuple[Segment, ...]
    grid: ResourceGrid
    snr_db: float
    cfo: float
    clock_ppm: float
    evm: float
    start: int
    length: int
    header_symbols: int
    truncated: bool


@dataclass
class ReceiverCounters:
    """What happened so far.

    Args:
        samples: pushed.
        bad_samples: NaN, infinite or beyond 1e12; replaced by zero.
        detections: preambles that seemed to be there.
        header_failures: detections without a right header behind them.
        truncated: bursts whose header or payload was cut short by the end of the samples.
        refused: bursts with a right header that claim more than the receiver's limits.
        bursts: bursts handed on.
    """

    samples: int = 0
    bad_samples: int = 0
    detections: int = 0
    header_failures: int = 0
    truncated: int = 0
    refused: int = 0
    bursts: int = 0


@dataclass(frozen=True)
class IdealSync:
    """Perfect knowledge of a flat channel, for comparison with theory.

    Args:
        starts: sample index of each burst's first sample, ascending; may be endless.
        noise_variance: N0 per complex sample.
        gain: complex factor of the channel, the transmitter's amplitude included.
        cfo: carrier offset in subcarriers, with phase zero at the burst's first sample.
    """

    starts: Iterable[int]
    noise_variance: float
    gain: complex = 1.0
    cfo: float = 0.0


class Searched(NamedTuple):
    """What a search found.

    Args:
        detections: in order.
        end: samples below this index have been searched.
        final: whether the stream ends there.
    """

    detections: list[Detection]
    end: int
    final: bool = False


@dataclass
class OpenBurst:
    """A burst on its way through the receiver, of which more and more is known."""

    timing: Timing
    estimator: BurstEstimator
    first_symbol: int  # sample index of symbol 0, behind its prefix
    control: Control | None = None
    head: bytes = b""
    header: BurstHeader | None = None
    header_symbols: int = 0
    description: NDArray[np.complex64] | None = None  # the description as it was sent
    grid: NDArray[np.complex64] = field(default_factory=lambda: np.empty((0, 0), np.complex64))  # from symbol 0 on
    here: int = 0  # payload symbols that arrived...
    payload: NDArray[np.complex64] | None = None  # ...and their samples


class BurstReceiver:
    """Finds and demodulates bursts in a stream of samples.

    What comes out depends on the samples alone, bit for bit, and not on how they are cut into pushes. Memory is
    bounded by the longest burst. Every detection is followed up on its own, so that neither a false one nor a burst
    under another hides a burst. ``push`` and ``flush`` are for one thread. They consist of three stages, ``search``,
    ``follow_up`` and ``finish``, which may run in a thread each: see ``multisc.phy.pipeline``.

    Args:
        config: numerology; headers that claim more than ``max_payload_symbols`` are refused.
        ideal: replaces detection, synchronisation and channel estimation by knowledge.
    """

    def __init__(self, config: PhyConfig | None = None, ideal: IdealSync | None = None) -> None:
        self.config = config or PhyConfig()
        self.counters = ReceiverCounters()
        self._codec = HeaderCodec(self.config)
        self._grid = grid_of(self.config)
        self._preamble = preamble_of(self.config)
        self._detector = Detector(self.config)
        self._fine = FineTiming(self.config)
        self._buffer = SampleBuffer()
        self._searched = 0  # samples below this index have been searched for preambles
        self._pending: deque[Detection] = deque()
        self._opened: OpenBurst | None = None
        self._ends: deque[int] = deque(maxlen=MAX_OVERLAP)  # of the latest bursts accepted
        self._ideal = ideal
        self._starts: Iterator[int] = iter(ideal.starts) if ideal else iter(())
        self._next_start = next(self._starts, None)

    def push(self, samples: NDArray[np.complex64]) -> list[ReceivedBurst]:
        """Take in samples.

        Args:
            samples: complex64 of shape (n,), any n; not kept.

        Returns:
            The bursts that are now complete, in the order of their beginning.
        """
        bursts: list[ReceivedBurst] = []
        for first in range(0, samples.size, PIECE):
            bursts += map(self.finish, self.follow_up(self.search(samples[first : first + PIECE])))
        return bursts

    def flush(self) -> list[ReceivedBurst]:
        """End the stream: return what is still under way, bursts that were cut short included.

        Samples pushed later begin a new stream; their indices go on counting.
        """
        return list(map(self.finish, self.follow_up(self.search_end())))

    def search(self, samples: NDArray[np.complex64]) -> Searched:
        """The first stage of ``push``: detection.

        Args:
            samples: complex64 of shape (n,), at most ``PIECE``.

        Returns:
            What is to be followed up.
        """
        self.counters.samples += samples.size
        self.counters.bad_samples += self._buffer.append(samples)
        need = DETECTION_BLOCK + self._detector.lookahead
        return self._search(need)

    def search_end(self) -> Searched:
        """The first stage of ``flush``."""
        found = self._search(1)
        detections = [*found.detections, *self._detector.flush()]
        self.counters.detections += len(detections) - len(found.detections)
        self._searched = self._buffer.end
        return Searched(detections, self._searched, final=True)

    def _search(self, need: int) -> Searched:
        """Search the blocks of which at least ``need`` samples are there."""
        detections: list[Detection] = []
        if self._ideal is None:
            while self._buffer.end - self._searched >= need:
                block = self._buffer.view(self._searched, DETECTION_BLOCK + self._detector.lookahead)
                detections += self._detector.process(block, self._searched)
                self._searched += DETECTION_BLOCK
        else:
            while self._next_start is not None and self._next_start < self._buffer.end:
                detections.append(Detection(self._next_start, self._ideal.cfo, 1.0))
                self._next_start = next(self._starts, None)
            self._searched = self._buffer.end
        self.counters.detections += len(detections)
        return Searched(detections, self._searched)

    def follow_up(self, searched: Searched) -> list[OpenBurst]:
        """The second stage, for each search in turn: synchronisation and headers.

        Returns:
            The bursts that have arrived as far as they ever will, to be finished.
        """
        self._pending.extend(searched.detections)
        bursts = self._follow_up(searched.final)
        # Let go of samples that nothing can ask for any more.
        oldest = searched.end
        if self._pending:
            oldest = min(oldest, self._pending[0].start)
        self._buffer.release(oldest - self._fine.before - 2 * self._detector.lookahead)
        if searched.final:
            self._buffer.release(searched.end)
            self._ends.clear()
        return bursts

    def _follow_up(self, final: bool) -> list[OpenBurst]:
        """Take the detections in order as far as the samples reach."""
        bursts: list[OpenBurst] = []
        while self._pending:
            try:
                done, burst = self._step(self._pending[0], final)
            except HeaderError:
                self.counters.header_failures += 1
                done, burst = True, None
            if not done:
                break
            self._pending.popleft()
            self._opened = None
            if burst is not None:
                self.counters.bursts += 1
                bursts.append(burst)
        return bursts

    def _step(self, detection: Detection, final: bool) -> tuple[bool, OpenBurst | None]:
        """Bring one detection forward.

        Returns:
            Whether it is done with here, and the burst if there is one.

        Raises:
            HeaderError: when there is no right header.
        """
        end = self._buffer.end
        step = self.config.symbol_samples
        if self._opened is None:
            control = self._codec.control_symbols * step
            if detection.start + self._fine.after + control > end:
                if not final:
                    return False, None
                if detection.start + self._preamble.length + control > end:
                    self.counters.truncated += 1
                    return True, None
            self._opened = self._open(detection)
        opened = self._opened
        if opened.header is None:
            assert opened.control is not None
            symbols = self._codec.symbols(opened.control.description_bytes)
            if opened.first_symbol + (symbols - 1) * step + self.config.fft_size > end:
                if final:
                    self.counters.truncated += 1
                return final, None
            self._read_header(opened, symbols)
            if not self._accept(opened):
                self.counters.refused += 1
                return True, None
        assert opened.header is not None
        wanted = opened.header.payload_symbols
        here = min(wanted, (end - opened.first_symbol - self.config.fft_size) // step + 1 - opened.header_symbols)
        if here < wanted and not final:
            return False, None
        self.counters.truncated += here < wanted
        opened.here = max(here, 0)
        if here > 0:
            opened.payload = self._samples(opened, opened.header_symbols, here)
        return True, opened

    def _samples(self, opened: OpenBurst, first: int, count: int) -> NDArray[np.complex64]:
        """The samples of symbols ``first`` to ``first + count - 1``, without the prefix of the first."""
        step = self.config.symbol_samples
        return self._buffer.view(opened.first_symbol + first * step, (count - 1) * step + self.config.fft_size)

    def _demodulate(
        self, opened: OpenBurst, first: int, samples: NDArray[np.complex64], grid: NDArray[np.complex64]
    ) -> None:
        """Demodulate symbols from ``first`` on, as many as ``grid`` has rows."""
        step = self.config.symbol_samples
        timing = opened.timing.seen_from(opened.first_symbol + first * step)
        to_grid(samples, 0, len(grid), step, timing, self.config, grid)

    def _open(self, detection: Detection) -> OpenBurst:
        """Synchronise, estimate the channel, read the control part."""
        n = self.config.fft_size
        if self._ideal is not None:
            timing = Timing(detection.start, self._ideal.cfo)
            estimator: BurstEstimator = IdealEstimator(self.config, self._ideal.gain, self._ideal.noise_variance)
        else:
            begin = detection.start - self._fine.before
            window = self._buffer.view(begin, self._fine.before + self._fine.after)
            timing = self._fine.refine(window, detection, begin)
            begin = timing.start + self._preamble.long_start
            training = self._buffer.view(begin, LONG_SYMBOLS * n)
            received = to_grid(training, 0, LONG_SYMBOLS, n, timing.seen_from(begin), self.config)
            estimator = BurstEstimator(self.config, received, self._preamble.long)
        opened = OpenBurst(timing, estimator, timing.start + self._preamble.length + self.config.cyclic_prefix)
        grid = np.empty((self._codec.control_symbols, self.config.occupied), np.complex64)
        self._demodulate(opened, 0, self._samples(opened, 0, len(grid)), grid)
        opened.grid = grid
        opened.control, opened.head = self._codec.decode_control(*estimator.read_header(grid))
        return opened

    def _read_header(self, opened: OpenBurst, symbols: int) -> None:
        """Read the description; what is known by then of the header sharpens the channel, first its control part."""
        assert opened.control is not None
        first = self._codec.control_symbols
        control = opened.grid
        opened.estimator.learn(control, self._grid.fill(self._codec.control_sent(opened.head)), 0)
        grid = np.empty((symbols, self.config.occupied), np.complex64)
        grid[:first] = control
        self._demodulate(opened, first, self._samples(opened, first, symbols - first), grid[first:])
        data, variance = opened.estimator.read_header(grid)
        opened.header, opened.description = self._codec.decode_description(
            opened.control, opened.head, data[first:], variance[first:]
        )
        opened.header_symbols, opened.grid = symbols, grid

    def _accept(self, opened: OpenBurst) -> bool:
        """Whether the header's claims stay within the receiver's limits.

        Raises:
            HeaderError: when they contradict one another.
        """
        header = opened.header
        assert header is not None
        if not fits(header.orthogonal, header.counts(), header.payload_symbols, self.config.data_carriers):
            raise HeaderError("the streams do not fit the payload")
        if header.payload_symbols > self.config.max_payload_symbols:
            return False
        start = opened.timing.start
        if len(self._ends) == MAX_OVERLAP and min(self._ends) > start:
            return False
        samples = (opened.header_symbols + header.payload_symbols) * self.config.symbol_samples
        self._ends.append(start + self._preamble.length + samples)
        return True

    def finish(self, opened: OpenBurst) -> ReceivedBurst:
        """The third stage, for each burst that ``follow_up`` returned, in any thread: the payload."""
        header, estimator, first, here = opened.header, opened.estimator, opened.header_symbols, opened.here
        assert header is not None
        assert opened.description is not None
        control = self._codec.control_symbols
        estimator.learn(opened.grid[control:], self._grid.fill(opened.description, control), control)
        missing = (header.payload_symbols - here, self.config.data_carriers)
        symbols, variance = np.zeros(missing, np.complex64), np.full(missing, np.inf, np.float32)
        evm = float("nan")
        if opened.payload is not None:
            grid = np.empty((first + here, self.config.occupied), np.complex64)
            grid[:first] = opened.grid
            self._demodulate(opened, first, opened.payload, grid[first:])
            received, spread, evm = estimator.equalise(grid, first)
            symbols = np.concatenate([received, symbols]) if missing[0] else received
            variance = np.concatenate([spread, variance]) if missing[0] else spread
        resources = ResourceGrid(header, symbols, variance)
        n, step = self.config.fft_size, self.config.symbol_samples
        return ReceivedBurst(
            header=header,
            segments=demultiplex(resources),
            grid=resources,
            snr_db=10.0 * float(np.log10(estimator.snr)),
            cfo=opened.timing.cfo + float(estimator.model[1]) / (2.0 * np.pi) * n / step,
            clock_ppm=-1e6 * float(estimator.model[3]) / (2.0 * np.pi) * n / step,
            evm=evm,
            start=opened.timing.start + (BACKOFF if self._ideal is None else 0),
            length=self._preamble.length + (first + header.payload_symbols) * step,
            header_symbols=first,
            truncated=here < header.payload_symbols,
        )
