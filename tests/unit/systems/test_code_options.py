"""A code that does not exist is refused where the option is read, not where the bits are coded."""

from __future__ import annotations

import pytest

from multisc.errors import BadInputError
from multisc.systems.base import parse_options

CASES = [
    ("multi_sc", "MultiScOptions", "slice_code"),
    ("multi_sc", "MultiScOptions", "text_code"),
    ("vlm_csc", "CaptionOptions", "text_code"),
    ("vlf_msc", "VlfOptions", "code"),
]


@pytest.mark.parametrize(("module", "name", "option"), CASES)
@pytest.mark.parametrize("code", ["turbo", "nr:7/8", "pyldpc:648:3:7"])
def test_a_code_that_does_not_exist_is_refused_by_its_option(module: str, name: str, option: str, code: str) -> None:
    pytest.importorskip("torch")
    kind = getattr(pytest.importorskip(f"multisc.systems.{module}"), name)
    with pytest.raises(BadInputError, match=rf"option {option}: .*code"):
        parse_options(kind, {option: code}, module)
    assert getattr(parse_options(kind, {option: "nr:1/3"}, module), option) == "nr:1/3"
