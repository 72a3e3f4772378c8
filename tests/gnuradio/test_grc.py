"""GNU Radio Companion finds every block and can make it; a wrong parameter fails an assertion that names it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from gnuradio import gr

from tests.support.grc import BLOCKS
from tests.support.paths import ROOT

DESCRIBED = sorted(path.name.removesuffix(".block.yml") for path in BLOCKS.glob("*.block.yml"))
VARIABLE = "variable_"
# What each assertion forbids: block, parameter, a value it refuses, and what the message names.
WAVEFORM = [
    ("fft_size", "300", "fft_size in"),
    ("cyclic_prefix", "15", "cyclic_prefix"),
    ("cyclic_prefix", "65", "cyclic_prefix"),
    ("occupied", "240", "occupied <="),
    ("occupied", "100", "occupied % 24"),
    ("max_payload_symbols", "513", "max_payload_symbols"),
]
REFUSED = [
    *(("multisc_burst_receiver", *case) for case in WAVEFORM),
    *(("multisc_burst_transmitter", *case) for case in WAVEFORM),
    *(("multisc_multiplexer", *case) for case in WAVEFORM if case[0] != "cyclic_prefix"),
    ("multisc_burst_transmitter", "amplitude", "0", "amplitude"),
    ("multisc_burst_transmitter", "tail", "-1", "tail"),
    ("multisc_burst_transmitter", "gap", "-1", "gap"),
    ("multisc_bpg_encoder", "max_bytes", "63", "max_bytes"),
    ("multisc_bpg_encoder", "code", "turbo", "code"),
    ("multisc_ldpc_encoder", "code", "none", "code"),
    ("multisc_ldpc_decoder", "iterations", "1001", "iterations"),
    ("multisc_modulator", "power_db", "{'text': 21}", "power_db"),
    ("multisc_image_source", "paths", "", "paths"),
    ("multisc_image_source", "first_id", "-1", "first_id"),
    ("multisc_image_file_sink", "folder", "", "folder"),
    ("multisc_link_statistics", "samp_rate", "0", "samp_rate"),
    ("multisc_link_statistics", "window", "0", "window"),
    ("multisc_sigmf_sink", "path", "", "path"),
    ("multisc_sigmf_sink", "samp_rate", "0", "samp_rate"),
    ("multisc_sigmf_sink", "frequency", "-1", "frequency"),
    ("multisc_sigmf_source", "path", "", "path"),
    ("multisc_sigmf_source", "samp_rate", "-1", "samp_rate"),
    ("multisc_semantic_encoder", "system", "", "system"),
    ("multisc_semantic_encoder", "options", "[]", "options"),
    ("multisc_semantic_decoder", "options", "3", "options"),
    ("variable_multisc_backend", "address", "localhost:5555", "address"),
    ("variable_multisc_backend", "models", "", "models"),
    ("variable_multisc_backend", "timeout_s", "3601", "timeout_s"),
    ("multisc_channel", "snr_db", "61", "snr_db"),
    ("multisc_channel", "clock_ppm", "1001", "clock_ppm"),
    ("multisc_channel", "amplitude", "-1", "amplitude"),
    ("multisc_channel", "samp_rate", "0", "samp_rate"),
    ("multisc_channel", "cfo_hz", "2e6", "cfo_hz"),
    ("multisc_channel", "seed", "-1", "seed"),
    ("multisc_channel", "doppler_hz", "-1", "doppler_hz"),
    ("multisc_channel", "doppler_hz", "5", "kind"),
    ("multisc_channel", "k_factor_db", "101", "k_factor_db"),
    ("multisc_channel", "delay_spread_s", "-1e-9", "delay_spread_s"),
    ("multisc_channel", "gain_db", "201", "gain_db"),
    ("multisc_channel", "delay", "-1", "delay"),
    ("multisc_channel", "linewidth_hz", "-1", "linewidth_hz"),
    ("multisc_channel", "iq_gain_db", "21", "iq_gain_db"),
    ("multisc_channel", "iq_phase_deg", "-46", "iq_phase_deg"),
    ("multisc_channel", "dc_offset", "-1", "dc_offset"),
    ("multisc_channel", "clip", "-1", "clip"),
    ("multisc_channel", "adc_bits", "17", "adc_bits"),
]


@pytest.fixture(scope="module")
def platform():
    from gnuradio.grc.core.platform import Platform

    made = Platform(name="test", prefs=gr.prefs(), version=gr.version(), version_parts=("3", "10", "0"))
    made.build_library([str(BLOCKS), *gr.prefs().get_string("grc", "global_blocks_path", "").split(":")])
    return made


@pytest.fixture
def flow_graph(platform):
    """A flowgraph in Companion with the variables that blocks refer to by default."""
    made = platform.make_flow_graph()
    for name, key, value in (
        ("samp_rate", "variable", {"value": "2e6"}),
        ("backend", "variable_multisc_backend", {}),
    ):
        block = made.new_block(key)
        for parameter, text in {"id": name, **value}.items():
            block.params[parameter].set_value(text)
    return made


def add(flow_graph, key: str, **values: str):
    """A block in Companion with some parameters changed, validated."""
    block = flow_graph.new_block(key)
    for parameter, value in {"id": "here", **values}.items():
        block.params[parameter].set_value(value)
    flow_graph.rewrite()
    flow_graph.validate()
    return block


def test_every_description_loads(platform) -> None:
    """GNU Radio Companion skips a description that it does not like without a word."""
    assert sorted(name for name in platform.blocks if "multisc" in name) == DESCRIBED
    import gnuradio.multisc

    named = {name: getattr(gnuradio.multisc, name) for name in gnuradio.multisc.__all__}
    blocks = {name for name, value in named.items() if isinstance(value, type) and issubclass(value, gr.basic_block)}
    assert {f"multisc_{name}" for name in blocks - {"collector"}} <= set(DESCRIBED)


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_says_what_the_block_does(platform, name: str) -> None:
    block = platform.blocks[name]
    assert block.category == ["multisc"]
    assert "FIX" not in block.label
    text = block.documentation[""]
    assert len(text) > 80
    for port in (*block.inputs_data, *block.outputs_data):
        assert port["domain"] == "stream" or re.search(rf"\b{port['id']}\b", text), port
    own = yaml.safe_load((BLOCKS / f"{name}.block.yml").read_text())
    assert own["file_format"] == 1
    for parameter in own.get("parameters", []):
        assert parameter.get("label") not in (None, "", parameter["id"])


def test_every_port_stands_in_the_table_of_pdus(platform) -> None:
    text = (ROOT / "docs" / "reference" / "pdu.md").read_text()
    rows = {row.split("|")[1].strip(): row.split("|")[2:4] for row in text.splitlines() if row.count("|") == 4}
    for name in DESCRIBED:
        block = platform.blocks[name]
        for ports, column in ((block.inputs_data, 0), (block.outputs_data, 1)):
            for port in (port for port in ports if port["domain"] == "message"):
                assert f"`{port['id']}`" in rows[block.label][column], (block.label, port["id"])


FILES = {"multisc_image_source": ("paths", "photo.png"), "multisc_sigmf_source": ("path", "air.cf32")}
WINDOWS = ("multisc_image_sink", "multisc_statistics_panel")  # need a display: tests of their own


@pytest.mark.parametrize("name", sorted(set(DESCRIBED) - set(WINDOWS)))
def test_a_block_can_be_made_with_its_defaults(flow_graph, name: str, photograph, tmp_path, monkeypatch) -> None:
    """The text that Companion writes into the program makes the block, with the ports that the description has."""
    from multisc.images import save_png

    monkeypatch.chdir(tmp_path)
    save_png(tmp_path / "photo.png", photograph)
    np.zeros(2000, np.complex64).tofile(tmp_path / "air.cf32")
    block = add(flow_graph, name, **dict([FILES[name]] if name in FILES else []))
    assert [message for message in block.get_error_messages() if "Assertion" in message] == []
    assert not any(parameter.get_error_messages() for parameter in block.params.values())
    scope: dict = {"samp_rate": 2e6, "self": SimpleNamespace()}
    exec(flow_graph_program(flow_graph, name, block), scope)
    if name.startswith(VARIABLE):
        assert scope["made"].models_of("bpg-ldpc") == "none"
        return
    made = scope["made"].to_basic_block()
    for kind, ports in (("in", block.inputs_data), ("out", block.outputs_data)):
        found = {str(port) for port in to_list(getattr(made, f"message_ports_{kind}")())} - {"system"}
        assert found == {port["id"] for port in ports if port["domain"] == "message"}
    for callback in block.templates.render("callbacks"):
        exec(f"made.{callback}", scope)


def flow_graph_program(flow_graph, name: str, block) -> str:
    """The lines that Companion writes for a block that refers to the variable ``backend``."""
    if name.startswith(VARIABLE):
        made = block.templates.render("var_make")
        return "\n".join([block.templates.render("imports"), made, f"made = {block.name}"])
    backend = next(b for b in flow_graph.blocks if b.name == "backend")
    lines = [backend.templates.render("imports"), backend.templates.render("var_make")]
    return "\n".join([*lines, block.templates.render("imports"), f"made = {block.templates.render('make')}"])


def to_list(vector) -> list:
    import pmt

    return [pmt.vector_ref(vector, i) for i in range(pmt.length(vector))]


@pytest.mark.parametrize(("name", "parameter", "value", "what"), REFUSED)
def test_a_wrong_parameter_fails_an_assertion_that_names_it(flow_graph, name, parameter, value, what) -> None:
    block = add(flow_graph, name, **{parameter: value})
    messages = [message for message in block.get_error_messages() if "Assertion" in message]
    assert any(what in message and message.endswith("failed.") for message in messages), messages


def test_every_assertion_has_a_case_above(platform) -> None:
    refused = [(name, what) for name, _, _, what in REFUSED]
    for name in DESCRIBED:
        for text in platform.blocks[name].asserts:
            assert any(name == case and what in text for case, what in refused), f"{name}: {text}"
