"""The inference process of one's own: it starts, it stops, and nothing ever stays behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types

import numpy as np
import pytest

from multisc import errors
from multisc.inference.client import InferenceClient
from multisc.inference.process import OwnInferenceProcess
from tests.support.inference import DEADLINE_S, IMAGE, Gate, children_of, eventually, is_running

pytestmark = pytest.mark.usefixtures("handlers_can_be_imported")
ECHO = ("--handler", "tests.support.handlers:Echo")


def own(**settings):
    return OwnInferenceProcess(**{"preload": (), "arguments": ECHO, **settings})


def family(pid):
    """A server and its workers, once they are all there."""
    return [pid, *eventually(lambda: children_of(pid), "the workers")]


def gone(pids):
    return not any(is_running(pid) for pid in pids)


def test_it_serves_and_leaves_nothing_behind():
    lines = []
    with own(workers=2, on_progress=lines.append) as process:
        pids = family(process.pid)
        assert len(pids) == 3
        assert process.alive
        with InferenceClient(process.address, 20) as client:
            np.testing.assert_array_equal(client.encode("echo", IMAGE).preview["image"], IMAGE)
    assert gone(pids)
    assert not process.alive
    with pytest.raises(errors.InferenceError, match="not running"):
        _ = process.address
    assert not [pid for pid in children_of(os.getpid()) if pid in pids]  # reaped: no zombies
    process.stop()  # again: harmless


def test_the_inference_process_never_imports_gnuradio():
    """Neither the server nor a worker; and the real systems bring in torch there, not GNU Radio."""
    with own() as process, InferenceClient(process.address, 20) as client:
        assert client.encode("echo", IMAGE).preview["modules"] == ["numpy"]
    script = (
        "import importlib.util, sys, multisc.cli.serve, multisc.inference.server, multisc.inference.worker\n"
        "if importlib.util.find_spec('multisc.systems.registry'):\n"
        "    import multisc.systems.registry\n"
        "sys.exit(' '.join({name.split('.')[0] for name in sys.modules} & {'gnuradio'}) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_models_are_loaded_before_it_is_ready(tmp_path, monkeypatch):
    gate = Gate(tmp_path)
    monkeypatch.setenv("MULTISC_TEST_GATE", gate.path)
    lines = []
    process = own(preload=("gate",), on_progress=lines.append)
    thread = threading.Thread(target=process.start)
    thread.start()
    gate.await_entry()
    eventually(lambda: "loading gate" in lines, "the progress is told")
    assert thread.is_alive()
    gate.open()
    thread.join(DEADLINE_S)
    with InferenceClient(process.address) as client:
        assert client.status()["health"] == "ready"
    process.stop()


@pytest.mark.parametrize(
    ("settings", "cls", "message"),
    [
        ({"preload": ("no-model",)}, errors.ModelError, "cannot start: checkpoint x: tokenizer.json is missing"),
        ({"preload": ("no-system",)}, errors.BadInputError, "system 'no-system': must be one of echo"),
        ({"preload": ("crash",)}, errors.MultiscError, "killed by SIGSEGV"),
        ({"workers": 0}, errors.BadInputError, "workers 0: must be 1 to 64"),
        ({"arguments": ("--handler", "nothing:x")}, errors.BadInputError, "MODULE:FACTORY"),
        ({"arguments": ("--no-such-option",)}, errors.InferenceError, "exit code 2.*unrecognized arguments"),
    ],
)
def test_a_child_that_cannot_start_says_why(settings, cls, message):
    before = children_of(os.getpid())
    with pytest.raises(cls, match=message) as caught, own(**settings):
        pass
    assert type(caught.value) is cls
    assert "\n" not in str(caught.value)
    assert children_of(os.getpid()) == before


@pytest.mark.slow
def test_a_child_that_is_silent_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISC_TEST_GATE", Gate(tmp_path).path)
    process = own(preload=("gate",), silence_s=2.0)
    with pytest.raises(errors.InferenceError, match="was silent for 2 s while starting: "):
        process.start()
    assert not process.alive


def test_a_child_that_tells_its_progress_may_take_long(monkeypatch):
    mine, theirs = socket.socketpair()
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("multisc.inference.process.time", types.SimpleNamespace(monotonic=lambda: clock.now))
    heard = []

    def step(line):
        heard.append(line)
        clock.now += 100.0  # three of these are more than the silence that is borne
        percent = 30 * len(heard)
        event = ["loading", f"fetching x: {percent} %"] if percent < 90 else ["ready", "tcp://127.0.0.1:1"]
        theirs.sendall(json.dumps(event).encode() + b"\n")

    with mine, theirs:
        step("starting")
        assert own(silence_s=180.0, on_progress=step)._await_ready(mine) == "tcp://127.0.0.1:1"
    assert heard == ["starting", "fetching x: 30 %", "fetching x: 60 %"]
    assert clock.now == 300.0


def test_a_server_killed_in_the_middle_is_noticed_at_once(tmp_path):
    gate = Gate(tmp_path)
    with own() as process, InferenceClient(process.address, 60) as client:
        pids = family(process.pid)
        threading.Thread(target=lambda: (gate.await_entry(), os.kill(process.pid, signal.SIGKILL))).start()
        began = time.monotonic()
        with pytest.raises(errors.InferenceError, match="was lost"):
            client.encode("echo", IMAGE, {"gate": gate.path})
        assert time.monotonic() - began < 10
        eventually(lambda: gone(pids), "the workers end with their server")


@pytest.mark.slow
def test_a_server_that_hangs_is_noticed_within_seconds(tmp_path):
    gate = Gate(tmp_path)
    with own() as process, InferenceClient(process.address, 60, dead_after_s=2.0) as client:
        threading.Thread(target=lambda: (gate.await_entry(), os.kill(process.pid, signal.SIGSTOP))).start()
        began = time.monotonic()
        with pytest.raises(errors.InferenceError, match="has not been heard for"):
            client.encode("echo", IMAGE, {"gate": gate.path})
        assert time.monotonic() - began < 10
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_child_that_hangs_is_killed():
    process = own()
    process.start()
    pids = family(process.pid)
    os.kill(process.pid, signal.SIGSTOP)
    process.stop()
    eventually(lambda: gone(pids), "killed, and its workers with it")


PROGRAM = textwrap.dedent("""
    import os, signal, sys, time
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup it is ignored
    from multisc.inference.process import OwnInferenceProcess
    process = OwnInferenceProcess(preload=(), arguments=("--handler", "tests.support.handlers:Echo"))
    def main():
        with process:
            print(process.pid, flush=True)
            {ending}
    main()
""")
WAIT = "signal.pause()"


def start_program(ending, **settings):
    """Run a program with an own inference process; returns it, and all the process ids below it."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(ending=ending)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )
    line = program.stdout.readline()
    assert line, program.communicate(timeout=DEADLINE_S)[1]
    return program, family(int(line))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_nothing_stays_behind_whatever_ends_the_program(number):
    program, pids = start_program(WAIT)
    program.send_signal(number)
    program.communicate(timeout=DEADLINE_S)
    eventually(lambda: gone(pids), f"everything has gone after {number.name}")


@pytest.mark.parametrize(
    "ending",
    [
        "raise RuntimeError",
        "sys.exit(3)",
        "os._exit(0)",
        "process.__class__.__exit__ = lambda *_: None",
        "os.abort()",
    ],
)
def test_nothing_stays_behind_however_the_program_ends(ending):
    program, pids = start_program(ending)
    program.communicate(timeout=DEADLINE_S)
    eventually(lambda: gone(pids), f"everything has gone after {ending}")


def test_a_forked_child_of_the_program_does_not_keep_it_alive():
    program, pids = start_program(f"os.fork(); {WAIT}")
    others = eventually(lambda: set(children_of(program.pid)) - set(pids), "the forked process")
    program.kill()
    program.wait(DEADLINE_S)
    program.stdout.close()
    program.stderr.close()
    try:
        eventually(lambda: gone(pids), "everything has gone, though forked processes hold the same sockets")
        assert any(is_running(pid) for pid in others)
    finally:
        for pid in others:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


def test_ctrl_c_in_a_terminal_is_orderly():
    """The terminal signals the whole foreground group; the child is not in it, and is stopped by the program."""
    program, pids = start_program(WAIT, process_group=0)
    assert all(os.getpgid(pid) != program.pid for pid in pids)
    os.killpg(program.pid, signal.SIGINT)
    _, stderr = program.communicate(timeout=DEADLINE_S)
    assert gone(pids)
    assert stderr.count("Traceback") == 1  # the program's own KeyboardInterrupt
    assert stderr.rstrip().endswith("KeyboardInterrupt")


def test_an_orphaned_worker_ends():
    with own() as process:
        server, worker = family(process.pid)
        os.kill(server, signal.SIGKILL)
        eventually(lambda: gone([worker]), "the worker has gone")
