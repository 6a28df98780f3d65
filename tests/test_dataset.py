import pathlib

import numpy as np
import pytest

from isjax import dataset


def part(size=2, **arrays):
    return {"x": np.zeros((size, 2)), "label": np.zeros(size, int)} | arrays


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "no arrays"),
        (part(0), "non-empty"),
        (part(3, label=np.zeros(2, int)), r"\['x'\]: \(3, 2\)"),
        (part(label=np.array([0, 4])), r"\[0, 3\)"),
        (part(label=np.array([-1, 0])), "from -1 to 0"),
        ({"x": np.zeros((2, 2))}, 'num_classes is 3, but there is no "label"'),
        (np.zeros((2, 2)), 'no "label"'),
        ((np.zeros((2, 2)), np.zeros(2, int)), 'no "label"'),
    ],
)
def test_from_arrays_refuses_bad_parts(bad, message):
    for name in ("train", "test", "valid"):
        parts = dict.fromkeys(("train", "test", "valid"), part()) | {name: bad}
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            dataset.from_arrays(**parts, num_classes=3)


def test_from_arrays_takes_any_pytree():
    pair = (np.zeros((3, 2)), [np.zeros(3)])
    made = dataset.from_arrays(pair, np.zeros(4), valid={"a": np.ones(1)}, vocabulary=["a", "b"])
    assert made.train is pair and made.num_classes is None
    assert made.valid == {"a": np.ones(1)} and made.vocabulary == ("a", "b")
    assert dataset.from_arrays(pair, pair)[2:] == (None, None, None)


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert dataset.cache_dir() == pathlib.Path("/some/where/isjax")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert dataset.cache_dir() == pathlib.Path("/home/me/.cache/isjax")


def test_saved_arrays_come_back(tmp_path):
    path = tmp_path / "new" / "arrays.npz"
    dataset.save(path, x=np.arange(3), label=np.zeros(2, np.int32))
    with np.load(path) as arrays:
        assert arrays["x"].tolist() == [0, 1, 2] and arrays["label"].dtype == np.int32
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    def fail(file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(dataset.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        dataset.save(tmp_path / "arrays.npz", x=np.zeros(2))
    assert not list(tmp_path.iterdir())
