"""Where systems run: here, in an inference process that is there, or in an own one that is started when needed."""

import functools
import os

import numpy as np
import pytest

from multisc.errors import BadInputError, InferenceError
from multisc.inference import backend as module
from multisc.inference.backend import Backend
from multisc.inference.process import OwnInferenceProcess
from multisc.streams import ReceivedImage, ReceivedStream
from tests.support.inference import IMAGE, is_running, running_server


@pytest.fixture
def started(monkeypatch, handlers_can_be_imported):
    """Own processes run the tests' handler; the list holds those that were made."""
    made = []

    @functools.wraps(OwnInferenceProcess)
    def make(*args, **options):
        made.append(OwnInferenceProcess(*args, arguments=["--handler", "tests.support.handlers:Echo"], **options))
        return made[-1]

    monkeypatch.setattr(module, "OwnInferenceProcess", make)
    return made


def test_an_own_process_is_started_once_when_it_is_needed_and_ended(started):
    with Backend() as backend:
        assert started == []
        first = backend.encode("multi-sc", IMAGE, {})
        second = backend.encode("single-text", IMAGE, {})
        assert first.preview["pid"] == second.preview["pid"] != os.getpid()
        shown = backend.decode("multi-sc", ReceivedImage([ReceivedStream("x", np.zeros(3, np.uint8))], b""), {})
        assert shown.text["received"] == ["x"]
        assert backend.models_of("multi-sc") == "embedded"
        (process,) = started
        pid = process.pid
    assert not is_running(pid)
    with pytest.raises(InferenceError):
        _ = process.address


def test_a_system_without_models_starts_nothing(started):
    with Backend("tcp://127.0.0.1:1") as backend:  # nobody is there, nobody is asked
        nothing = ReceivedImage([], b"")
        assert backend.decode("bpg-ldpc", nothing, {}).outage
        assert backend.models_of("bpg-ldpc") == backend.models_of("mystery") == "none"
        with pytest.raises(BadInputError, match="mystery"):
            backend.decode("mystery", nothing, {})
    assert started == []


def test_a_named_inference_process_is_used(started):
    with running_server() as server, Backend(server.address) as backend:
        assert backend.encode("multi-sc", IMAGE, {}).preview["system"] == "multi-sc"
        assert backend.models_of("multi-sc") == "embedded"
    assert started == []


def test_a_closed_backend_starts_nothing(started):
    with Backend() as backend:
        pass
    with pytest.raises(InferenceError, match="closed"):
        backend.encode("multi-sc", IMAGE, {})
    assert started == []


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 3601.0, float("nan")])
def test_a_bad_time_out_is_refused_before_anything_is_started(started, timeout_s):
    with pytest.raises(BadInputError, match="time-out"):
        Backend(timeout_s=timeout_s)
    assert started == []


def test_a_bad_address_is_refused_at_once():
    for address in ("udp://127.0.0.1:1", "tcp://10.0.0.1:5555"):
        with pytest.raises(BadInputError):
            Backend(address)
