import random

import numpy as np
import pytest

from isjax import data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def small(cache, **numbers):
    return data.mnist1d(cache, **{"num_train": 180, "num_test": 20} | numbers)


def test_mnist1d_has_the_authors_examples(cache):
    """The first examples equal a generation by the authors' code with their defaults."""
    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.num_samples, args.train_split = 200, 0.9
    state = np.random.get_state()
    theirs = make_dataset(args)
    np.random.set_state(state)
    ours = small(cache)
    np.testing.assert_array_equal(ours.train["x"][:, :, 0], theirs["x"].astype(np.float32))
    np.testing.assert_array_equal(ours.test["x"][:, :, 0], theirs["x_test"].astype(np.float32))
    np.testing.assert_array_equal(ours.train["label"], theirs["y"])
    np.testing.assert_array_equal(ours.test["label"], theirs["y_test"])


def test_mnist1d_shapes_and_classes(cache):
    dataset = small(cache)
    assert dataset.num_classes == 10
    assert dataset.train["x"].shape == (180, 40, 1) and dataset.train["x"].dtype == np.float32
    assert dataset.test["label"].shape == (20,) and dataset.test["label"].dtype == np.int32
    labels = np.concatenate([dataset.train["label"], dataset.test["label"]])
    assert np.bincount(labels).tolist() == [20] * 10


def test_mnist1d_is_generated_once(cache, monkeypatch):
    first = small(cache)
    monkeypatch.setattr(data, "_generate_mnist1d", lambda *_: pytest.fail("generated again"))
    np.testing.assert_array_equal(small(cache).train["x"], first.train["x"])


def test_mnist1d_leaves_the_global_generators_alone(tmp_path):
    np.random.seed(1)
    random.seed(1)
    expected = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    small(tmp_path)
    assert (np.random.rand(), random.random()) == expected


def test_the_seed_matters(cache):
    assert not np.array_equal(small(cache, seed=1).train["x"], small(cache).train["x"])


@pytest.mark.parametrize("numbers", [{"num_train": 0}, {"num_test": -1}, {"num_train": 181}])
def test_mnist1d_refuses_impossible_numbers(cache, numbers):
    with pytest.raises(ValueError, match="multiple of 10"):
        small(cache, **numbers)


def test_nothing_is_left_of_a_generation_that_failed(tmp_path, monkeypatch):
    def fail(file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(data.np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        small(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, "no arrays"),
        ({"x": np.zeros((0, 2)), "label": np.zeros(0, int)}, "non-empty"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(2, int)}, r"\['x'\]: \(3, 2\)"),
        ({"x": np.zeros((2, 2)), "label": np.array([0, 4])}, r"\[0, 3\)"),
        ({"x": np.zeros((2, 2)), "label": np.array([-1, 0])}, "from -1 to 0"),
    ],
)
def test_from_arrays_refuses_bad_parts(train, message):
    test = {"x": np.zeros((2, 2)), "label": np.zeros(2, int)}
    with pytest.raises(ValueError, match=f"train: .*{message}"):
        data.from_arrays(train, test, num_classes=3)
    with pytest.raises(ValueError, match=f"test: .*{message}"):
        data.from_arrays(test, train, num_classes=3)
