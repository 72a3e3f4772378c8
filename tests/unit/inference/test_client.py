"""The client: what it raises, and when; from threads as GNU Radio has them; against servers that misbehave."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import zmq

from multisc import errors
from multisc.inference import wire
from multisc.inference.client import InferenceClient
from multisc.streams import ReceivedImage, ReceivedStream
from tests.support.inference import DEADLINE_S, IMAGE, Gate, eventually, running_server
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("handlers_can_be_imported")


@pytest.fixture(scope="module")
def server():
    with running_server(queue=1, message_limit=1 << 20) as running:
        yield running


@pytest.fixture
def client(server):
    with InferenceClient(server.address, 20) as made:
        yield made


@contextmanager
def misbehaving(answers):
    """A server that answers each message with the next of ``answers(identity, number) -> frames``; then is silent."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind("tcp://127.0.0.1:0")
    stop = threading.Event()

    def serve():
        left = list(answers)
        while not stop.is_set():
            if router.poll(20):
                identity, *frames = router.recv_multipart()
                if left:
                    router.send_multipart([identity, *left.pop(0)(wire.message_id(frames))])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
    finally:
        stop.set()
        thread.join()
        router.close()
        context.term()


def welcome(number):
    return wire.pack(number, wire.Welcome("test", 1.0, 1 << 20))


def in_thread(function):
    """Run a function in a thread; returns the thread, and the list its result or error is put in."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_encode_and_decode(client):
    encoded = client.encode("echo", IMAGE, {"seed": 1})
    assert [stream.name for stream in encoded.streams] == ["slice", "bits"]
    assert encoded.streams[0].quantiser.bits == 4
    assert encoded.side_info == b"side"
    np.testing.assert_array_equal(encoded.preview["image"], IMAGE)
    received = ReceivedImage([ReceivedStream("slice", encoded.streams[0].data, crc_ok=False)], encoded.side_info)
    rebuilt = client.decode("echo", received)
    assert rebuilt.text == {"received": ["slice"]}
    assert (rebuilt.image == 7).all()


@pytest.mark.parametrize(
    ("kind", "cls", "message"),
    [
        ("bad", errors.BadInputError, "as asked"),
        ("model", errors.ModelError, "as asked"),
        ("failed", errors.MultiscError, "as asked"),
        ("value", errors.MultiscError, "internal error in the inference process at tcp://127.0.0.1:"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_errors_of_the_handler_arrive_as_their_class(client, method, kind, cls, message):
    subject = IMAGE if method == "encode" else ReceivedImage([], b"")
    with pytest.raises(cls) as caught:
        getattr(client, method)("echo", subject, {"raise": kind})
    assert type(caught.value) is cls
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("system", "image", "options"),
    [
        ("Echo?", IMAGE, {}),
        ("echo", IMAGE.astype(np.float32), {}),
        ("echo", IMAGE[..., 0], {}),
        ("echo", IMAGE, {"x": object()}),
        ("echo", np.zeros((600, 600, 3), np.uint8), {}),
    ],
)
def test_what_the_server_would_refuse_is_not_sent(client, system, image, options):
    with pytest.raises(errors.BadInputError):
        client.encode(system, image, options)


@pytest.mark.parametrize(
    ("address", "timeout_s", "keys", "says"),
    [
        ("tcp://gpu.example.org:5555", 1, None, "client.key"),
        ("tcp://0.0.0.0:5555", 1, None, "client.key"),
        ("http://127.0.0.1:5555", 1, None, "tcp://HOST:PORT"),
        ("tcp://127.0.0.1:5555", 0, None, "time-out 0"),
        ("tcp://127.0.0.1:5555", float("nan"), None, "time-out nan"),
        ("tcp://127.0.0.1:5555", 1e9, None, "time-out"),
        ("tcp://gpu.example.org:5555", 1, "/no/such/client.key", "/no/such/client.key"),
    ],
)
def test_bad_settings_are_refused(address, timeout_s, keys, says):
    with pytest.raises(errors.BadInputError, match=says):
        InferenceClient(address, timeout_s, keys=keys)


def test_an_address_where_nobody_listens():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        taken.bind("tcp://127.0.0.1:0")
        address = taken.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
    with InferenceClient(address, 60, dead_after_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(errors.InferenceError, match=f"{address} does not answer.*multisc serve"):
            client.encode("echo", IMAGE)
        assert time.monotonic() - began < 5


def test_the_time_out_is_kept_and_names_the_address(server, client, tmp_path):
    with InferenceClient(server.address, 0.5) as hurried, pytest.raises(errors.InferenceError) as caught:
        hurried.encode("echo", IMAGE, {"gate": Gate(tmp_path).path})
    assert server.address in str(caught.value)
    client.encode("echo", IMAGE)  # nobody opened the gate, but the worker is free again


def test_work_longer_than_the_silence_of_a_dead_server_is_no_time_out(server, tmp_path):
    gate = Gate(tmp_path)
    lines = []
    with InferenceClient(server.address, 20, dead_after_s=0.5, on_progress=lines.append) as patient:
        thread, outcome = in_thread(lambda: patient.encode("echo", IMAGE, {"gate": gate.path, "say": "drawing"}))
        gate.await_entry()
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 1.5, "three times the silence")
        gate.open()
        thread.join(DEADLINE_S)
    np.testing.assert_array_equal(outcome[0].preview["image"], IMAGE)
    assert "drawing" in lines


def test_a_busy_server_is_asked_again(server, tmp_path):
    gates = [Gate(tmp_path, name) for name in "ab"]
    lines = []
    with InferenceClient(server.address, 20, on_progress=lines.append) as client:
        threads = [in_thread(lambda gate=gate: client.encode("echo", IMAGE, {"gate": gate.path})) for gate in gates]
        eventually(lambda: client.status()["queue"]["waiting"] == 1, "one runs, one waits")
        third, outcome = in_thread(lambda: client.encode("echo", IMAGE))
        eventually(lambda: any("busy" in line for line in lines), "the third is told")
        with (
            InferenceClient(server.address, 0.6) as hurried,
            pytest.raises(errors.InferenceError, match=r"busy: 1 requests wait already, for 0\.6 s"),
        ):
            hurried.encode("echo", IMAGE)
        for gate in gates if os.path.exists(gates[0].path + ".in") else gates[::-1]:
            gate.open()
        for thread, _ in [*threads, (third, outcome)]:
            thread.join(DEADLINE_S)
    assert [type(result[0]).__name__ for _, result in [*threads, (third, outcome)]] == ["Encoded"] * 3


def test_many_threads_may_share_a_client():
    with running_server(workers=2, queue=32) as server, InferenceClient(server.address, 20) as client:
        images = [np.full((8, 8, 3), value, np.uint8) for value in range(12)]
        threads = [in_thread(lambda image=image: client.encode("echo", image)) for image in images]
        for image, (thread, outcome) in zip(images, threads, strict=True):
            thread.join(DEADLINE_S)
            np.testing.assert_array_equal(outcome[0].preview["image"], image)


def test_closing_gives_up_what_other_threads_wait_for(server, client, tmp_path):
    gate = Gate(tmp_path)
    other = InferenceClient(server.address, 60)
    thread, outcome = in_thread(lambda: other.encode("echo", IMAGE, {"gate": gate.path}))
    gate.await_entry()
    other.close()
    thread.join(DEADLINE_S)
    assert isinstance(outcome[0], errors.InferenceError)
    assert "closed" in str(outcome[0])
    with pytest.raises(errors.InferenceError, match="closed"):
        other.status()
    other.close()  # again: harmless
    client.encode("echo", IMAGE)  # the work was dropped


def test_a_worker_that_dies_is_an_error_at_once(client):
    began = time.monotonic()
    with pytest.raises(errors.InferenceError, match=r"worker-died: worker 0 ended \(killed by SIGKILL\)"):
        client.encode("echo", IMAGE, {"die": True})
    assert time.monotonic() - began < 5


def test_a_server_that_stops_in_the_middle_says_so(tmp_path):
    gate = Gate(tmp_path)
    with running_server() as server, InferenceClient(server.address, 60) as client:
        thread, outcome = in_thread(lambda: client.encode("echo", IMAGE, {"gate": gate.path}))
        gate.await_entry()
        server.stop()
        thread.join(DEADLINE_S)
    assert isinstance(outcome[0], errors.InferenceError)
    assert "stopping" in str(outcome[0])


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([lambda n: [b"garbage"]], "breaks the protocol"),
        ([lambda n: [b"MSC\x02", b""]], "breaks the protocol: message of protocol version 2"),
        ([lambda n: [wire.MAGIC, b"\0" * (wire.HEADER_LIMIT + 1)]], "breaks the protocol: header of"),
        ([lambda n: wire.pack(n + 1, wire.Heartbeat("queued"))], "answers a request that was not made"),
        ([lambda n: wire.pack(n, wire.StatusReply({}))], "unexpected StatusReply"),
        ([lambda n: wire.pack(n, wire.Hello("you"))], "unexpected Hello"),
        ([welcome, welcome], "unexpected Welcome"),
        ([welcome, lambda n: wire.pack(n, wire.Failure("version", "old\x1b[31m"))], "version: old"),
        ([welcome], "has not been heard for 0."),
        ([], "does not answer"),
    ],
)
def test_a_server_that_misbehaves_is_a_link_error(answers, says):
    with (
        misbehaving(answers) as address,
        InferenceClient(address, 20, dead_after_s=0.5) as client,
        pytest.raises(errors.InferenceError) as caught,
    ):
        client.encode("echo", IMAGE)
    assert says in str(caught.value)
    assert address in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_ctrl_c_reaches_a_waiting_client():
    script = (
        "import numpy as np, sys\n"
        "from multisc.inference.client import InferenceClient\n"
        "client = InferenceClient(sys.argv[1], 60, on_progress=lambda line: print(line, flush=True))\n"
        "try:\n"
        "    client.encode('echo', np.zeros((4, 4, 3), np.uint8))\n"
        "except KeyboardInterrupt:\n"
        "    client.close()\n"
        "    print('interrupted', flush=True)\n"
    )
    beats = [welcome, lambda n: wire.pack(n, wire.Heartbeat("running", "drawing"))]
    with misbehaving(beats) as address:
        process = subprocess.Popen([sys.executable, "-c", script, address], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "drawing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=DEADLINE_S)[0] == "interrupted\n"
        assert process.returncode == 0


def test_the_client_in_the_documentation(server):
    """A stranger's client, as docs/reference/inference.md has it: it needs nothing of this project."""
    text = (ROOT / "docs" / "reference" / "inference.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "multisc" not in code
    space = {}
    exec(code, space)
    reply = space["encode"](server.address, "echo", IMAGE, {"seed": 1})
    assert [stream["name"] for stream in reply["streams"]] == ["slice", "bits"]
    np.testing.assert_array_equal(reply["preview"]["image"], IMAGE)
    with pytest.raises(RuntimeError, match="as asked"):
        space["encode"](server.address, "echo", IMAGE, {"raise": "bad"})


def test_the_documentation_names_every_kind_and_code():
    text = (ROOT / "docs" / "reference" / "inference.md").read_text()
    for name in [row[0] for row in wire._KINDS] + list(wire.FAILURES):
        assert f"| `{name}` |" in text, name


def test_the_client_side_imports_neither_torch_nor_gnuradio():
    script = (
        "import sys, multisc.inference.client, multisc.inference.process\n"
        "bad = {name.split('.')[0] for name in sys.modules} & {'torch', 'gnuradio', 'transformers', 'diffusers'}\n"
        "sys.exit(' '.join(bad) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, "")
