import pytest

from isjax.reporting.failures import (
    Failures,
    describe_failures,
    load_failures,
    save_failures,
)

FOUND = {"train": Failures([3, 17], []), "test": Failures([4], list(range(12)))}


def test_failures_are_read_back_and_go_when_there_are_none(tmp_path):
    save_failures(tmp_path, FOUND)
    assert load_failures(tmp_path) == FOUND
    save_failures(tmp_path, {})
    save_failures(tmp_path, {})
    assert load_failures(tmp_path) == {} and not list(tmp_path.iterdir())


def test_examples_are_named_up_to_ten():
    assert describe_failures(FOUND) == [
        "train: examples 3, 17 are not finite, and left out of the means; repair the data, or "
        "leave such examples out",
        "test: example 4 is not finite, and left out of the means; repair the data, or leave such "
        "examples out",
        "test: examples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 others have no finite loss, though the "
        "data are",
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"train": 3}', '{"train": {"data": [1]}}', '{"a": {"data": 1}}']
)
def test_a_damaged_file_names_nothing(tmp_path, text):
    (tmp_path / "failures.json").write_text(text)
    assert load_failures(tmp_path) == {}
