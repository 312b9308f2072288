"""What a call that may refuse its input ended with."""

from collections.abc import Callable
from typing import TypeVar

from vplab.errors import InvalidInput

T = TypeVar("T")


def value_or_refusal(call: Callable[[], T]) -> T | InvalidInput:
    """Return the value, or the refusal; every other exception fails the test."""
    try:
        return call()
    except InvalidInput as error:
        return error
