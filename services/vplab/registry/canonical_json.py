"""JSON with exactly one spelling for each value (RFC 8785), so that equal manifests have equal digests everywhere.

Members are sorted by the UTF-16 code units of their keys, there is no white space, strings escape only what JSON must,
and numbers are written as ECMAScript writes a double. Integers are written in full, so callers keep them within
2^53 - 1, where every language reads them back exactly.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final

MAX_SAFE_INTEGER: Final = 2**53 - 1

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


def canonical_json(value: JsonValue) -> bytes:
    """Serialise to UTF-8. Raises ValueError for a number that JSON cannot hold or a lone surrogate."""
    return _text(value).encode("utf-8")


def _text(value: JsonValue) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, Mapping):
        members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be"))
        return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_text(item)}" for key, item in members) + "}"
    return "[" + ",".join(_text(item) for item in value) + "]"


def number_text(number: float) -> str:
    """Write a double as ECMAScript's Number::toString: the shortest digits that read back as the same double."""
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a JSON number")
    if number == 0:
        return "0"  # minus zero too
    sign = "-" if number < 0 else ""
    mantissa, _, exponent = f"{abs(number)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    # The decimal point stands after this many of the digits.
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    return sign + _place_point(digits, point)


def _place_point(digits: str, point: int) -> str:
    count = len(digits)
    if count <= point <= 21:
        return digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    exponent = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return digits[0] + (f".{digits[1:]}" if count > 1 else "") + exponent
