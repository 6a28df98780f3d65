import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import recipes
from isjax.data.dataset import Dataset, from_arrays
from isjax.reporting.gallery import extremes, make_gallery
from isjax.tasks import Task
from isjax.training import init_train_state

N = 20


def state_of(params):
    return init_train_state(
        jax.random.key(0), params, optax.sgd(0.1), recipes.uniform(batch_size=1), N
    )


def show(dataset, output_fn=None, score_fn=None, label_fn=None, count=None, params=0.0, size=4):
    """Gallery of a task; its loss is the sum of an example's numbers, unless score_fn is given."""

    def total(params, model_state, batch):
        leaves = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(batch)]
        return sum(x.reshape(x.shape[0], -1).sum(axis=1) for x in leaves)

    task = Task(
        dataset,
        init=lambda key: (params, None),
        loss_fn=lambda *_: None,
        score_fn=score_fn or total,
        metrics_fn=lambda *_: None,
        label_fn=label_fn,
        output_fn=output_fn and (lambda params, model_state, batch: output_fn(params, batch)),
    )
    count = np.arange(len(jax.tree.leaves(dataset.train)[0])) if count is None else count
    return make_gallery(task, size)(state_of(jnp.asarray(params)), np.asarray(count, np.int32))


def label_of(batch):
    return batch["label"]


# Ids


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("high", [1, 2, 5, 2**31])
def test_extremes_have_the_largest_and_the_smallest_counts(size, high):
    """Also with ties, and near the end of int32."""
    for seed in range(20):
        low = high - 5 if high == 2**31 else 0
        count = np.random.default_rng(seed).integers(low, high, N).astype(np.int32)
        before = count.copy()
        ids = extremes(count, size)
        np.testing.assert_array_equal(count[ids[:size]], np.sort(count)[::-1][:size])
        np.testing.assert_array_equal(count[ids[size:]], np.sort(count)[:size])
        assert len(set(ids.tolist())) == 2 * size  # none is among both
        np.testing.assert_array_equal(count, before)
        np.testing.assert_array_equal(extremes(count, size), ids)


def test_ties_are_not_broken_by_the_order_of_the_data():
    ids = extremes(np.zeros(1000, np.int32), 20)
    assert ids.min() < 300 and ids.max() > 700 and len(set(ids.tolist())) == 40


@pytest.mark.parametrize(("examples", "shown"), [(1, 2), (2, 2), (3, 2), (20, 8)])
def test_small_data_sets_are_split_in_half_and_a_single_example_appears_twice(examples, shown):
    data = {"x": np.ones((examples, 2), np.float32), "label": np.zeros(examples, np.int32)}
    count = np.arange(examples)[::-1]
    found = show(from_arrays(data, data, 1), lambda p, b: b["x"] @ jnp.ones((2, 1)), count=count)
    assert all(len(values) == shown for values in found.values())
    assert found["count"][0] == examples - 1 and found["count"][shown // 2] == 0


# Descriptions


def classes(names=None, **more):
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(N, 3)).astype(np.float32),
        "label": rng.integers(0, 3, N).astype(np.int32),
    }
    return from_arrays(data | more, data, 3, class_names=names)


@pytest.mark.parametrize("names", [None, ("cat", "dog", "<b>")])
def test_classes_are_named_and_losses_are_those_of_the_state(names):
    dataset = classes(names)
    w = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)

    def losses(params, model_state, batch):
        logits = batch["x"] @ params
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    count = np.random.default_rng(2).permutation(N)
    found = show(dataset, lambda p, b: b["x"] @ p, losses, label_of, count, params=w)
    ids = np.concatenate([np.argsort(-count)[:4], np.argsort(count)[:4]])
    np.testing.assert_array_equal(found["ids"], ids)
    np.testing.assert_array_equal(found["count"], count[ids])
    x, label = (dataset.train[name][ids] for name in ("x", "label"))
    logits = x.astype(float) @ w
    right = np.exp(logits[np.arange(8), label]) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(found["loss"], -np.log(right), rtol=1e-4)
    np.testing.assert_array_equal(found["x"], x)
    words = names or ("0", "1", "2")
    assert found["label"].tolist() == [words[i] for i in label]
    assert found["prediction"].tolist() == [words[i] for i in logits.argmax(axis=1)]


def test_images_stay_bytes():
    image = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3)).astype(np.uint8)
    found = show(classes(x=image), label_fn=label_of)
    assert found["x"].dtype == np.uint8 and "prediction" not in found
    np.testing.assert_array_equal(found["x"], image[found["ids"]])


def test_a_loss_that_is_not_finite_is_shown():
    losses = show(classes(), None, lambda *_: jnp.full(8, jnp.nan), label_of)["loss"]
    assert np.isnan(losses).all() and losses.shape == (8,)


@pytest.mark.parametrize(
    ("vocabulary", "text"),
    [
        (("a", "b", "c"), "abc"),
        (("a", "b", "c", "<unk>"), "abc"),  # a character that the others lack is still one
        (("a", "big", "cat"), "a big cat"),
    ],
)
def test_tokens_are_read_without_their_padding(vocabulary, text):
    x = np.tile(np.array([0, 1, 2, -1], np.int32), (N, 1))
    windows = from_arrays({"x": x, "y": x}, {"x": x, "y": x}, vocabulary=vocabulary)
    found = show(windows)
    assert found["text"].tolist() == [text] * 8 and not {"x", "label"} & found.keys()
    y = np.ones(N, np.int32)  # the token after the last
    last = from_arrays({"x": x, "y": y}, {"x": x, "y": y}, vocabulary=vocabulary)
    found = show(last, lambda p, b: jnp.eye(len(vocabulary))[b["x"][:, 2]])
    assert found["text"].tolist() == [text] * 8
    assert found["label"].tolist() == [vocabulary[1]] * 8
    assert found["prediction"].tolist() == [vocabulary[2]] * 8


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_first_four_numbers_are_written_with_three_digits(dtype):
    y = np.tile(np.float32([1234.5, -0.0001234, np.nan, np.inf, 7, 8]), (N, 1))
    data = {"x": np.ones((N, 2), np.float32), "y": y}
    dataset = from_arrays(data | {"y": np.ones_like(y)}, data | {"y": np.ones_like(y)})
    dataset = dataset._replace(train=data)  # from_arrays refuses numbers that are not finite
    found = show(dataset, lambda p, b: (0.5 * b["y"]).astype(dtype))
    assert found["label"].tolist() == ["1.23e+03, -0.000123, nan, inf, …"] * 8
    assert found["prediction"][0].startswith("61") and found["prediction"][0].endswith(
        "nan, inf, …"
    )
    one = {"x": np.ones((N, 2), np.float32), "y": np.arange(N, dtype=np.float32)[:, None]}
    found = show(from_arrays(one, one), lambda p, b: b["y"] + 1)
    assert found["label"].tolist() == ["19", "18", "17", "16", "0", "1", "2", "3"]
    assert found["prediction"][0] == "20"


BARE, BOTH = {"ids", "count", "loss"}, {"label", "prediction"}
WORDS = {"x": np.ones((N, 3), int)}


def described(train, num_classes=None, vocabulary=None, output=None, label=None):
    output_fn = output and (lambda params, batch: output(batch))
    return Dataset(train, None, num_classes, None, vocabulary), output_fn, label


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (described((np.ones((N, 2)), np.ones(N))), set()),
        (described((np.ones((N, 2)), np.ones(N)), output=lambda b: {"a": b[0]}), set()),
        (described({"inputs": np.ones((N, 2)), "y": np.ones(N)}), {"label"}),
        (described({"x": np.ones((N, 2)), "y": {"a": np.ones(N)}}, output=lambda b: b["y"]), {"x"}),
        (described({"x": {"a": np.ones(N)}, "y": np.ones((N, 1))}, output=lambda b: b["y"]), BOTH),
        (described({"x": np.ones((N, 2))}, output=lambda b: (b["x"], b["x"])), {"x"}),
        (described((np.ones(N),), 2, output=lambda b: b[0]), set()),
        (described((np.ones(N, int),), 2, output=lambda b: b[0], label=lambda b: b[0]), {"label"}),
        (described((np.ones(N, int),), 2, None, lambda b: jnp.eye(2)[b[0]], lambda b: b[0]), BOTH),
        (described(WORDS, None, ("a", "b")), {"text"}),
        (described(WORDS | {"y": np.ones(N, int)}, None, ("a", "b")), {"text", "label"}),
    ],
)
def test_custom_tasks_are_described_as_far_as_possible(task, names):
    """An evaluation must not fail because of the gallery."""
    dataset, output_fn, label_fn = task
    found = show(dataset, output_fn, label_fn=label_fn)
    assert found.keys() == BARE | names
    assert all(value.dtype != object and len(value) == 8 for value in found.values())
