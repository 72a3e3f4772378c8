"""The benchmark of the physical layer runs and says what it measured."""

import importlib.util

import pytest

from multisc.bench import phy
from multisc.errors import BadInputError


def test_rows_of_this_project_and_of_gnu_radio() -> None:
    result = phy.measure(seconds=0.1)
    names = [row["name"] for row in result["rows"]]
    assert sum("multisc transmitter" in n for n in names) == 2
    assert sum("multisc receiver" in n for n in names) == 2
    assert all(row["msps"] > 0 for row in result["rows"])
    if importlib.util.find_spec("gnuradio") is None:
        assert set(result["missing"]) == {"GNU Radio ofdm_tx", "GNU Radio ofdm_rx"}
    else:
        assert "GNU Radio ofdm_tx" in names or "GNU Radio ofdm_tx" in result["missing"]


def test_time_out_of_range_is_refused() -> None:
    with pytest.raises(BadInputError, match="seconds"):
        phy.measure(seconds=0.0)
