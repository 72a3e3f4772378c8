"""The inference server: hostile peers, vanishing clients, dying workers, back-pressure, keys."""

import os
import signal
import socket
import stat
import threading

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multisc import errors
from multisc.inference import wire
from multisc.inference.address import Address
from multisc.inference.client import InferenceClient
from multisc.inference.keys import load_client_keys, load_server_keys, make_keys
from multisc.inference.server import Server, ServerConfig
from tests.support.handlers import SETTINGS
from tests.support.inference import (
    DEADLINE_S,
    IMAGE,
    Gate,
    Stranger,
    children_of,
    eventually,
    is_running,
    running_server,
)

pytestmark = pytest.mark.usefixtures("handlers_can_be_imported")


def request(options=None, timeout_s=60.0):
    return wire.EncodeRequest("echo", IMAGE, options or {}, timeout_s)


@pytest.fixture(scope="module")
def server():
    with running_server(queue=4, message_limit=1 << 20) as running:
        yield running


@pytest.fixture
def stranger(server):
    with Stranger(server.address) as peer:
        yield peer


# ---- the protocol ------------------------------------------------------------------------------------------------


def test_a_request_without_a_greeting_is_answered(stranger):
    stranger.send(5, request())
    number, reply = stranger.answer()
    assert number == 5
    np.testing.assert_array_equal(reply.encoded.preview["image"], IMAGE)


def test_the_greeting_tells_version_interval_and_limit(stranger):
    stranger.send(5, wire.Hello("test"))
    number, welcome = stranger.answer()
    assert (number, welcome.heartbeat_s, welcome.message_limit) == (5, 0.1, 1 << 20)
    assert welcome.server.startswith("gr-multisc ")
    number, beat = stranger.answer(wire.Heartbeat)
    assert (number, beat.state) == (5, "expecting")


def test_several_requests_of_one_peer_are_answered_under_their_numbers(stranger):
    for number in (11, 12, 13):
        stranger.send(number, request({"say": str(number)}))
    assert sorted(stranger.answer(wire.EncodedReply)[0] for _ in range(3)) == [11, 12, 13]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"hello"], "malformed"),
        ([b"", b"REQ sockets send an empty frame first"], "malformed"),
        ([b"MSC\x09", b"future"], "version"),
        ([wire.MAGIC, b"\x80"], "malformed"),
        ([wire.MAGIC, b"\0" * (wire.HEADER_LIMIT + 1)], "oversized"),
        ([*wire.pack(1, wire.Hello("x"))[:2], *[b""] * 1000], "oversized"),
        ([b"x" * ((1 << 20) + 1)], "oversized"),
        (wire.pack(1, wire.Failure("failed", "from a client")), "malformed"),
    ],
)
def test_a_broken_message_is_counted_and_answered_with_one_line(server, stranger, frames, code):
    before = stranger.status()["metrics"]["refused"].get(code, 0)
    stranger.socket.send_multipart(frames)
    _, failure = stranger.answer()
    assert (failure.code, bool(failure.message)) == (code, True)
    assert stranger.status()["metrics"]["refused"][code] == before + 1
    assert any(line.startswith(f"refused ({code}, ") and "\n" not in line for line in server.lines)


def test_a_refusal_carries_the_number_of_the_request(stranger):
    frames = [bytes(frame) for frame in wire.pack(77, request())]
    stranger.socket.send_multipart([*frames[:2], frames[2], b""])
    assert stranger.answer()[0] == 0  # the envelope itself is broken
    stranger.socket.send_multipart([*frames[:2], frames[2][:-1]])
    assert stranger.answer()[0] == 77


def test_a_number_in_progress_cannot_be_used_again(stranger, tmp_path):
    gate = Gate(tmp_path)
    stranger.send(3, request({"gate": gate.path}))
    gate.await_entry()
    stranger.send(3, request())
    _, failure = stranger.answer()
    assert (failure.code, "in progress" in failure.message) == ("malformed", True)
    gate.open()
    assert stranger.answer(wire.EncodedReply)[0] == 3


@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_frames_whatever_stop_the_server(stranger, frames, magic):
    stranger.socket.send_multipart([wire.MAGIC, *frames] if magic else [b"x", *frames])
    assert isinstance(stranger.answer()[1], wire.Failure)
    assert stranger.status()["health"] == "ready"


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 4096,
        b"\0" * 1000,
        b"\xff" + bytes(8) + b"\x7f\x03\0" + b"x" * 100,
    ],
)
def test_a_peer_of_another_protocol_does_no_harm(server, stranger, greeting):
    address = Address.parse(server.address)
    before = stranger.status()["metrics"]["connections"].get("closed", 0)
    with socket.create_connection((address.host, address.port)) as peer:
        peer.sendall(greeting)
    eventually(lambda: stranger.status()["metrics"]["connections"].get("closed", 0) > before, "it was noticed")
    stranger.send(1, request())
    assert isinstance(stranger.answer()[1], wire.EncodedReply)


def test_a_frame_far_beyond_the_limit_is_cut_off_and_the_server_lives(server, stranger):
    with Stranger(server.address) as giant:
        closed = stranger.status()["metrics"]["connections"].get("closed", 0)
        giant.socket.send_multipart([wire.MAGIC, b"\0" * (4 << 20)])
        eventually(lambda: stranger.status()["metrics"]["connections"].get("closed", 0) > closed, "cut off")
    assert stranger.status()["health"] == "ready"


def test_more_clients_than_fit_are_told_so(server, stranger, monkeypatch):
    monkeypatch.setattr("multisc.inference.server.MAX_CLIENTS", 1)
    stranger.send(1, wire.Hello("first"))
    stranger.answer(wire.Welcome)
    with Stranger(server.address) as second:
        second.send(2, wire.Hello("second"))
        assert second.answer()[1].code == "busy"


# ---- errors of the handler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"raise": "bad", "message": "seed 'x': must be a number"}, "bad-input", "seed 'x': must be a number"),
        ({"raise": "model"}, "model", "as asked"),
        ({"raise": "failed"}, "failed", "as asked"),
        ({"raise": "value", "message": "two\nlines"}, "internal", "ValueError: two lines (handlers.py:"),
        ({"raise": "exit"}, "internal", "SystemExit: as asked"),
        ({"raise": "memory"}, "model", "the memory of the models' device is short: end other programs on it"),
        ({"return": "not an Encoded"}, "internal", "AttributeError"),
        ({"return": "too large"}, "failed", "larger than 1048576 bytes"),
    ],
)
def test_errors_of_the_handler_come_back_typed(stranger, options, code, message):
    stranger.send(1, request(options))
    _, failure = stranger.answer()
    assert (failure.code, failure.message[: len(message)] == message or message in failure.message) == (code, True)
    stranger.send(2, request())
    assert isinstance(stranger.answer()[1], wire.EncodedReply)


# ---- time-outs, vanishing clients, back-pressure ----------------------------------------------------------------


def test_a_request_past_its_time_is_called_off_and_the_worker_goes_on(stranger, tmp_path):
    worker = stranger.status()["workers"][0]["pid"]
    stranger.send(1, request({"gate": Gate(tmp_path).path}, timeout_s=0.3))
    _, failure = stranger.answer()
    assert failure.code == "timeout"
    assert "0.3 s" in failure.message
    stranger.send(2, request())  # the gate is never opened: the handler was interrupted
    reply = stranger.answer(wire.EncodedReply)[1]
    assert reply.encoded.preview["pid"] == worker


def test_a_waiting_request_past_its_time_is_dropped(stranger, tmp_path):
    gate = Gate(tmp_path)
    stranger.send(1, request({"gate": gate.path}))
    gate.await_entry()
    stranger.send(2, request(timeout_s=0.1))
    number, failure = stranger.answer()
    assert (number, failure.code) == (2, "timeout")
    assert "waiting for a worker" in failure.message
    gate.open()
    assert stranger.answer(wire.EncodedReply)[0] == 1


def test_a_client_that_vanishes_has_its_work_dropped(server, stranger, tmp_path):
    gate = Gate(tmp_path)
    before = stranger.status()["metrics"]["outcomes"].get("abandoned", 0)
    with Stranger(server.address) as vanishing:
        vanishing.send(1, request({"gate": gate.path}))
        gate.await_entry()
        vanishing.send(2, request({"gate": gate.path}))
        eventually(lambda: stranger.status()["queue"]["waiting"] == 1, "the second waits")
    status = eventually(
        lambda: (s := stranger.status())["metrics"]["outcomes"].get("abandoned", 0) == before + 2 and s,
        "both dropped",
    )
    assert (status["running"], status["queue"]["waiting"], status["clients"]) == (0, 0, 0)
    stranger.send(1, request())  # though nobody opened the gate
    assert isinstance(stranger.answer(wire.EncodedReply)[1], wire.EncodedReply)


def test_a_full_queue_answers_busy(stranger, tmp_path):
    gate = Gate(tmp_path)
    stranger.send(1, request({"gate": gate.path}))
    gate.await_entry()
    for number in range(2, 6):
        stranger.send(number, request())
    stranger.send(6, request())
    number, failure = stranger.answer()
    assert (number, failure.code, failure.message) == (6, "busy", "4 requests wait already")
    gate.open()
    assert [stranger.answer(wire.EncodedReply)[0] for _ in range(5)] == [1, 2, 3, 4, 5]


def test_heartbeats_say_where_a_request_is(stranger, tmp_path):
    gate = Gate(tmp_path)
    stranger.send(1, request({"gate": gate.path, "say": "drawing"}))
    gate.await_entry()
    stranger.send(2, request())
    stranger.send(3, request())
    beats = {}

    def complete():
        number, beat = stranger.answer(wire.Heartbeat)
        beats[number] = (beat.state, beat.detail, beat.ahead)
        return beats == {1: ("running", "drawing", 0), 2: ("queued", "", 0), 3: ("queued", "", 1)}

    eventually(complete, f"all three places, not {beats}")
    gate.open()
    for _ in range(3):
        stranger.answer(wire.EncodedReply)


# ---- workers -----------------------------------------------------------------------------------------------------


def test_two_workers_work_at_the_same_time_and_one_may_die(tmp_path):
    gates = [Gate(tmp_path, name) for name in "ab"]
    with running_server(workers=2) as server, Stranger(server.address) as peer:
        for number, gate in enumerate(gates):
            peer.send(number, request({"gate": gate.path}))
        for gate in gates:
            gate.await_entry()  # both are in their handlers now
        status = peer.status()
        assert status["running"] == 2
        pids = {worker["pid"] for worker in status["workers"]}
        assert len(pids) == 2
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        lost, failure = peer.answer()
        assert failure.code == "worker-died"
        assert "worker 0 ended (killed by SIGKILL)" in failure.message
        gates[1 - lost].open()
        assert peer.answer(wire.EncodedReply)[0] == 1 - lost
        status = eventually(lambda: (s := peer.status())["health"] == "ready" and s, "a new worker")
        assert [worker["restarts"] for worker in status["workers"]] == [1, 0]
        assert "SIGKILL" in status["workers"][0]["last_error"]
        assert any("SIGKILL" in line for line in server.lines)


def test_workers_share_out_the_cores_and_the_devices(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with running_server(workers=2, devices=("3", "GPU-5a")) as server, Stranger(server.address) as peer:
        seen = []
        for number in range(2):  # the idle worker that has done least is chosen
            peer.send(number, request())
            seen.append(peer.answer(wire.EncodedReply)[1].encoded.preview["environment"])
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert seen == [dict(zip(SETTINGS, (threads, "PASSIVE", device), strict=True)) for device in ("3", "GPU-5a")]


def test_a_worker_that_dies_of_its_request_is_replaced(stranger):
    stranger.send(1, request({"die": True}))
    assert stranger.answer()[1].code == "worker-died"
    stranger.send(2, request())
    assert isinstance(stranger.answer(wire.EncodedReply)[1], wire.EncodedReply)


def test_a_worker_that_does_not_let_go_is_killed(tmp_path):
    gate = Gate(tmp_path)
    with running_server(call_off_grace_s=0.2) as server, Stranger(server.address) as peer:
        stubborn = peer.status()["workers"][0]["pid"]
        peer.send(1, request({"stubborn": gate.path}, timeout_s=0.2))
        assert peer.answer()[1].code == "timeout"
        peer.send(2, request())
        assert peer.answer(wire.EncodedReply)[1].encoded.preview["pid"] != stubborn
        assert not is_running(stubborn)
        assert any("does not let go" in line for line in server.lines)


def test_stopping_answers_the_waiting_and_ends_the_workers(tmp_path):
    gate = Gate(tmp_path)
    with running_server() as server, Stranger(server.address) as peer:
        worker = peer.status()["workers"][0]["pid"]
        peer.send(1, request({"gate": gate.path}))
        gate.await_entry()
        server.stop()
        assert peer.answer()[1].code == "stopping"
    assert not is_running(worker)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"preload": ("no-model",)}, errors.ModelError, "tokenizer.json is missing"),
        ({"preload": ("no-system",)}, errors.BadInputError, "must be one of echo"),
        ({"preload": ("crash",)}, errors.MultiscError, "worker 0 ended (killed by SIGSEGV) while it was"),
        ({"handler": "tests.support.handlers:Nothing"}, errors.BadInputError, "MODULE:FACTORY"),
        ({"handler": "no_such_module:x"}, errors.BadInputError, "MODULE:FACTORY"),
        ({"handler": "os"}, errors.BadInputError, "MODULE:FACTORY"),
    ],
)
def test_workers_that_cannot_start_end_the_server_with_their_error(settings, error, says):
    values = {"bind": "tcp://127.0.0.1:0", "handler": "tests.support.handlers:Echo", "preload": (), **settings}
    server = Server(ServerConfig(**values), log=lambda line: None)
    before = set(children_of(os.getpid()))
    with pytest.raises(error) as caught:
        server.run()
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert set(children_of(os.getpid())) <= before


def test_requests_wait_while_the_models_load(tmp_path, monkeypatch):
    gate = Gate(tmp_path)
    monkeypatch.setenv("MULTISC_TEST_GATE", gate.path)
    events = []
    server = Server(
        ServerConfig("tcp://127.0.0.1:0", handler="tests.support.handlers:Echo", preload=("gate",), heartbeat_s=0.1),
        log=lambda line: None,
    )
    thread = threading.Thread(target=server.run, args=(lambda *event: events.append(event),))
    thread.start()
    try:
        with Stranger(server.address) as peer:
            gate.await_entry()
            assert peer.status()["health"] == "starting"
            peer.send(1, request())
            eventually(lambda: peer.answer(wire.Heartbeat)[1].detail == "loading gate", "the progress is told")
            gate.open()
            assert isinstance(peer.answer(wire.EncodedReply)[1], wire.EncodedReply)
    finally:
        server.stop()
        thread.join(DEADLINE_S)
    assert ("loading", "loading gate") in events
    assert events[-1] == ("ready", server.address)


# ---- addresses and keys ------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(server):
    with pytest.raises(errors.BadInputError, match=f"{server.address} is in use"):
        Server(ServerConfig(server.address))


@pytest.mark.parametrize(
    "settings",
    [
        {"bind": "tcp://0.0.0.0:5555"},
        {"bind": "tcp://*:5555"},
        {"bind": "tcp://[::]:5555"},
        {"bind": "tcp://192.168.1.2:5555"},
        {"bind": "udp://127.0.0.1:5555"},
        {"workers": 0},
        {"queue": 0},
        {"batch": 65},
        {"message_limit": 0},
        {"heartbeat_s": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(errors.BadInputError):
        ServerConfig(**settings)


@pytest.mark.parametrize(
    ("text", "loopback", "canonical"),
    [
        ("tcp://127.0.0.1:5555", True, "tcp://127.0.0.1:5555"),
        ("tcp://localhost:1", True, "tcp://127.0.0.1:1"),
        ("tcp://127.9.9.9:1", True, "tcp://127.9.9.9:1"),
        ("tcp://[::1]:5555", True, "tcp://[::1]:5555"),
        ("tcp://10.0.0.1:5555", False, "tcp://10.0.0.1:5555"),
        ("tcp://gpu-box.example.org:5555", False, "tcp://gpu-box.example.org:5555"),
        ("tcp://localhost.evil.example:1", False, "tcp://localhost.evil.example:1"),
    ],
)
def test_addresses(text, loopback, canonical):
    address = Address.parse(text)
    assert (address.is_loopback, str(address)) == (loopback, canonical)


@pytest.mark.parametrize(
    "text",
    ["", "5555", "127.0.0.1:5555", "tcp://", "tcp://x", "tcp://x:", "tcp://:1", "tcp://x:65536", "tcp://x:-1",
     "tcp://x:1;y", "tcp://a b:1", "tcp://[::g]:1", "ipc:///tmp/x", "tcp://x:١"],
)  # fmt: skip
def test_addresses_that_are_none(text):
    with pytest.raises(errors.BadInputError, match="must be tcp://HOST:PORT"):
        Address.parse(text)


needs_curve = pytest.mark.skipif(not zmq.has("curve"), reason="libzmq was built without CURVE")


@needs_curve
def test_curve_round_trip_and_who_is_kept_out(tmp_path):
    ours, others = tmp_path / "ours", tmp_path / "others"
    make_keys(ours)
    make_keys(others)
    mine = load_client_keys(ours / "client.key")
    # A stranger who knows the server's public key, but is not on the list.
    intruder = others / "client.key"
    intruder.write_text(
        intruder.read_text().replace(load_client_keys(intruder).server.decode(), mine.server.decode())
    )
    with (
        running_server(keys=load_server_keys(ours)) as server,
        InferenceClient(server.address, keys=ours / "client.key") as client,
        InferenceClient(server.address, 5, keys=intruder) as other,
        InferenceClient(server.address, 5, dead_after_s=0.5) as bare,
    ):
        np.testing.assert_array_equal(client.encode("echo", IMAGE).preview["image"], IMAGE)
        assert client.status()["encrypted"]
        with pytest.raises(errors.InferenceError, match="does not know the keys"):
            other.encode("echo", IMAGE)
        assert client.status()["metrics"]["refused"]["unauthorized"] >= 1
        with pytest.raises(errors.InferenceError):
            bare.status()


@needs_curve
def test_a_server_with_other_keys_than_the_client_expects_gets_nothing(tmp_path):
    make_keys(tmp_path / "ours")
    make_keys(tmp_path / "others")
    with (
        running_server(keys=load_server_keys(tmp_path / "others")) as impostor,
        InferenceClient(impostor.address, 5, keys=tmp_path / "ours" / "client.key", dead_after_s=0.5) as client,
    ):
        with pytest.raises(errors.InferenceError):
            client.encode("echo", IMAGE)
        assert impostor.status()["metrics"]["requests"] == {}


@needs_curve
def test_with_keys_it_may_listen_to_others(tmp_path):
    make_keys(tmp_path / "keys")
    with running_server(bind="tcp://0.0.0.0:0", keys=load_server_keys(tmp_path / "keys")) as server:
        address = f"tcp://127.0.0.1:{Address.parse(server.address).port}"
        with InferenceClient(address, keys=tmp_path / "keys" / "client.key") as client:
            assert client.status()["health"] == "ready"


@needs_curve
def test_key_files_are_private_and_never_overwritten(tmp_path):
    paths = make_keys(tmp_path / "keys")
    assert sorted(path.name for path in paths) == ["authorized-clients", "client.key", "server.key"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    with pytest.raises(errors.BadInputError, match="exists already"):
        make_keys(tmp_path / "keys")
    (tmp_path / "keys" / "server.key").chmod(0o640)
    with pytest.raises(errors.BadInputError, match="chmod 600"):
        load_server_keys(tmp_path / "keys")


@needs_curve
@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"role": "client", "public": "short"}', "\xff", '{"role": "server"}']
)
def test_files_that_are_no_keys(tmp_path, text):
    path = tmp_path / "client.key"
    path.write_text(text, encoding="latin1")
    path.chmod(0o600)
    with pytest.raises(errors.BadInputError, match=r"client\.key"):
        load_client_keys(path)
    with pytest.raises(errors.BadInputError, match="cannot read keys"):
        load_client_keys(tmp_path / "missing.key")
