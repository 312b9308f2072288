from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vplab.cli.image_files import find_images, link_or_copy, name_results
from vplab.cli.typed_values import artifact_name
from vplab.errors import InvalidInput


def test_images_are_found_by_suffix_in_order_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.tiff"):
        (tmp_path / name).write_text("")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.bmp").write_text("")
    assert [image.key for image in find_images([tmp_path], recursive=False)] == ["a.png", "b.JPG", "c.tiff"]
    assert [image.key for image in find_images([tmp_path], recursive=True)][-1] == "deep/d.bmp"
    assert [image.key for image in find_images([tmp_path / "notes.txt"], recursive=False)] == ["notes.txt"]
    both = find_images([tmp_path / "a.png", tmp_path / "c.tiff"], recursive=False)
    assert [image.key for image in both] == ["a.png", "c.tiff"]
    (tmp_path / "deep" / "a.png").write_text("")
    alike = find_images([tmp_path / "a.png", tmp_path / "deep" / "a.png"], recursive=False)
    assert len({image.key for image in alike}) == 2
    with pytest.raises(InvalidInput, match="does not exist"):
        find_images([tmp_path / "absent"], recursive=False)


KEYS = st.lists(st.from_regex(r"([ab]/){0,2}[ab_]{1,3}\.(png|jpg)", fullmatch=True), unique=True, max_size=12)


@given(KEYS, KEYS)
def test_names_are_unique_and_stay_when_images_are_added(first: list[str], more: list[str]) -> None:
    names = name_results(first, {})
    later = name_results([*first, *more], names)
    assert len(set(later.values())) == len(later) == len({*first, *more})
    assert {key: later[key] for key in first} == names
    assert all("/" not in name for name in later.values())


def test_a_link_holds_the_same_bytes_and_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for _ in range(2):
        link_or_copy(tmp_path / "a", tmp_path / "out" / "b")
    assert (tmp_path / "out" / "b").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("", ""),
        ("a", "artifacts/a"),
        ("a@3", "artifacts/a/versions/3"),
        ("a@production", "artifacts/a/aliases/production"),
        ("artifacts/a/versions/3", "artifacts/a/versions/3"),
    ],
)
def test_short_names_stand_for_resource_names(typed: str, name: str) -> None:
    assert artifact_name(typed) == name
