"""The command ``multisc serve``."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import zmq

from multisc.cli import main
from multisc.link.client import InferenceClient
from tests.support.inference import DEADLINE_S, IMAGE, children_of, eventually, is_running

pytestmark = pytest.mark.usefixtures("handlers_can_be_imported")
COMMAND = [sys.executable, "-m", "multisc", "serve"]
ECHO = ["--handler", "tests.support.handlers:Echo", "--preload", ""]


@pytest.fixture
def serving():
    """A function that starts ``multisc serve`` and returns the process and its address once it is ready."""
    started = []

    def start(*arguments, bind="tcp://127.0.0.1:0"):
        process = subprocess.Popen(
            [*COMMAND, "--bind", bind, *ECHO, *arguments], stderr=subprocess.PIPE, text=True, process_group=0
        )
        started.append(process)
        for line in process.stderr:
            if " ready at " in line:
                return process, line.split()[-1]
        raise AssertionError(f"it ended with {process.wait()}")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE_S)


def test_a_port_in_use_is_one_line_and_exit_code_2():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = run("--bind", address, *ECHO)
    assert done.returncode == 2
    assert done.stderr == f"multisc serve: {address} is in use by another program: choose another port with --bind\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bind", "tcp://0.0.0.0:5555"], "--make-keys"),
        (["--bind", "tcp://192.0.2.1:5555"], "--make-keys"),
        (["--bind", "5555"], "must be tcp://HOST:PORT"),
        (["--bind", "tcp://127.0.0.1:70000"], "must be tcp://HOST:PORT"),
        (["--workers", "0"], "workers 0"),
        (["--queue", "0"], "queue 0"),
        (["--batch", "65"], "batch 65"),
        (["--max-message", "0"], "message limit 0"),
        (["--keys", "/no/such/directory"], "/no/such/directory/server.key"),
        (["--devices", ""], "devices ''"),
        (["--devices", "0,;rm"], "devices '0,;rm'"),
        (["--parent-fd", "77777"], "--parent-fd 77777"),
        (["--add-client", "laptop"], "needs --keys"),
        (["--add-client", "laptop", "--keys", "/no/such/directory"], "/no/such/directory/server.key"),
        (["--add-client", "../x", "--keys", "/"], "'../x'"),
        (["--make-keys", "/proc/no"], "/proc/no"),
        (["--status", "nonsense"], "must be tcp://HOST:PORT"),
        (["--status", "tcp://gpu.example.org:5555"], "client.key"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert main(["serve", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("multisc serve: ")
    assert line.count("\n") == 1
    assert says in line


@pytest.mark.skipif(not zmq.has("curve"), reason="libzmq was built without CURVE")
def test_an_address_that_is_not_ours_is_one_line(tmp_path, capsys):
    assert main(["serve", "--make-keys", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["serve", "--bind", "tcp://192.0.2.1:5555", "--keys", str(tmp_path)]) == 2  # RFC 5737: nobody's
    assert capsys.readouterr().err.startswith("multisc serve: cannot bind to tcp://192.0.2.1:5555: ")


def test_a_failing_start_ends_with_the_error():
    done = run("--bind", "tcp://127.0.0.1:0", "--handler", "tests.support.handlers:Echo", "--preload", "no-model")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "multisc serve: checkpoint x: tokenizer.json is missing"
    assert "Traceback" not in done.stderr


def test_the_status_of_a_running_server(serving, capsys):
    _, address = serving("--workers", "2")
    with InferenceClient(address) as client:
        client.encode("echo", IMAGE)
    assert main(["serve", "--status", address]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{address}: ready, gr-multisc ")
    assert "worker 1: idle" in text
    assert "EncodeRequest 1" in text
    assert "batches: 1 of 1 requests\n" in text
    assert main(["serve", "--status", address, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["metrics"]["outcomes"] == {"ok": 1}
    assert status["metrics"]["batches"] == {"1": 1}
    assert status["metrics"]["worked_s"]["median"] >= 0


def test_the_status_where_nobody_listens_is_one_line_and_exit_code_1(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    assert main(["serve", "--status", address]) == 1
    line = capsys.readouterr().err
    assert address in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_orderly(serving, number):
    process, _ = serving("--workers", "2")
    workers = eventually(lambda: len(found := children_of(process.pid)) == 2 and found, "both workers")
    os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
    assert process.wait(DEADLINE_S) == 0
    assert "Traceback" not in process.stderr.read()
    assert not any(is_running(pid) for pid in workers)


@pytest.mark.skipif(not zmq.has("curve"), reason="libzmq was built without CURVE")
def test_keys_from_making_to_status(serving, tmp_path, capsys):
    assert main(["serve", "--make-keys", str(tmp_path / "keys")]) == 0
    paths = capsys.readouterr().out.split()
    assert all(os.stat(path).st_mode & 0o777 == 0o600 for path in paths)
    assert main(["serve", "--make-keys", str(tmp_path / "keys")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["serve", "--keys", str(tmp_path / "keys"), "--add-client", "laptop"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/keys/laptop.key\n"
    assert main(["serve", "--keys", str(tmp_path / "keys"), "--add-client", "laptop"]) == 2
    assert "exists already" in capsys.readouterr().err
    _, address = serving("--keys", str(tmp_path / "keys"), bind="tcp://0.0.0.0:0")
    local = address.replace("0.0.0.0", "127.0.0.1")
    for name in ("client.key", "laptop.key"):
        assert main(["serve", "--status", local, "--keys", str(tmp_path / "keys" / name)]) == 0
        assert "encrypted" in capsys.readouterr().out


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    assert "multisc serve --status tcp://" in capsys.readouterr().out
