import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vplab.errors import InvalidInput
from vplab.registry.paging import PageRequest, make_page

QUERY = ["ListArtifacts", None, [["line", "7"]], False]


@pytest.mark.parametrize(("size", "limit"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**32 - 1, 1000)])
def test_page_size_is_bounded(size: int, limit: int) -> None:
    assert PageRequest(size).limit == limit


def test_token_leads_back_to_its_key() -> None:
    page = make_page(["x"], True, QUERY, ["scratch"])
    assert PageRequest(1, page.next_token).position(QUERY, (str,)) == ("scratch",)


def test_last_page_has_no_token() -> None:
    assert make_page(["x"], False, QUERY, ["x"]).next_token == ""
    assert make_page([], True, QUERY, None).next_token == ""
    assert PageRequest().position(QUERY, (str,)) is None


def test_token_is_bound_to_its_query() -> None:
    token = make_page(["x"], True, QUERY, ["scratch"]).next_token
    with pytest.raises(InvalidInput, match="other parameters"):
        PageRequest(1, token).position([*QUERY[:3], True], (str,))


def forged(key: object) -> str:
    text = base64.urlsafe_b64decode(make_page(["x"], True, QUERY, ["x"]).next_token)
    return base64.urlsafe_b64encode(json.dumps({**json.loads(text), "k": key}).encode()).decode()


@pytest.mark.parametrize("key", [[], ["a", "b"], [7], [None], "a", {"a": 1}, ["a\0"], ["\ud800"], [True], None])
def test_forged_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidInput):
        PageRequest(1, forged(key)).position(QUERY, (str,))


@pytest.mark.parametrize("key", [[2**63], [1.5], [True], ["7"]])
def test_forged_number_is_refused(key: object) -> None:
    with pytest.raises(InvalidInput):
        PageRequest(1, forged(key)).position(QUERY, (int,))


@given(st.text(min_size=1))
def test_random_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        PageRequest(1, token).position(QUERY, (str,))


@given(st.binary(min_size=1).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_random_bytes_are_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        PageRequest(1, token).position(QUERY, (str,))
