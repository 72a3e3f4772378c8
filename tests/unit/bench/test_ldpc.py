"""``multisc bench ldpc``: its rows, and that what it measures decodes."""

import json

import pytest

from multisc.bench import ldpc
from multisc.cli import main
from multisc.errors import BadInputError


@pytest.mark.slow
def test_rows_beside_the_peers(capsys):
    assert main(["bench", "ldpc", "--json", "--seconds", "0.05"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in result["rows"]}
    assert all(row["info_mbit_s"] > 0 and 0 <= row["fer"] <= 1 for row in rows.values())
    own = [row for name, row in rows.items() if name.startswith("multisc")]
    assert {row["code"] for row in own} == {"nr:1024:512", "nr:1944:972", "pyldpc:1008:3:6"}
    # At 2.5 dB every decoder works: a row with many failures would measure nothing useful.
    assert all(row["fer"] < 0.1 for row in rows.values())
    peer = next(row for name, row in rows.items() if name.startswith("pyldpc"))
    fastest = max(row["info_mbit_s"] for row in own if row["code"] == "nr:1024:512")
    assert fastest > 100 * peer["info_mbit_s"]
    assert set(result["missing"]) <= {"gr-fec ldpc_decoder", "Sionna offset-minsum, CPU"}


def test_a_peer_that_fails_is_reported_not_fatal(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("import sys\nsys.exit('no such decoder')\n")
    monkeypatch.setattr(ldpc, "PEERS", tmp_path)
    words = ldpc._Words(ldpc.GallagerBlock(60, 3, 6))
    assert ldpc._child("broken.py", words, 0.1) == "no such decoder"


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9])
def test_time_out_of_range_is_refused(seconds):
    with pytest.raises(BadInputError, match="seconds per row"):
        ldpc.measure(seconds)


def test_table_names_every_column(capsys, monkeypatch):
    rows = [{"name": "a", "info_mbit_s": 31.25}, {"name": "b", "info_mbit_s": 0.5, "fer": 0.125}]
    monkeypatch.setattr(ldpc, "measure", lambda seconds: {"rows": rows, "missing": {}, "cpus": 2})
    assert main(["bench", "ldpc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "info_mbit_s", "fer"]
    assert lines[1].split() == ["a", "31.25"]
    assert lines[2].split() == ["b", "0.5", "0.125"]
    assert lines[3] == "cpus: 2"
