import random

import numpy as np
import pytest
from helpers import DAMAGES, damage

from isjax.data import synthetic


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def small(cache, **numbers):
    return synthetic.mnist1d(cache, **{"num_train": 180, "num_test": 20} | numbers)


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
    monkeypatch.setattr(synthetic, "_generate_mnist1d", lambda *_: pytest.fail("generated again"))
    np.testing.assert_array_equal(small(cache).train["x"], first.train["x"])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_cache_of_mnist1d_is_made_anew(cache, tmp_path, capfd, monkeypatch, how):
    first = small(cache)
    (source,) = cache.glob("mnist1d-200-42.npz")
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    damage(copy, how)
    with np.load(source) as arrays:
        made = dict(arrays)
    monkeypatch.setattr(synthetic, "_generate_mnist1d", lambda *_: made)
    np.testing.assert_array_equal(small(tmp_path).train["x"], first.train["x"])
    assert f"{copy} is damaged" in capfd.readouterr().err
    np.testing.assert_array_equal(small(tmp_path).train["label"], first.train["label"])
    assert not capfd.readouterr().err  # it is whole again


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
    def fail(*_):
        raise OSError("stopped")

    monkeypatch.setattr(synthetic, "_generate_mnist1d", fail)
    with pytest.raises(OSError, match="stopped"):
        small(tmp_path)
    assert not list(tmp_path.iterdir())


def test_friedman_follows_its_formula():
    """Against the formula of scikit-learn's make_friedman1, in float64."""
    made = synthetic.friedman(num_train=5000, num_test=100, noise=0.0, seed=3)
    for part, size in ((made.train, 5000), (made.test, 100)):
        assert part["x"].shape == (size, 10) and part["x"].dtype == np.float32
        assert part["y"].shape == (size, 1) and part["y"].dtype == np.float32
        x = np.asarray(part["x"], np.float64)
        expected = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * np.square(x[:, 2] - 0.5)
        expected += 10 * x[:, 3] + 5 * x[:, 4]
        np.testing.assert_allclose(part["y"][:, 0], expected, rtol=1e-6)
    assert made.num_classes is None


def test_friedman_is_uniform_and_as_noisy_as_asked():
    """Means within five standard errors of those of the uniform and the normal distribution."""
    size = 40_000
    clean, noisy = (
        synthetic.friedman(num_train=size, num_test=1, noise=noise).train for noise in (0.0, 3.0)
    )
    x = noisy["x"].astype(np.float64)
    np.testing.assert_array_equal(clean["x"], noisy["x"])
    np.testing.assert_allclose(x.mean(axis=0), 0.5, atol=5 * np.sqrt(1 / 12 / size))
    np.testing.assert_allclose(x.var(axis=0), 1 / 12, atol=5 * np.sqrt(1 / 180 / size))
    noise = (noisy["y"] - clean["y"]).astype(np.float64)
    assert abs(noise.mean()) < 5 * 3 / np.sqrt(size)
    assert abs(noise.std() - 3) < 5 * 3 / np.sqrt(2 * size)


def test_friedman_depends_on_the_seed_alone():
    first, again, other = (synthetic.friedman(50, 10, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train["y"], again.train["y"])
    assert not np.array_equal(first.train["y"], other.train["y"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train = 0"),
        ({"num_test": -1}, "num_test = -1"),
        ({"noise": -0.5}, "noise = -0.5"),
        ({"noise": float("nan")}, "noise = nan"),
    ],
)
def test_friedman_refuses_impossible_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic.friedman(**options)
