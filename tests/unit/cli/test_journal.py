import json
from pathlib import Path

import pytest

from vplab.cli.journal import ClassFigures, Entry, Journal
from vplab.errors import FailedPrecondition

ENTRY = Entry("a.png", 10, 20, "a", 4, 3, 0.5, (ClassFigures(1, "x", True, 0.5, 0.6, 7, 1),))


def test_entries_are_read_back_in_the_next_run(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j", {"set": 1}) as journal:
        journal.add(ENTRY)
        journal.add(Entry("b.png", 1, 2, error="broken"))
    with Journal.open(tmp_path / "j", {"set": 1}) as again:
        assert again.entries["a.png"] == ENTRY
        assert not again.entries["b.png"].is_done


def test_a_later_entry_of_an_image_counts(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j", {}) as journal:
        journal.add(Entry("a.png", 1, 2, error="broken"))
        journal.add(ENTRY)
    with Journal.open(tmp_path / "j", {}) as again:
        assert again.entries["a.png"].is_done


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    Journal.open(tmp_path / "j", {"prompt_set": "a", "adapter": ""}).close()
    with pytest.raises(FailedPrecondition, match="prompt_set: 'a' then, 'b' now"):
        Journal.open(tmp_path / "j", {"prompt_set": "b", "adapter": ""})


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_journal_cut_anywhere_in_its_last_line_keeps_the_others(tmp_path: Path, cut: int) -> None:
    with Journal.open(tmp_path / "j", {}) as journal:
        journal.add(ENTRY)
        journal.add(Entry("b.png", 1, 2, "b"))
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-cut])
    with Journal.open(tmp_path / "j", {}) as again:
        assert list(again.entries) == ["a.png"]
        again.add(Entry("c.png", 1, 2, "c"))
    lines = (tmp_path / "j").read_text().splitlines()
    assert [json.loads(line).get("image") for line in lines] == [None, "a.png", "c.png"]


def test_lines_that_are_not_ours_are_left_out(tmp_path: Path) -> None:
    Journal.open(tmp_path / "j", {}).close()
    with (tmp_path / "j").open("a") as file:
        file.write('garbage\n[]\n{"image": "x"}\n')
    with Journal.open(tmp_path / "j", {}) as again:
        assert again.entries == {}
