"""Requests that wait are run at once: which ones, in which order, and that none suffers from another."""

import itertools
import os
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

from multisc.link import wire
from multisc.link.handler import BatchHandler, SystemsHandler
from multisc.link.jobs import Job, Queue, kind_of, layout_of, split
from multisc.link.pool import child_environment
from multisc.link.server import Server, ServerConfig
from multisc.link.worker import Worker, WorkerSettings, command
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream
from tests.support.handlers import Batches, Echo
from tests.support.inference import DEADLINE_S, Gate, Stranger, eventually, running_server

pytestmark = pytest.mark.usefixtures("handlers_can_be_imported")


def encode(name, options=None, system="echo"):
    return wire.EncodeRequest(system, np.full((2, 2, 3), name, np.uint8), options or {}, 60.0)


def decode(name, options=None, system="echo"):
    return wire.DecodeRequest(system, ReceivedImage([], str(name).encode()), options or {}, 60.0)


class Held:
    """A server whose worker one request holds (number 0, until ``release``), so that others wait."""

    def __init__(self, server, peer, gate):
        self.server, self.peer, self.gate = server, peer, gate

    def awaits(self, condition, what):
        return eventually(lambda: condition(status := self.peer.status()) and status, what)

    def send(self, *requests, peer=None):
        """Send requests, numbered as their pictures are named; returns when they wait."""
        waiting = self.peer.status()["queue"]["waiting"]
        for request in requests:
            is_encode = isinstance(request, wire.EncodeRequest)
            name = request.image.flat[0] if is_encode else request.received.side_info
            (peer or self.peer).send(int(name), request)
        self.awaits(lambda status: status["queue"]["waiting"] == waiting + len(requests), "all of them wait")

    def release(self):
        self.gate.open()
        assert self.peer.answer(wire.EncodedReply)[0] == 0

    def answers(self, count):
        """The next answers as they come: number, and the names of what ran at once, or the code of the failure."""
        found = []
        for _ in range(count):
            number, reply = self.peer.answer()
            if isinstance(reply, wire.EncodedReply):
                found.append((number, reply.encoded.preview["together"]))
            elif isinstance(reply, wire.DecodedReply):
                found.append((number, [int(name) for name in reply.reconstruction.text["together"]]))
            else:
                found.append((number, reply.code))
        return found


@pytest.fixture(scope="module")
def server():
    with running_server(handler="tests.support.handlers:Batches", message_limit=1 << 20) as running:
        yield running


def hold(server, peer, directory):
    gate = Gate(directory, "held")
    peer.send(0, encode(0, {"gate": gate.path}))
    gate.await_entry()
    return Held(server, peer, gate)


@pytest.fixture
def held(server, tmp_path):
    with Stranger(server.address) as peer:
        yield hold(server, peer, tmp_path)


# ---- which run at once -------------------------------------------------------------------------------------------


def test_what_waits_is_run_at_once_and_each_gets_its_own(held):
    before = held.peer.status()["metrics"]["batches"].get("3", 0)
    held.send(encode(1), encode(2), encode(3))
    held.release()
    assert held.answers(3) == [(1, [1, 2, 3]), (2, [1, 2, 3]), (3, [1, 2, 3])]
    held.peer.send(0, encode(0))
    assert held.answers(1) == [(0, [0])]
    status = held.peer.status()
    assert (status["running"], status["metrics"]["batches"]["3"]) == (0, before + 1)


def test_requests_of_several_clients_are_run_at_once(held):
    with Stranger(held.server.address) as other:
        held.send(decode(1))
        held.send(decode(2), peer=other)
        held.release()
        for peer in (held.peer, other):
            assert peer.answer(wire.DecodedReply)[1].reconstruction.text["together"] == ["1", "2"]


def test_the_size_of_a_batch_is_bounded(held):
    held.send(*(encode(name) for name in range(1, 7)))
    held.release()
    assert [together for _, together in held.answers(6)] == [[1, 2, 3, 4]] * 4 + [[5, 6]] * 2


def test_other_systems_options_and_directions_wait_their_turn(held):
    """The oldest goes first and takes its like along, whatever lies between them; the others keep their order."""
    held.send(
        encode(1, {"colour": 1}),
        encode(2, {"colour": 1.0}),
        decode(3, {"colour": 1}),
        encode(4, {"colour": 1}),
        encode(5, {"colour": 1}, system="other"),
        encode(6, {"colour": 1.0}),
        decode(7, {"colour": 1}),
    )
    held.release()
    assert held.answers(7) == [
        (1, [1, 4]), (4, [1, 4]), (2, [2, 6]), (6, [2, 6]), (3, [3, 7]), (7, [3, 7]), (5, [5]),
    ]  # fmt: skip


def test_a_batch_of_one_is_one_at_a_time(tmp_path):
    with (
        running_server(handler="tests.support.handlers:Batches", batch=1) as server,
        Stranger(server.address) as peer,
    ):
        held = hold(server, peer, tmp_path)
        held.send(encode(1), encode(2), encode(3))
        held.release()
        assert held.answers(3) == [(1, [1]), (2, [2]), (3, [3])]
        assert peer.status()["metrics"]["batches"] == {"1": 4}


def test_two_workers_run_a_batch_each(tmp_path):
    gates = [Gate(tmp_path, name) for name in "abcd"]
    with (
        running_server(handler="tests.support.handlers:Batches", workers=2, batch=2) as server,
        Stranger(server.address) as peer,
        Stranger(server.address) as watcher,
    ):
        for number, gate in enumerate(gates[:2]):
            peer.send(number, encode(number, {"gate": gate.path}))
            gate.await_entry()
        for number in range(2, 6):
            peer.send(number, encode(number, {"gate": gates[number // 2 + 1].path}))
        eventually(lambda: watcher.status()["queue"]["waiting"] == 4, "all of them wait")
        for gate in gates[:2]:
            gate.open()
        for gate in gates[2:]:
            gate.await_entry()
        status = watcher.status()
        assert (status["running"], status["queue"]["waiting"]) == (4, 0)
        for gate in gates[2:]:
            gate.open()
        previews = {n: reply.encoded.preview for n, reply in (peer.answer(wire.EncodedReply) for _ in range(6))}
    assert [previews[number]["together"] for number in range(2, 6)] == [[2, 3], [2, 3], [4, 5], [4, 5]]
    assert previews[2]["pid"] == previews[3]["pid"] != previews[4]["pid"] == previews[5]["pid"]


def job(number, kind=b"a"):
    return Job(number, b"client", number, (), kind, 0.0, 60.0)


@pytest.mark.parametrize(
    ("kinds", "limit", "idle", "batch"),
    [
        ("aaaaa", 4, 1, [0, 1, 2, 3]),
        ("aaaa", 4, 2, [0, 1]),
        ("aaa", 4, 2, [0, 1]),
        ("aa", 4, 2, [0]),
        ("aaaaaaaa", 3, 2, [0, 1, 2]),
        ("aaa", 1, 1, [0]),
        ("abab", 4, 1, [0, 2]),
        ("abbb", 4, 1, [0]),
        ("aaab", 4, 2, [0, 1]),
    ],
)
def test_a_worker_takes_no_more_than_its_share(kinds, limit, idle, batch):
    queue = Queue()
    for number, kind in enumerate(kinds):
        queue.add(job(number, kind.encode()))
    assert [job.number for job in queue.batch(limit, idle)] == batch
    assert len(queue) == len(kinds)


def test_a_queue_is_not_full_while_a_worker_is_idle():
    """Requests that arrive in one turn find the worker they would have found one by one."""
    given = []
    server = Server(ServerConfig("tcp://127.0.0.1:0", queue=1), log=lambda line: None)
    server._pool = SimpleNamespace(
        idle=lambda: [] if given else [SimpleNamespace(index=0)],
        assign=lambda worker, batch: given.append([number for number, _ in batch]) or True,
    )
    with Stranger(server.address) as peer:
        for number in range(3):
            peer.send(number, encode(number))
        eventually(lambda: server._receive() or server._metrics.requests["EncodeRequest"] == 3, "all have come")
        assert peer.answer()[1].code == "busy"
    assert (given, len(server._queue)) == ([[1]], 1)
    server._context.destroy(linger=0)


def test_equal_options_are_of_one_kind():
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = {"seed": 1, "nested": {"a": [1, "x"], "b": None}, "table": table, "nan": float("nan")}
    second = {"nan": float("nan"), "table": table.copy(), "nested": {"b": None, "a": [1, "x"]}, "seed": 1}
    assert kind_of(encode(1, first)) == kind_of(encode(2, second))


def test_options_that_differ_are_not():
    table = np.arange(6, dtype=np.float32)
    values = [1, 1.0, True, "1", b"1", None, 2, [1], {"a": 1}, {"b": 1}, [], {}]
    values += [table, table.reshape(2, 3), table.astype(np.float64), table + 1, table.tolist()]
    kinds = [kind_of(encode(1, {"x": value})) for value in values]
    kinds += [kind_of(encode(1, {"y": 1})), kind_of(decode(1, {"x": 1})), kind_of(encode(1, {"x": 1}, "other"))]
    assert len(set(kinds)) == len(kinds)


# ---- none suffers from another -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "code"), [("value", "internal"), ("bad", "bad-input")])
def test_a_bad_request_fails_alone(held, bad, code):
    held.send(*(encode(name, {"bad": bad}) for name in (1, Batches.BAD, 2)))
    held.release()
    assert held.answers(3) == [(1, [1]), (Batches.BAD, code), (2, [2])]


def test_a_batch_too_large_for_the_memory_is_run_one_by_one(held):
    held.send(*(encode(name, {"fit": 1}) for name in (1, 2, 3)))
    held.release()
    assert held.answers(3) == [(1, [1]), (2, [2]), (3, [3])]


def test_a_result_that_cannot_be_sent_fails_alone(held):
    names = [1, Batches.LARGE, 2]
    held.send(*(encode(name) for name in names))
    held.release()
    assert held.answers(3) == [(1, names), (Batches.LARGE, "failed"), (2, names)]


def test_results_that_are_not_as_many_as_the_requests_are_nobodys(held):
    held.send(*(encode(name, {"results": 1}) for name in (1, 2)))
    held.release()
    assert held.answers(2) == [(1, [1]), (2, [2])]


def test_a_system_that_takes_one_at_a_time_gets_them_in_order(held):
    held.send(*(encode(name, system="one-at-a-time") for name in (1, 2, 3)))
    held.release()
    assert held.answers(3) == [(1, [1]), (2, [2]), (3, [3])]


def test_a_handler_without_batches_gets_them_in_order(tmp_path):
    with running_server() as server, Stranger(server.address) as peer:
        held = hold(server, peer, tmp_path)
        held.send(*(encode(name) for name in (1, 2, 3)))
        held.release()
        for name in (1, 2, 3):
            number, reply = peer.answer(wire.EncodedReply)
            assert (number, reply.encoded.preview["image"].flat[0]) == (name, name)
        assert peer.status()["metrics"]["batches"] == {"1": 1, "3": 1}
    assert not issubclass(Echo, BatchHandler)
    assert issubclass(Batches, BatchHandler)


def test_a_worker_that_dies_loses_all_it_had_and_each_is_told(held, tmp_path):
    gate = Gate(tmp_path)
    held.send(*(encode(name, {"gate": gate.path}) for name in (1, 2, 3)))
    held.release()
    gate.await_entry()
    status = held.peer.status()
    assert status["running"] == 3
    os.kill(status["workers"][0]["pid"], signal.SIGKILL)
    assert sorted(held.answers(3)) == [(1, "worker-died"), (2, "worker-died"), (3, "worker-died")]
    held.peer.send(4, encode(4))
    assert held.answers(1) == [(4, [4])]


# ---- call-off ----------------------------------------------------------------------------------------------------


def abandoned(status):
    return status["metrics"]["outcomes"].get("abandoned", 0)


def test_one_that_is_called_off_does_not_disturb_the_others(held, tmp_path):
    gate = Gate(tmp_path)
    before = abandoned(held.peer.status())
    held.send(encode(1, {"gate": gate.path}))
    with Stranger(held.server.address) as vanishing:
        held.send(encode(2, {"gate": gate.path}), peer=vanishing)
        held.release()
        gate.await_entry()
        assert held.peer.status()["running"] == 2
    held.awaits(lambda status: abandoned(status) == before + 1 and status["running"] == 1, "one has gone")
    gate.open()
    assert held.answers(1) == [(1, [1, 2])]


def test_when_all_are_called_off_the_worker_stops(held, tmp_path):
    before = held.peer.status()
    with Stranger(held.server.address) as first, Stranger(held.server.address) as second:
        gate = Gate(tmp_path)
        held.send(encode(1, {"gate": gate.path}), peer=first)
        held.send(encode(2, {"gate": gate.path}), peer=second)
        held.release()
        gate.await_entry()
    held.awaits(lambda status: abandoned(status) == abandoned(before) + 2, "both have gone")
    held.peer.send(3, encode(3))  # though nobody opened the gate
    _, reply = held.peer.answer(wire.EncodedReply)
    assert reply.encoded.preview["pid"] == before["workers"][0]["pid"]


def test_what_is_called_off_before_its_turn_holds_up_nobody(tmp_path):
    """The handler has no batches, so that the second is still to be run when it is called off."""
    gate = Gate(tmp_path)
    with running_server() as server, Stranger(server.address) as peer:
        held = hold(server, peer, tmp_path)
        held.send(encode(1, {"gate": gate.path}))
        with Stranger(server.address) as vanishing:
            held.send(encode(2, {"gate": gate.path}), peer=vanishing)
            held.release()
            gate.await_entry()
        held.awaits(lambda status: abandoned(status) == 1, "one has gone")
        worker = peer.status()["workers"][0]["pid"]
        gate.open()  # for the first
        peer.send(3, encode(3))
        replies = [peer.answer(wire.EncodedReply) for _ in range(2)]
        assert [(number, reply.encoded.preview["pid"]) for number, reply in replies] == [(1, worker), (3, worker)]


def test_a_worker_that_works_for_nobody_and_goes_on_is_killed(tmp_path):
    gate = Gate(tmp_path)
    with (
        running_server(handler="tests.support.handlers:Batches", call_off_grace_s=0.2) as server,
        Stranger(server.address) as peer,
    ):
        held = hold(server, peer, tmp_path)
        stubborn = peer.status()["workers"][0]["pid"]
        with Stranger(server.address) as first, Stranger(server.address) as second:
            held.send(encode(1, {"stubborn": gate.path}), peer=first)
            held.send(encode(2, {"stubborn": gate.path}), peer=second)
            held.release()
            gate.await_entry()
        peer.send(3, encode(3))
        assert peer.answer(wire.EncodedReply)[1].encoded.preview["pid"] != stubborn
        assert abandoned(peer.status()) == 2


@pytest.mark.slow
def test_a_worker_that_lets_go_in_time_is_kept(tmp_path):
    with (
        running_server(handler="tests.support.handlers:Batches", call_off_grace_s=2.0) as server,
        Stranger(server.address) as peer,
    ):
        held = hold(server, peer, tmp_path)
        worker = peer.status()["workers"][0]["pid"]
        first, second = Gate(tmp_path, "first"), Gate(tmp_path, "second")
        with Stranger(server.address) as vanishing:
            held.send(encode(1, {"gate": first.path}), encode(2, {"gate": first.path}), peer=vanishing)
            held.release()
            first.await_entry()
        peer.send(3, encode(3, {"gate": second.path}))
        second.await_entry()
        end = peer.status()["metrics"]["uptime_s"] + 2.5
        held.awaits(lambda status: status["metrics"]["uptime_s"] > end, "the grace is over")
        second.open()
        assert peer.answer(wire.EncodedReply)[1].encoded.preview["pid"] == worker


def test_a_handler_is_interrupted_once_though_a_signal_comes_for_each_request(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    worker = Worker(WorkerSettings(f"ipc://{tmp_path}/door", "w", os.getpid(), "", "", (), 1 << 20))
    signals = []

    def work():
        worker._called_off = frozenset({1, 2})  # as the talking thread does
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.raise_signal(signal.SIGUSR1)  # the handler cleans up
            signals.append("both")

    try:
        assert worker._attempt([1, 2], work) is None
        assert signals == ["both"]
    finally:
        signal.signal(signal.SIGUSR1, before)
        worker._context.destroy(linger=0)


# ---- between server and worker -----------------------------------------------------------------------------------


def test_the_pieces_of_a_batch_come_apart_as_they_were_put_together():
    batch = [(1, [b"a", b"", b"c"]), ((1 << 64) - 1, []), (3, [b"d"])]
    layout = layout_of(batch)
    assert split(layout, [b"a", b"", b"c", b"d"]) == batch
    for wrong in ([b"a"], [b"a"] * 5):
        with pytest.raises(ValueError, match="does not fit"):
            split(layout, wrong)
    with pytest.raises(ValueError, match="does not fit"):
        split(layout[:-1], [b"a", b"", b"c", b"d"])


def test_a_request_that_is_malformed_at_the_worker_fails_alone(tmp_path):
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    address = f"ipc://{tmp_path}/door"
    server.bind(address)
    settings = WorkerSettings(address, "w", os.getpid(), "tests.support.handlers:Batches", "embedded", (), 1 << 20)
    worker = subprocess.Popen(command(settings), env=child_environment())

    def hear(wanted):
        while True:
            assert server.poll(DEADLINE_S * 1000), f"no {wanted} from the worker"
            _, tag, *rest = server.recv_multipart()
            if tag == wanted:
                return rest

    try:
        eventually(lambda: hear(b"state")[0] == b"idle", "the worker is ready")
        good = [wire.pack(number, encode(number)) for number in (1, 3)]
        batch = [(11, good[0]), (12, [wire.MAGIC, b"\x80"]), (13, good[1]), (14, wire.pack(4, wire.Hello("x")))]
        server.send_multipart([b"w", b"work", layout_of(batch), *itertools.chain(*(frames for _, frames in batch))])
        replies = {}
        for _ in batch:
            number, outcome, *frames = hear(b"reply")
            replies[int.from_bytes(number, "big")] = (outcome, *wire.unpack(frames))
        assert {number: reply[:2] for number, reply in replies.items()} == {
            11: (b"ok", 1), 12: (b"failed", 0), 13: (b"ok", 3), 14: (b"failed", 4),
        }  # fmt: skip
        assert replies[13][2].encoded.preview["together"] == [1, 3]
        eventually(lambda: hear(b"state")[0] == b"idle", "the worker is idle again")
    finally:
        worker.kill()
        worker.wait()
        context.destroy(linger=0)


# ---- the systems of this package ---------------------------------------------------------------------------------


class One:
    name = "one"

    def encode(self, image, options):
        return Encoded([Stream("x", np.ones(1, np.float32), "analog")], preview={"options": options})

    def decode(self, received, options):
        return Reconstruction(None, outage_reason=received.side_info.decode())


class Many(One):
    name = "many"

    def encode_many(self, images, options):
        return [self.encode(image, {**options, "of": len(images)}) for image in images]

    def decode_many(self, received, options):
        return [self.decode(one, options) for one in reversed(received)]


def test_systems_get_batches_if_they_take_them(monkeypatch):
    monkeypatch.setattr(
        "multisc.systems.registry.get_system", lambda name, models: {"one": One, "many": Many}[name]()
    )
    said = []
    handler = SystemsHandler("embedded", said.append)
    assert isinstance(handler, BatchHandler)
    images = [np.zeros((2, 2, 3), np.uint8)] * 3
    received = [ReceivedImage([], name) for name in (b"a", b"b")]
    assert handler.encode_many("one", images, {}) is None
    assert handler.decode_many("one", received, {}) is None
    encoded = handler.encode_many("many", images, {"seed": 5})
    assert [one.preview["options"] for one in encoded] == [{"seed": 5, "of": 3}] * 3
    assert [one.outage_reason for one in handler.decode_many("many", received, {})] == ["b", "a"]
    assert "encoding 3 pictures with many" in said
    assert "decoding 2 pictures with many" in said
