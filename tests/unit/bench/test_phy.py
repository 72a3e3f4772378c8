"""The benchmark of the physical layer runs and says what it measured."""

import importlib.util

import pytest

from multisc.bench import phy
from multisc.errors import BadInputError


@pytest.mark.slow
def test_rows_of_this_project_and_of_gnu_radio() -> None:
    result = phy.measure(seconds=0.1)
    names = [row["name"] for row in result["rows"]]
    assert sum("multisc transmitter" in n for n in names) == 2
    assert sum("multisc receiver, " in n for n in names) == 2
    assert all(row["msps"] > 0 for row in result["rows"])
    with_gnu_radio = {n for n in (*names, *result["missing"]) if "GNU Radio" in n}
    assert len(with_gnu_radio) == 4
    if importlib.util.find_spec("gnuradio") is None:
        assert set(result["missing"]) == with_gnu_radio
    else:
        assert not result["missing"]


def test_time_out_of_range_is_refused() -> None:
    with pytest.raises(BadInputError, match="seconds"):
        phy.measure(seconds=0.0)
