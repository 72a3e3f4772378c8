"""What the windows and the statistics show of a link, without a window."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from gnuradio.multisc import link_statistics, pdu
from gnuradio.multisc.image_view import MAX_CAPTION, view_of
from gnuradio.multisc.message_block import Faults
from gnuradio.multisc.request_block import RequestBlock

from multisc.errors import BadInputError
from multisc.streams import Reconstruction

PICTURE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
PIECE = PICTURE[:2, :3]
DRAFT = Reconstruction(
    None, {"received": ["a cat"]}, "a draft", {"slice": PIECE, "box": [1, 2, 3, 2], "size": [8, 6]}
)


def status(bursts: int, failures: int, **measured):
    counters = {"bursts": bursts, "header_failures": failures}
    return pdu.pack({"counters": counters, "fft_size": 256, **measured}, np.zeros(0, np.uint8))


def block(crc_ok: bool | None, code: str = "nr:1/2", delivered: bool = True):
    return pdu.pack({"code": code, "crc_ok": crc_ok, "delivered": delivered}, np.zeros(0, np.uint8))


def test_rates_are_taken_over_the_latest_bursts_and_blocks() -> None:
    statistics = link_statistics(2e6, window=4)
    measured = {"image_id": 3, "snr_db": 9.5, "evm": 0.3, "cfo": -0.5, "clock_ppm": 2.0}
    statistics.handle("status", status(1, 0, **measured))
    statistics.handle("status", status(1, 3))
    state = statistics.state
    assert state.cfo_hz == pytest.approx(-0.5 * 2e6 / 256)
    assert (state.image_id, state.snr_db, state.bursts, state.header_failures) == (3, 9.5, 1, 3)
    assert state.burst_error_rate == 0.75
    statistics.handle("status", status(5, 3, **measured))
    assert statistics.state.burst_error_rate == 0.0, "four good bursts fill the window"
    assert math.isnan(statistics.state.block_error_rate)
    for message in (block(True), block(False), block(None, delivered=False), block(None, code="none"), block(True)):
        statistics.handle("bits", message)
    assert (statistics.state.blocks, statistics.state.block_errors, statistics.state.block_error_rate) == (4, 2, 0.5)
    statistics.handle("image", pdu.pack_reconstruction(Reconstruction(None, outage_reason="lost"), 1))
    statistics.handle("image", pdu.pack_reconstruction(Reconstruction(PICTURE), 2))
    assert (statistics.state.images, statistics.state.outages) == (1, 1)


def test_faults_of_every_block_are_counted_while_the_flowgraph_runs() -> None:
    statistics = link_statistics(2e6)
    statistics.start()
    Faults(quiet=True).add(BadInputError("no picture"), "some_block")
    statistics.stop()
    Faults(quiet=True).add(BadInputError("too late"), "some_block")
    assert (statistics.state.faults, statistics.state.fault) == (1, "some_block: no picture")


@pytest.mark.parametrize(("rate", "window"), [(0.0, 10), (float("nan"), 10), (2e6, 0), (2e6, 10**6)])
def test_statistics_refuse_what_makes_no_sense(rate: float, window: int) -> None:
    with pytest.raises(BadInputError, match="link statistics"):
        link_statistics(rate, window)


def test_a_view_has_what_was_sent() -> None:
    texts = {"received": ["a cot"], "corrected": ["a cat"]}
    view = view_of(*pdu.unpack(pdu.pack_reconstruction(Reconstruction(PICTURE, texts), 7, "multi-sc", ["slice"])))
    np.testing.assert_array_equal(view.picture, PICTURE)
    assert (view.image_id, view.system, view.received, view.corrected) == (7, "multi-sc", ["a cot"], ["a cat"])
    assert view.lost == ["slice"]
    draft = view_of(*pdu.unpack(pdu.pack_draft(DRAFT, 8, "multi-sc")))
    np.testing.assert_array_equal(draft.piece, PIECE)
    assert draft.is_draft
    assert (draft.size, draft.box) == ((8, 6), (1, 2, 3, 2))
    outage = view_of(*pdu.unpack(pdu.pack_reconstruction(Reconstruction(None, outage_reason="lost"), 9)))
    assert (outage.picture, outage.outage_reason, outage.is_draft) == (None, "lost", False)


def test_captions_from_the_air_are_one_line_of_bounded_length() -> None:
    texts = {"received": ["a\x1b[31m\ncat", "x" * 10_000] * 50}
    view = view_of(*pdu.unpack(pdu.pack_reconstruction(Reconstruction(PICTURE, texts), 0)))
    assert len(view.received) == 16
    assert all(text.isprintable() and len(text) <= MAX_CAPTION + 1 for text in view.received)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"width": 9}, "9x6 RGB"),
        ({"width": 10**6, "height": 10**6}, "pixels"),
        ({"image_id": None}, "image_id"),
    ],
)
def test_a_picture_that_contradicts_itself_is_refused(change: dict, what: str) -> None:
    meta, flat = pdu.unpack(pdu.pack_reconstruction(Reconstruction(PICTURE), 0))
    changed = {key: value for key, value in (meta | change).items() if value is not None}
    with pytest.raises(BadInputError, match=what):
        view_of(changed, flat)


@pytest.mark.parametrize("box", [[7, 0, 2, 2], [0, 0, 9, 1], [-1, 0, 2, 2], [0, 0, 2]])
def test_a_draft_outside_its_picture_is_refused(box: list[int]) -> None:
    meta, flat = pdu.unpack(pdu.pack_draft(DRAFT, 0, "multi-sc"))
    with pytest.raises(BadInputError):
        view_of(meta | {"box": box}, flat)


def test_a_busy_block_skips_to_the_newest_job_but_never_the_end() -> None:
    done: list[str] = []
    begun, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def job(name: str, *events: threading.Event):
        def work():
            begun.set()
            go_on.wait(10)
            done.append(name)
            for event in events:
                event.set()
            return []

        return work

    made = RequestBlock("busy", [], [], latest=True)
    made.submit(job("first"))
    assert begun.wait(10)
    made.submit(job("second"))
    made.submit(job("end"), droppable=False)
    made.submit(job("third", finished))
    go_on.set()
    assert finished.wait(10)
    made.stop()
    assert done == ["first", "end", "third"]
    assert made.skipped == 1


def test_what_a_stopped_block_still_finds_out_is_thrown_away() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    made = RequestBlock("stopped", [], ["out"], latest=False)
    made.send = lambda port, message: pytest.fail("sent after the stop")

    def work():
        begun.set()
        go_on.wait(10)
        ended.set()
        return [("out", pdu.END)]

    made.submit(work)
    assert begun.wait(10)
    worker = made._worker
    made.stop()
    go_on.set()
    worker.join(10)
    assert ended.is_set()
    assert not worker.is_alive()
    assert made.faults.count == 0
