import pytest

from vplab.client.json_lines import JsonLines
from vplab.errors import FailedPrecondition


def test_one_command_at_a_time_writes_to_a_journal_and_the_next_goes_on(tmp_path):
    path = tmp_path / "out" / "journal.jsonl"
    with JsonLines(path, {"seeds": 3}) as first:
        first.append({"image": 1})
        with pytest.raises(FailedPrecondition, match="another command is writing to"):
            JsonLines(path, {"seeds": 3})
        first.append({"image": 2})
    with JsonLines(path, {"seeds": 3}) as second:
        assert second.lines == [{"image": 1}, {"image": 2}]


def test_a_journal_of_other_settings_is_refused_and_stays_free(tmp_path):
    path = tmp_path / "journal.jsonl"
    with JsonLines(path, {"seeds": 3}):
        pass
    with pytest.raises(FailedPrecondition, match="seeds: 3 then, 5 now"):
        JsonLines(path, {"seeds": 5})
    with JsonLines(path, {"seeds": 3}) as again:
        assert again.lines == []


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    with JsonLines(path, {}) as first:
        first.append({"image": 1})
    with path.open("a") as file:
        file.write('{"image": 2')
    with JsonLines(path, {}) as second:
        assert second.lines == [{"image": 1}]
        second.append({"image": 3})
    with JsonLines(path, {}) as third:
        assert third.lines == [{"image": 1}, {"image": 3}]
