import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vplab.registry.canonical_json import canonical_json, number_text

# RFC 8785, appendix B: the bits of a double and its text.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers_are_written_as_the_rfc_says(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert number_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_reads_back_as_itself(number: float) -> None:
    assert float(number_text(number)) == number


@given(st.floats(min_value=1e-6, max_value=1e20))
def test_plain_numbers_have_no_needless_characters(number: float) -> None:
    text = number_text(number)
    assert "e" not in text
    assert not text.startswith("00")
    assert not ("." in text and text.endswith("0"))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not a JSON number"):
        canonical_json({"a": [number]})


def test_members_are_sorted_by_utf16_code_units() -> None:
    # RFC 8785, section 3.2.3: an emoji is two units beginning with D83D, so it sorts before U+FB33.
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    text = canonical_json(dict.fromkeys(keys)).decode()
    assert list(json.loads(text)) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_strings_escape_only_what_they_must() -> None:
    text = '€$\u000f\nA\'B"\\\\"/\x7f'
    assert canonical_json(text).decode() == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f"'


def test_there_is_no_white_space() -> None:
    assert canonical_json({"b": [1, 2.0, True, None], "a": {}}) == b'{"a":{},"b":[1,2,true,null]}'


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        canonical_json("\ud800")
