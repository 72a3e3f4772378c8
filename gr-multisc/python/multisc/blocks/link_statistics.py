"""How well the link does: what the receiver measures and counts, put together into one message."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pmt

from multisc.errors import BadInputError

from .. import pdu
from .message_block import Faults, MessageBlock

MAX_WINDOW = 100_000
UNKNOWN = float("nan")


@dataclass(frozen=True)
class LinkState:
    """What is known of the link now; NaN stands for what is not known yet.

    Args:
        image_id: of the latest burst; -1 before the first.
        snr_db: Es/N0 per channel use of the latest burst, dB.
        evm: root-mean-square error of its pilots against their amplitude, a ratio.
        cfo_hz: its carrier offset, Hz.
        clock_ppm: its clock offset, parts per million.
        bursts: received with a right header, since the start.
        header_failures: detections without a right header behind them, since the start.
        burst_error_rate: share of failures among the latest detections, 0 to 1.
        blocks: coded streams with a CRC, since the start.
        block_errors: of these, those whose CRC failed or that were not delivered.
        block_error_rate: share of failures among the latest coded streams, 0 to 1.
        images, outages: pictures that came out of the decoder, and times it had nothing to show, since the start.
        faults: blocks that failed, since the start.
        fault: the latest failure, or an empty text.
    """

    image_id: int = -1
    snr_db: float = UNKNOWN
    evm: float = UNKNOWN
    cfo_hz: float = UNKNOWN
    clock_ppm: float = UNKNOWN
    bursts: int = 0
    header_failures: int = 0
    burst_error_rate: float = UNKNOWN
    blocks: int = 0
    block_errors: int = 0
    block_error_rate: float = UNKNOWN
    images: int = 0
    outages: int = 0
    faults: int = 0
    fault: str = ""

    def line(self) -> str:
        """The state as one line of text."""
        parts = [
            f"bursts {self.bursts}, with a wrong header {self.header_failures}",
            f"coded blocks {self.blocks}, with a wrong CRC {self.block_errors}",
            f"images {self.images}, outages {self.outages}",
        ]
        if self.bursts:
            measured = (
                f"Es/N0 {self.snr_db:.1f} dB, EVM {100 * self.evm:.1f} %, carrier offset {self.cfo_hz:+z.0f} Hz"
            )
            parts.insert(0, measured)
        if self.faults:
            parts.append(f"faults {self.faults}, the latest: {self.fault}")
        return "; ".join(parts)


class link_statistics(MessageBlock):
    """What the receiver measures and counts in, one message for each burst, coded stream, picture and fault out.

    Inputs, each optional: ``status`` of the burst receiver, ``bits`` of the demodulator or LDPC decoder, ``image`` of
    the semantic decoder. Output ``statistics``: PDUs without items, whose metadata are the fields of ``LinkState``.
    Faults of every block of the process are counted, so that a failure shows where somebody looks.

    Args:
        samp_rate: Hz, for the carrier offset.
        window: how many of the latest detections and coded streams the error rates are taken over, 1 to 100000.
        log: whether the state is also written to the log, once for each picture and fault.
        faults: shared record of failures.

    Raises:
        BadInputError: for an argument outside its range.

    Attributes:
        state: what is known now.
        done: set when ``pdu.END`` came from the decoder.
    """

    def __init__(self, samp_rate: float, window: int = 100, log: bool = False, faults: Faults | None = None) -> None:
        super().__init__("multisc_link_statistics", ["status", "bits", "image"], ["statistics"], faults)
        self.outlive()
        if not 0 < samp_rate < math.inf:
            raise BadInputError(f"link statistics: sample rate {samp_rate}: must be a positive number of Hz")
        if not 1 <= window <= MAX_WINDOW:
            raise BadInputError(f"link statistics: window {window}: must be 1 to {MAX_WINDOW}")
        self._samp_rate = samp_rate
        self._log = log
        self._lock = threading.RLock()  # faults come from other blocks' threads
        self._bursts: deque[bool] = deque(maxlen=window)  # whether the latest ones failed
        self._blocks: deque[bool] = deque(maxlen=window)
        self.state = LinkState()
        self.done = threading.Event()

    def start(self) -> bool:
        """Listen for faults."""
        Faults.watch(self._fault)
        return super().start()

    def stop(self) -> bool:
        """Listen no more."""
        Faults.unwatch(self._fault)
        return super().stop()

    def handle(self, port: str, message: pmt.pmt_base) -> None:
        """Take in what one port tells."""
        if pdu.is_end(message):
            if port == "image":
                self.done.set()
            return
        meta, _ = pdu.unpack(message)
        try:
            {"status": self._status, "bits": self._bits, "image": self._image}[port](meta)
        except KeyError as missing:
            raise BadInputError(f"a PDU at port {port} of the link statistics has no metadata {missing}") from None

    def _status(self, meta: dict[str, Any]) -> None:
        counters = meta["counters"]
        bursts, failures = int(counters["bursts"]), int(counters["header_failures"])
        latest: dict[str, Any] = {}
        before = self.state
        self._bursts.extend([True] * min(failures - before.header_failures, MAX_WINDOW))
        self._bursts.extend([False] * min(bursts - before.bursts, MAX_WINDOW))
        if "snr_db" in meta:  # there is a burst, not only a failure
            latest = {
                "image_id": int(meta["image_id"]),
                "snr_db": float(meta["snr_db"]),
                "evm": float(meta["evm"]),
                "cfo_hz": float(meta["cfo"]) * self._samp_rate / int(meta["fft_size"]),
                "clock_ppm": float(meta["clock_ppm"]),
            }
        self._change(bursts=bursts, header_failures=failures, burst_error_rate=_rate(self._bursts), **latest)

    def _bits(self, meta: dict[str, Any]) -> None:
        if str(meta["code"]) == "none":
            return
        failed = not meta["delivered"] or meta.get("crc_ok") is False
        self._blocks.append(failed)
        state = self.state
        self._change(
            blocks=state.blocks + 1,
            block_errors=state.block_errors + failed,
            block_error_rate=_rate(self._blocks),
        )

    def _image(self, meta: dict[str, Any]) -> None:
        outage = bool(meta["outage"])
        self._change(images=self.state.images + (not outage), outages=self.state.outages + outage)
        if self._log:
            self.log(f"image {meta['image_id']}: {self.state.line()}")

    def _fault(self, where: str, error: Exception) -> None:
        with self._lock:
            self._change(faults=self.state.faults + 1, fault=f"{where}: {error or type(error).__name__}")
        if self._log:
            self.log(self.state.line())

    def _change(self, **fields: Any) -> None:
        with self._lock:
            self.state = replace(self.state, **fields)
            state = self.state
        self.send("statistics", pdu.pack(asdict(state), np.zeros(0, np.uint8)))


def state_of(message: pmt.pmt_base) -> LinkState:
    """The state in a message of ``link_statistics``.

    Raises:
        BadInputError: when it is another message.
    """
    meta, _ = pdu.unpack(message)
    try:
        return LinkState(**meta)
    except TypeError:
        raise BadInputError("the message is not one of the link statistics") from None


def _rate(failed: deque[bool]) -> float:
    return sum(failed) / len(failed) if failed else UNKNOWN
