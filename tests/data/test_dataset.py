import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial

from isjax.data import dataset
from isjax.data.source import Source, finite_examples


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
        (part(label=np.array(["cat", "dog"])), r"\['label'\] holds strings, .* np\.unique\(labels"),
        (part(x=np.array(["a word", "two"])), r"\['x'\] holds strings, .* numbers alone"),
        (part(x=[[0.0, 1.0], [2.0, 3.0]]), r"\['x'\]\[0\]\[0\]: .* a list by np\.asarray"),
        (
            part(label=np.array([0.0, 1.0])),
            r"labels are of type float64; give integers in \[0, 3\)",
        ),
    ],
)
def test_from_arrays_refuses_bad_parts(bad, message):
    for name in ("train", "test", "valid"):
        parts = dict.fromkeys(("train", "test", "valid"), part()) | {name: bad}
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            dataset.from_arrays(**parts, num_classes=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused_by_the_first_example(bad):
    """One such target made the variance NaN, and with it the loss of all examples never seen."""
    y = np.zeros((50, 1))
    y[[17, 30]] = bad
    parts = {name: {"x": np.zeros((50, 2)), "y": np.zeros((50, 1))} for name in ("train", "test")}
    message = r"test\['y'\]: example 17 has a number that is NaN, .* as have 2 of 50 examples"
    with pytest.raises(ValueError, match=message):
        dataset.from_arrays(parts["train"], parts["test"] | {"y": y})
    with pytest.raises(ValueError, match=r"^train: example 1 has"):
        dataset.from_arrays(np.array([0, bad]), np.zeros(1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64, np.complex64])
def test_every_kind_of_float_is_looked_at(dtype):
    x = np.zeros((12_000, 2), dtype)
    assert finite_examples((x, np.arange(12_000))).all()
    x[10_500, 1] = np.nan
    assert np.flatnonzero(~finite_examples((x,))).tolist() == [10_500]


def test_of_a_source_the_examples_in_memory_are_looked_at():
    x = np.ones(3000)
    x[999] = np.nan  # every third is held
    with pytest.raises(ValueError, match=r"^train: example 999 has .* 1 of 1000 examples"):
        dataset.from_arrays(Source(x), np.zeros(1))
    x[999], x[1000] = 0, np.nan
    dataset.from_arrays(Source(x), np.zeros(1))


def test_from_arrays_takes_any_pytree():
    pair = (np.zeros((3, 2)), [np.zeros(3)])
    made = dataset.from_arrays(pair, np.zeros(4), valid={"a": np.ones(1)}, vocabulary=["a", "b"])
    assert made.train is pair and made.num_classes is None
    assert made.valid == {"a": np.ones(1)} and made.vocabulary == ("a", "b")
    assert dataset.from_arrays(pair, pair)[2:] == (None,) * 5


def test_classes_have_names_one_each():
    names = ["cat", "dog", "owl"]
    assert dataset.from_arrays(part(), part(), 3, class_names=names).class_names == tuple(names)
    for num_classes in (2, 4, None):
        with pytest.raises(
            ValueError, match=f"3 names, but num_classes is {num_classes}; name each"
        ):
            dataset.from_arrays(part(), part(), num_classes, class_names=names)
    noisy = dataset.with_label_noise(dataset.from_arrays(part(), part(), 3, class_names=names), 1.0)
    assert noisy.class_names == tuple(names)


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
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(dataset.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        dataset.save(tmp_path / "arrays.npz", x=np.zeros(2))
    assert not list(tmp_path.iterdir())


def labelled(size, classes, dtype=np.int32, valid=True):
    label = (np.arange(size) % classes).astype(dtype)
    whole = {"x": np.arange(2.0 * size).reshape(size, 2), "label": label, "weight": np.ones(size)}
    return dataset.from_arrays(whole, whole, classes, whole if valid else None)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize(
    ("size", "share", "number"),
    [(100, 0.2, 20), (10, 0.25, 2), (7, 0.5, 4), (30, 0.01, 0), (30, 0.0, 0), (30, 1.0, 30)],
)
def test_label_noise_changes_exactly_its_share_and_nothing_else(size, share, number, dtype):
    clean = labelled(size, 3, dtype)
    before = clean.train["label"].copy()
    noisy = dataset.with_label_noise(clean, share)
    label = noisy.train["label"]
    assert (label != before).sum() == number and label.dtype == dtype
    assert label.min() >= 0 and label.max() < 3
    np.testing.assert_array_equal(clean.train["label"], before)
    for name in ("x", "weight"):
        np.testing.assert_array_equal(noisy.train[name], clean.train[name])
    for part in ("test", "valid"):
        np.testing.assert_array_equal(getattr(noisy, part)["label"], before)
    assert noisy.num_classes == 3 and labelled(5, 3, valid=False).valid is None


def test_label_noise_falls_on_any_example_and_any_other_class_as_likely():
    size, classes, share, seeds = 40, 4, 0.3, 500
    clean = labelled(size, classes)
    before = clean.train["label"]
    labels = np.stack(
        [dataset.with_label_noise(clean, share, s).train["label"] for s in range(seeds)]
    )
    wrong = labels != before
    assert_binomial(wrong.sum(axis=0), seeds, share)
    shifts = (labels - before)[wrong] % classes
    assert_binomial(np.bincount(shifts, minlength=classes)[1:], wrong.sum(), 1 / 3)
    again = dataset.with_label_noise(clean, share, 7).train["label"]
    np.testing.assert_array_equal(again, labels[7])


def test_label_noise_of_two_classes_is_the_other_one():
    clean = labelled(20, 2)
    label = dataset.with_label_noise(clean, 1.0).train["label"]
    np.testing.assert_array_equal(label, 1 - clean.train["label"])


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=rf"label_noise is {share}; choose a share in \[0, 1\]"):
        dataset.with_label_noise(labelled(9, 3), share)


@pytest.mark.parametrize("classes", [None, 1])
def test_label_noise_needs_another_class(classes):
    numbers = labelled(9, 1)._replace(num_classes=classes)
    with pytest.raises(ValueError, match=r"label_noise is 0\.2, but the data set has no classes"):
        dataset.with_label_noise(numbers, 0.2)


@pytest.mark.parametrize("train", [{"x": np.ones(3)}, {"source": np.array([0, 2, 1])}])
def test_each_source_has_a_name(train):
    with pytest.raises(ValueError, match=r"there are 2 source_names, but .* name each source once"):
        dataset.from_arrays(train, train, source_names=["a", "b"])
    named = {"source": np.array([0, 1, 1])}
    assert dataset.from_arrays(named, named, source_names=["a", "b"]).source_names == ("a", "b")
