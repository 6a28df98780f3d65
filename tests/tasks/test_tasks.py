"""Losses and metrics of every task against NumPy, in training and in evaluation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import compiled

from isjax import buffer, data, networks, recipes, scorers, tasks
from isjax.experiment.evaluation import make_evaluation
from isjax.tasks import augmentations
from isjax.tasks.augmentations import Mixed, mixup, ricap
from isjax.training import init_train_state, make_train_step

KEY = jax.random.key(0)


def init(task):
    return jax.jit(task.init)(KEY)


def jitted(task):
    """The task with its functions of a batch compiled."""
    names = ("loss_fn", "score_fn", "metrics_fn", "output_fn")
    return task._replace(**{name: jax.jit(getattr(task, name)) for name in names})


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(logits, target):
    return -np.take_along_axis(log_softmax(logits), np.asarray(target)[..., None], -1)[..., 0]


def as_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def dense(layer, x):
    return np.asarray(x, np.float64) @ layer["kernel"] + layer["bias"]


def images_of(size, seed=0, shape=(4, 6)):
    """Bytes whose channels differ: a dark one, a bright one, one that uses all values."""
    rng = np.random.default_rng(seed)
    channels = [rng.integers(low, high, (size, *shape)) for low, high in ((0, 9), (200, 256))]
    return np.stack([*channels, rng.integers(0, 256, (size, *shape))], -1).astype(np.uint8)


def labels_of(size, classes=3):
    return np.arange(size, dtype=np.int32) % classes


def make_classes(size=6, width=4, classes=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)
    part = {"x": x, "label": labels_of(size, classes)}
    return data.from_arrays(part, part, classes)


def recorder(seen, outputs=3):
    """A network that notes what it is given; run without jit, these are arrays."""

    class Recorder(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            seen.append((x, train))
            flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(x)]
            return nn.Dense(outputs)(jnp.concatenate(flat, axis=1))

    return Recorder()


# Classification.


def test_losses_and_accuracy_equal_numpy():
    task = jitted(tasks.classification(make_classes(), networks.MLP(3, hidden=(5,))))
    params, model_state = init(task)
    batch = task.dataset.train | {"x": 30 * task.dataset.train["x"]}  # logits far apart
    layers = as_float64(params)
    logits = dense(layers["Dense_1"], np.maximum(dense(layers["Dense_0"], batch["x"]), 0))
    expected = cross_entropy(logits, batch["label"])
    assert expected.max() > 10

    losses, state = task.loss_fn(params, model_state, batch, jax.random.key(1))
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    assert model_state is None and state is None
    scores = task.score_fn(params, model_state, batch)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    metrics = task.metrics_fn(params, model_state, batch)
    assert set(metrics) == {"loss", "accuracy"}
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], logits.argmax(axis=1) == batch["label"])
    assert 0 < np.mean(metrics["accuracy"]) < 1


def test_classes_are_those_of_the_labels():
    task = tasks.classification(make_classes(), networks.MLP(3))
    np.testing.assert_array_equal(task.label_fn(task.dataset.train), task.dataset.train["label"])
    assert task.summarise({"loss": 2.0, "accuracy": 0.5}) == {"loss": 2.0, "accuracy": 0.5}


@pytest.mark.slow
def test_images_are_standardised_by_the_channels_of_the_training_part():
    train = {"x": images_of(50), "label": labels_of(50)}
    test = {"x": images_of(20, seed=1) // 2, "label": labels_of(20)}
    seen = []
    task = tasks.classification(data.from_arrays(train, test, 3), recorder(seen))
    params, model_state = init(task)
    mean = train["x"].astype(np.float64).mean(axis=(0, 1, 2))
    deviation = train["x"].astype(np.float64).std(axis=(0, 1, 2))

    for part in (train, test):
        seen.clear()
        task.score_fn(params, model_state, part)
        task.loss_fn(params, model_state, part, KEY)
        assert [train for _, train in seen] == [False, True]
        for x, _ in seen:
            assert x.dtype == np.float32
            want = (part["x"] - mean) / deviation
            np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)

    seen.clear()
    task.score_fn(params, model_state, train)
    x = np.asarray(seen[0][0], np.float64)
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "regression", "language"])
def test_pixels_of_unit_scale_are_bytes_over_255(kind):
    image = images_of(20)
    targets = {
        "classification": {"label": labels_of(20)},
        "regression": {"y": np.zeros((20, 3), np.float32)},
        "language": {"y": labels_of(20)},
    }
    vocabulary = [str(token) for token in range(256)]
    options = {"regression": {}, "language": {"vocabulary": vocabulary}}
    part = {"x": image, **targets[kind]}
    seen = []
    dataset = data.from_arrays(part, part, **options.get(kind, {"num_classes": 3}))
    task = getattr(tasks, kind)(dataset, recorder(seen), pixels="unit")
    task.score_fn(*init(task), part)
    assert seen[-1][0].dtype == np.float32
    np.testing.assert_allclose(seen[-1][0], image / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_only_bytes_are_brought_to_the_unit_scale(dtype):
    part = {"x": np.arange(24).reshape(6, 4).astype(dtype), "label": labels_of(6)}
    seen = []
    task = tasks.classification(data.from_arrays(part, part, 3), recorder(seen), pixels="unit")
    task.score_fn(*init(task), part)
    assert seen[-1][0].dtype == dtype
    np.testing.assert_array_equal(seen[-1][0], part["x"])


def test_an_unknown_scale_of_pixels_is_refused():
    with pytest.raises(ValueError, match="pixels is 'centred'; choose one of standardised, unit"):
        tasks.classification(make_classes(), networks.MLP(3), pixels="centred")


def test_images_of_zeros_and_ones_are_standardised_too():
    image = np.random.default_rng(0).integers(0, 2, (20, 4, 4, 1)).astype(np.uint8)
    part = {"x": image, "label": labels_of(20)}
    seen = []
    task = tasks.classification(data.from_arrays(part, part, 3), recorder(seen))
    task.score_fn(*init(task), part)
    given = np.asarray(seen[-1][0], np.float64)
    assert given.mean() == pytest.approx(0, abs=1e-6)
    assert given.std() == pytest.approx(1, rel=1e-5)


def test_a_channel_without_contrast_is_zero_not_nan():
    part = {"x": np.full((4, 2, 2, 1), 7, np.uint8), "label": labels_of(4)}
    seen = []
    task = tasks.classification(data.from_arrays(part, part, 3), recorder(seen))
    losses = task.score_fn(*init(task), part)
    np.testing.assert_array_equal(seen[-1][0], np.zeros((4, 2, 2, 1)))
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_what_is_not_bytes_is_left_as_it_is(dtype):
    x = (100 * np.random.default_rng(0).normal(size=(6, 4))).astype(dtype)
    part = {"x": x, "label": labels_of(6)}
    seen = []
    task = tasks.classification(data.from_arrays(part, part, 3), recorder(seen))
    params, model_state = init(task)
    task.score_fn(params, model_state, part)
    task.loss_fn(params, model_state, part, KEY)
    for x, _ in seen[1:]:
        assert x.dtype == dtype
        np.testing.assert_array_equal(x, part["x"])


class TwoInputs(nn.Module):
    """Logits from an image and a vector."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x["image"].mean(axis=(1, 2))) + nn.Dense(3)(x["vector"])


def test_x_may_be_several_inputs():
    image = images_of(8)
    vector = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    part = {"x": {"image": image, "vector": vector}, "label": labels_of(8)}
    task = tasks.classification(data.from_arrays(part, part, 3), TwoInputs())
    params, model_state = init(task)
    layers = as_float64(params)
    pixels = image.astype(np.float64)
    pixels = (pixels - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))
    logits = dense(layers["Dense_0"], pixels.mean(axis=(1, 2))) + dense(layers["Dense_1"], vector)
    expected = cross_entropy(logits, part["label"])
    losses, _ = jax.jit(task.loss_fn)(params, model_state, part, KEY)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    scores = jax.jit(task.score_fn)(params, model_state, part)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_of_several_inputs_each_is_prepared_by_its_own_kind():
    x = {"image": images_of(8), "signal": images_of(8)[:, 0, :, 1:2] // 3, "vector": np.eye(8)}
    x["vector"] = x["vector"].astype(np.float32)
    part = {"x": x, "label": labels_of(8)}
    seen = []
    task = tasks.classification(data.from_arrays(part, part, 3), recorder(seen))
    task.loss_fn(*init(task), part, KEY)
    given = seen[-1][0]
    for name, axes in (("image", (0, 1, 2)), ("signal", (0, 1))):
        pixels = x[name].astype(np.float64)
        want = (pixels - pixels.mean(axis=axes)) / pixels.std(axis=axes)
        np.testing.assert_allclose(given[name], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(given["vector"], x["vector"])


# What training does and evaluation does not.


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def normed():
    return jitted(tasks.classification(make_classes(12), Normed()))


def normed_losses(params, x, label, mean, variance):
    layers = as_float64(params)
    norm = layers["BatchNorm_0"]
    x = (x - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
    return cross_entropy(dense(layers["Dense_0"], x), label)


def test_batch_statistics_are_state_apart_from_the_params(normed):
    params, model_state = init(normed)
    assert set(params) == {"BatchNorm_0", "Dense_0"} and set(model_state) == {"batch_stats"}


def test_training_uses_the_statistics_of_the_batch_and_averages_them(normed):
    params, model_state = init(normed)
    x, label = (normed.dataset.train[name][:5] for name in ("x", "label"))
    mean, variance = x.astype(np.float64).mean(axis=0), x.astype(np.float64).var(axis=0)
    losses, updated = normed.loss_fn(params, model_state, {"x": x, "label": label}, KEY)
    expected = normed_losses(params, x, label, mean, variance)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    stats = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    old = model_state["batch_stats"]["BatchNorm_0"]  # is what it was
    np.testing.assert_array_equal(old["mean"], np.zeros(4))
    np.testing.assert_array_equal(old["var"], np.ones(4))
    assert jax.tree.structure(updated) == jax.tree.structure(model_state)


def test_scores_use_the_running_averages(normed):
    params, model_state = init(normed)
    train = normed.dataset.train
    for seed in range(3):
        _, model_state = normed.loss_fn(params, model_state, train, jax.random.key(seed))
    stats = as_float64(model_state)["batch_stats"]["BatchNorm_0"]
    expected = normed_losses(params, train["x"], train["label"], stats["mean"], stats["var"])
    scores = normed.score_fn(params, model_state, train)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    metrics = normed.metrics_fn(params, model_state, train)
    np.testing.assert_array_equal(metrics["loss"], scores)
    # A score does not depend on what else is scored.
    alone = normed.score_fn(params, model_state, jax.tree.map(lambda x: x[4:5], train))
    np.testing.assert_allclose(alone, expected[4:5], rtol=1e-5)


def test_a_stateful_network_keeps_its_state_through_training_steps(normed):
    tx, sampler = optax.sgd(0.1), compiled(recipes.uniform(batch_size=4))
    step = make_train_step(normed.loss_fn, tx, sampler)
    params, model_state = init(normed)
    state = init_train_state(KEY, params, tx, sampler, 12, model_state)
    for _ in range(3):
        state, metrics = step(state, normed.dataset.train)
        assert metrics["skipped"] == 0
    stats = state.model_state["batch_stats"]["BatchNorm_0"]
    assert np.all(np.asarray(stats["mean"]) != 0) and np.all(np.asarray(stats["var"]) != 1)


def test_the_state_of_a_wide_resnet_keeps_its_shape():
    part = {"x": images_of(4, shape=(8, 8)), "label": labels_of(4)}
    network = networks.WideResNet(3, depth=10, width=1, norm="batch", dropout=0.1)
    task = tasks.classification(data.from_arrays(part, part, 3), network)
    params, model_state = jax.eval_shape(task.init, KEY)
    losses, updated = jax.eval_shape(task.loss_fn, params, model_state, part, KEY)
    assert losses.shape == (4,) and updated == model_state


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_dropout_varies_with_the_key_and_scores_have_none():
    task = jitted(tasks.classification(make_classes(width=20), Dropped()))
    params, model_state = init(task)
    batch = task.dataset.train
    one, same, other = (
        np.asarray(task.loss_fn(params, model_state, batch, jax.random.key(seed))[0])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)
    expected = cross_entropy(dense(as_float64(params)["Dense_0"], batch["x"]), batch["label"])
    np.testing.assert_allclose(task.score_fn(params, model_state, batch), expected, rtol=1e-5)
    assert np.all(np.abs(one - expected) > 1e-4)


def test_augmentations_are_applied_in_order_and_in_training_alone():
    seen = []
    augment = (lambda key, x: 2 * x, lambda key, x: x + 1)
    task = tasks.classification(make_classes(), recorder(seen), augment)
    params, model_state = init(task)
    batch = task.dataset.train
    seen.clear()
    losses, _ = task.loss_fn(params, model_state, batch, KEY)
    scores = task.score_fn(params, model_state, batch)
    metrics = task.metrics_fn(params, model_state, batch)
    np.testing.assert_allclose(seen[0][0], 2 * batch["x"] + 1, rtol=1e-6)
    for x, _ in seen[1:]:
        np.testing.assert_array_equal(x, batch["x"])
    layer = as_float64(params)["Dense_0"]
    changed = cross_entropy(dense(layer, 2 * batch["x"] + 1), batch["label"])
    plain = cross_entropy(dense(layer, batch["x"]), batch["label"])
    np.testing.assert_allclose(losses, changed, rtol=1e-5)
    np.testing.assert_allclose(scores, plain, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], plain, rtol=1e-5)


def test_augmentations_follow_the_key_each_with_randomness_of_its_own():
    noises = []

    def noise(key, x):
        noises.append(jax.random.normal(key, x.shape))
        return x + noises[-1]

    task = tasks.classification(make_classes(), networks.MLP(3, hidden=()), (noise, noise))
    params, model_state = init(task)
    one, same, other = (
        np.asarray(task.loss_fn(params, model_state, task.dataset.train, jax.random.key(seed))[0])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)
    distinct = [noises[0], noises[1], noises[4], noises[5]]
    assert len({float(x[0, 0]) for x in distinct}) == 4


def test_images_are_augmented_as_bytes_and_then_standardised():
    train = {"x": images_of(16), "label": labels_of(16)}
    kinds, seen = [], []

    def note(key, x):
        kinds.append(x.dtype)
        return x

    augment = (augmentations.flip, note)
    task = tasks.classification(data.from_arrays(train, train, 3), recorder(seen), augment)
    task.loss_fn(*init(task), train, KEY)
    assert kinds == [np.uint8]
    pixels = train["x"].astype(np.float64)
    want = (pixels - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))
    given = np.asarray(seen[-1][0], np.float64)
    plain = np.all(np.abs(given - want) < 1e-4, axis=(1, 2, 3))
    turned = np.all(np.abs(given - want[:, :, ::-1]) < 1e-4, axis=(1, 2, 3))
    assert np.all(plain != turned) and plain.any() and turned.any()


# Mixed images.


def mixes(source, share, after=lambda x: x):
    """An augmentation that mixes in a given way, and has its result noted."""
    source, share = jnp.asarray(source, jnp.int32), jnp.asarray(share, jnp.float32)

    def mix(key, x):
        return Mixed(after(jnp.einsum("bmi,bm->bi", x[source], share)), source, share)

    return mix


SOURCE = np.array([[0, 3], [1, 4], [2, 2], [3, 1], [4, 5], [5, 0]])
SHARE = np.array([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [0.25, 0.75], [0.4, 0.6]])


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def by_hand(logits, label):
    """The loss of each source, and the usual mixed loss of each row, in float64."""
    of_part = np.stack([cross_entropy(logits, label[SOURCE[:, j]]) for j in (0, 1)], axis=1)
    per_source = np.zeros(len(SOURCE))
    np.add.at(per_source, SOURCE, SHARE * of_part)
    return per_source, np.sum(SHARE * of_part, axis=1)


def test_of_a_mixed_batch_each_loss_is_of_one_example_in_all_it_is_part_of():
    task = tasks.classification(
        make_classes(), networks.MLP(3, hidden=(5,)), (mixes(SOURCE, SHARE),)
    )
    params, model_state = init(task)
    batch = task.dataset.train | {"x": 10 * task.dataset.train["x"]}
    x = np.einsum("bmi,bm->bi", batch["x"].astype(np.float64)[SOURCE], SHARE)
    layers = as_float64(params)
    logits = dense(layers["Dense_1"], np.maximum(dense(layers["Dense_0"], x), 0))
    expected, usual = by_hand(logits, batch["label"])
    assert np.ptp(expected) > 1 and np.max(np.abs(expected - usual)) > 0.1
    losses, _ = jax.jit(task.loss_fn)(params, model_state, batch, KEY)
    assert losses.shape == (6,) and losses.dtype == np.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert np.sum(losses) == pytest.approx(np.sum(usual), rel=1e-5)


@pytest.mark.slow
def test_a_batch_in_numpy_is_mixed_as_one_on_the_device_is():
    """Outside of jit too, as batches are that are not mixed."""
    network = networks.MLP(3, hidden=())
    task = tasks.classification(make_classes(), network, (mixes(SOURCE, SHARE),))
    params, model_state = init(task)
    batch = task.dataset.train
    expected, _ = task.loss_fn(params, model_state, on_device(batch), KEY)
    losses, _ = task.loss_fn(params, model_state, batch, KEY)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_the_view_that_is_scored_is_not_mixed():
    mix = mixes(SOURCE, SHARE)
    plain, mixed = (
        jitted(tasks.classification(make_classes(), networks.MLP(3, hidden=()), augment))
        for augment in ((), (mix,))
    )
    params, model_state = init(mixed)
    batch = mixed.dataset.train
    expected = cross_entropy(dense(as_float64(params)["Dense_0"], batch["x"]), batch["label"])
    scores = mixed.score_fn(params, model_state, batch)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(mixed.metrics_fn(params, model_state, batch)["loss"], expected, 1e-5)
    logits = mixed.output_fn(params, model_state, batch)
    np.testing.assert_allclose(logits, dense(as_float64(params)["Dense_0"], batch["x"]), 1e-4, 1e-5)
    unmixed, _ = plain.loss_fn(params, model_state, batch, KEY)
    np.testing.assert_allclose(unmixed, expected, rtol=1e-5)


def test_what_comes_before_and_after_a_mixing_is_applied():
    seen = []
    augment = (lambda key, x: 2 * x, mixes(SOURCE, SHARE), lambda key, x: x + 1)
    task = tasks.classification(make_classes(), recorder(seen), augment)
    params, model_state = init(task)
    batch = on_device(task.dataset.train)
    seen.clear()
    losses, _ = task.loss_fn(params, model_state, batch, KEY)
    x = np.einsum("bmi,bm->bi", 2 * np.asarray(batch["x"], np.float64)[SOURCE], SHARE) + 1
    np.testing.assert_allclose(seen[0][0], x, rtol=1e-5, atol=1e-6)
    expected, _ = by_hand(dense(as_float64(params)["Dense_0"], x), np.asarray(batch["label"]))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("mix", [mixup, ricap])
@pytest.mark.slow
def test_images_are_mixed_as_the_key_says(mix):
    """The true mixings, on bytes: the loss by the mixture that they return for the task's key."""
    part = {"x": images_of(12), "label": labels_of(12)}
    seen, made = [], []

    def noted(key, x):
        made.append(mix(key, x))
        return made[-1]

    task = tasks.classification(data.from_arrays(part, part, 3), recorder(seen), (noted,))
    params, model_state = init(task)
    losses, _ = task.loss_fn(params, model_state, on_device(part), jax.random.key(5))
    (mixed,) = made
    pixels = part["x"].astype(np.float64)
    x = (np.asarray(mixed.x, np.float64) - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))
    np.testing.assert_allclose(seen[-1][0], x, rtol=1e-4, atol=1e-4)
    logits = dense(as_float64(params)["Dense_0"], x.reshape(12, -1))
    expected = np.zeros(12)
    for row, (sources, shares) in enumerate(
        zip(np.asarray(mixed.source), np.asarray(mixed.share, np.float64), strict=True)
    ):
        for source, share in zip(sources, shares, strict=True):
            loss = cross_entropy(logits[row], part["label"][source])
            expected[source] += share * loss
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_numbers_to_predict_and_tokens_are_mixed_too():
    numbers = make_numbers(6)
    numbers = numbers._replace(train=numbers.train | {"y": numbers.train["y"] - 1000})
    task = jitted(tasks.regression(numbers, networks.MLP(2, hidden=()), (mixes(SOURCE, SHARE),)))
    params, model_state = init(task)
    losses, _ = task.loss_fn(params, model_state, on_device(numbers.train), KEY)
    x = np.einsum("bmi,bm->bi", numbers.train["x"].astype(np.float64)[SOURCE], SHARE)
    predicted = dense(as_float64(params)["Dense_0"], x)
    expected = np.zeros(6)
    for part in (0, 1):
        error = (predicted - numbers.train["y"][SOURCE[:, part]]) ** 2
        np.add.at(expected, SOURCE[:, part], SHARE[:, part] * error.mean(axis=1))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("between", [(), (lambda key, x: x + 1,)], ids=["next", "apart"])
def test_two_augmentations_that_mix_are_refused(between):
    mix = mixes(SOURCE, SHARE)
    task = tasks.classification(make_classes(), networks.MLP(3), (mix, *between, mix))
    params, model_state = init(task)
    with pytest.raises(ValueError, match="two augmentations mix images; leave one of them out"):
        jax.eval_shape(task.loss_fn, params, model_state, task.dataset.train, KEY)


def test_a_mixed_example_is_weighted_and_written_back_by_its_own_loss():
    """One step: the gradient of (1/b) sum w_i loss_i, and the buffer's loss of example i."""
    mix = lambda key, x: mixes(SOURCE[:4] % 4, SHARE[:4])(key, x)  # noqa: E731
    task = tasks.classification(make_classes(), networks.MLP(3, hidden=()), (mix,))
    params, model_state = init(task)
    sampler = compiled(recipes.last_loss(batch_size=4, k=1.0))
    tx = optax.sgd(1.0)
    state = init_train_state(KEY, params, tx, sampler, 6, model_state)
    known = jnp.array([0.1, 3.0, 0.5, 2.0, 1.0, 0.3])
    state = state._replace(
        sampler=state.sampler._replace(buffer=state.sampler.buffer._replace(losses=known))
    )
    layer = as_float64(params)["Dense_0"]
    step = make_train_step(task.loss_fn, tx, sampler, with_draw=True)
    after, metrics = step(state, task.dataset.train)
    ids, weights = (np.asarray(metrics["draw"][i]) for i in (0, 2))
    x, label = (task.dataset.train[name][ids] for name in ("x", "label"))
    source, share = SOURCE[:4] % 4, SHARE[:4]
    mixed = np.einsum("bmi,bm->bi", x.astype(np.float64)[source], share)
    logits = dense(layer, mixed)
    losses, slope = np.zeros(4), np.zeros_like(layer["kernel"])
    for row in range(4):
        for part in (0, 1):
            i = source[row, part]
            losses[i] += share[row, part] * cross_entropy(logits[row], label[i])
            residual = np.exp(log_softmax(logits[row])) - np.eye(3)[label[i]]
            slope += weights[i] * share[row, part] * np.outer(mixed[row], residual) / 4
    np.testing.assert_allclose(
        after.params["Dense_0"]["kernel"], layer["kernel"] - slope, 1e-4, 1e-5
    )
    examples = np.unique(ids)
    written = [losses[ids == example].mean() for example in examples]
    last = buffer.last_loss(after.sampler.buffer, examples)
    np.testing.assert_allclose(last, written, rtol=1e-4)
    assert np.ptp(weights) > 0.1


# Language.

WORDS = ("a", "b", "c", "d", "e")


class Bigrams(nn.Module):
    """Logits of the next token from each token, or from the last that is no padding."""

    every_position: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        logits = nn.Embed(5, 5, embedding_init=nn.initializers.normal(2.0))(jnp.maximum(x, 0))
        if self.every_position:
            return logits
        last = jnp.sum(x >= 0, axis=1) - 1
        return jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]


def make_windows(size=7, length=4):
    tokens = np.random.default_rng(0).integers(0, 5, (size, length + 1)).astype(np.int32)
    part = {"x": tokens[:, :-1], "y": tokens[:, 1:]}
    return data.from_arrays(part, part, vocabulary=WORDS)


def make_contexts(size=40, length=3, seed=0):
    """The next word is the last one's successor; contexts of all lengths."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 5, (size, length)).astype(np.int32)
    known = rng.integers(1, length + 1, size)
    y = (x[np.arange(size), known - 1] + 1) % 5
    x[np.arange(length)[None, :] >= known[:, None]] = -1
    part = {"x": x, "y": y.astype(np.int32)}
    return data.from_arrays(part, part, vocabulary=WORDS)


def test_the_loss_of_a_window_is_the_mean_over_its_tokens():
    task = jitted(tasks.language(make_windows(), Bigrams()))
    params, model_state = init(task)
    batch = task.dataset.train
    table = as_float64(params)["Embed_0"]["embedding"]
    expected = cross_entropy(table[batch["x"]], batch["y"]).mean(axis=1)
    losses, _ = task.loss_fn(params, model_state, batch, KEY)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(task.score_fn(params, model_state, batch), expected, rtol=1e-5)
    names = {"loss", "targets", "bytes"}  # tokens of one character
    assert set(task.metrics_fn(params, model_state, batch)) == names


@pytest.mark.slow
def test_the_loss_of_a_context_is_that_of_the_next_word():
    task = jitted(tasks.language(make_contexts(), Bigrams(every_position=False)))
    params, model_state = init(task)
    batch = task.dataset.train
    table = as_float64(params)["Embed_0"]["embedding"]
    last = np.array([row[row >= 0][-1] for row in batch["x"]])
    expected = cross_entropy(table[last], batch["y"])
    losses, _ = task.loss_fn(params, model_state, batch, KEY)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(task.score_fn(params, model_state, batch), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [0.0, 0.7, math.log(5)])
def test_perplexity_is_exp_of_the_mean_loss(loss):
    task = tasks.language(make_windows(), Bigrams())
    means = {"loss": loss, "targets": 1.0}
    assert task.summarise(means) == {"loss": loss, "perplexity": pytest.approx(math.exp(loss))}
    assert means == {"loss": loss, "targets": 1.0} and task.label_fn is None


def test_perplexity_is_of_the_whole_part():
    task = tasks.language(make_windows(), Bigrams())
    params, model_state = init(task)
    tx, sampler = optax.sgd(0.1), recipes.uniform(batch_size=2)
    state = init_train_state(KEY, params, tx, sampler, 7, model_state)
    result = make_evaluation(task, batch_size=3)(state)
    table = as_float64(params)["Embed_0"]["embedding"]
    losses = cross_entropy(table[task.dataset.test["x"]], task.dataset.test["y"])
    assert result["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert result["test_perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)


# Regression.


def make_numbers(size=30, numbers=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    y = (1000 + x @ rng.normal(size=(3, numbers)) * [1.0, 5.0][:numbers]).astype(np.float32)
    return data.from_arrays({"x": x, "y": y}, {"x": x[:9], "y": y[:9] + 1})


def test_squared_errors_equal_numpy():
    task = jitted(tasks.regression(make_numbers(), networks.MLP(2, hidden=())))
    params, model_state = init(task)
    batch = task.dataset.test
    predicted = dense(as_float64(params)["Dense_0"], batch["x"])
    expected = ((predicted - batch["y"]) ** 2).mean(axis=1)
    losses, _ = task.loss_fn(params, model_state, batch, KEY)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(task.score_fn(params, model_state, batch), expected, rtol=1e-5)
    metrics = task.metrics_fn(params, model_state, batch)
    assert set(metrics) == {"loss"} and task.label_fn is None


# What an example never seen is thought to lose.


def zeroed(task):
    params, model_state = init(task)
    return jax.tree.map(jnp.zeros_like, params), model_state


@pytest.mark.parametrize(
    "task",
    [
        tasks.classification(make_classes(8, classes=4), networks.MLP(4, hidden=())),
        tasks.language(make_windows(), Bigrams()),
        tasks.language(make_contexts(), Bigrams(every_position=False)),
    ],
    ids=["classification", "windows", "next word"],
)
def test_the_initial_loss_is_that_of_a_guess_at_random(task):
    choices = len(task.dataset.vocabulary or range(4))
    assert task.initial_loss == pytest.approx(math.log(choices), rel=1e-12)
    losses = jitted(task).score_fn(*zeroed(task), task.dataset.train)
    np.testing.assert_allclose(losses, task.initial_loss, rtol=1e-6)


@pytest.mark.parametrize("numbers", [1, 2])
def test_the_initial_loss_of_regression_is_that_of_the_mean(numbers):
    """The variance, exact although the mean is a thousand times the deviation."""
    task = tasks.regression(make_numbers(numbers=numbers), networks.MLP(numbers, hidden=()))
    y = task.dataset.train["y"].astype(np.float64)
    variance = np.mean((y - y.mean(axis=0)) ** 2)
    assert task.initial_loss == pytest.approx(variance, rel=1e-9)
    params, model_state = zeroed(task)
    params["Dense_0"]["bias"] = jnp.asarray(y.mean(axis=0), jnp.float32)
    losses = jitted(task).score_fn(params, model_state, task.dataset.train)
    assert np.mean(losses) == pytest.approx(task.initial_loss, rel=1e-3)


@pytest.mark.parametrize(
    ("dataset", "outputs"),
    [
        (make_classes(classes=3), 3),
        (make_windows(), 5),
        (make_contexts(), 5),
        (make_numbers(numbers=2), 2),
        (make_numbers(numbers=1), 1),
    ],
    ids=["classes", "windows", "next word", "two numbers", "one number"],
)
def test_a_network_returns_classes_words_or_numbers(dataset, outputs):
    assert tasks.num_outputs(dataset) == outputs


# The whole.


def train(task, sampler, tx, num_steps, pool_size):
    """Metrics before and after, and the last state."""
    size = len(jax.tree.leaves(task.dataset.train)[0])

    @jax.jit  # op by op it would take seconds
    def first_state(key):
        params, model_state = task.init(key)
        return init_train_state(key, params, tx, sampler, size, model_state)

    state = first_state(KEY)
    step = make_train_step(task.loss_fn, tx, sampler, pool_size=pool_size)
    examples = jax.device_put(task.dataset.train)
    evaluate = make_evaluation(task, batch_size=256)
    before, skipped = evaluate(state), 0
    for _ in range(num_steps):
        state, metrics = step(state, examples)
        skipped += int(metrics["skipped"])
    assert skipped == 0
    return before, evaluate(state), state


# Predicts the loss from past ones alone, and compiles sooner than the LSTM, the default, which is
# used where there are classes.
LINEAR = scorers.Network(
    init=lambda key: jnp.full((4,), 0.25),  # their mean, at first
    apply=lambda params, rows: rows.history @ params,
)


def learned_loss(task, **options):
    return recipes.learned_loss(
        batch_size=16,
        history=4,
        initial_loss=task.initial_loss,
        **options,
    )


@pytest.mark.slow
def test_classification_learns_with_learned_losses():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    part = {"x": x, "label": x[:, :3].argmax(axis=1).astype(np.int32)}
    task = tasks.classification(data.from_arrays(part, part, 3), networks.MLP(3, hidden=(16,)))
    sampler = learned_loss(task, num_classes=3, label_fn=task.label_fn)
    before, after, state = train(task, sampler, optax.sgd(0.1, 0.9), 80, 64)
    assert after["train_loss"] < 0.4 * before["train_loss"] and after["test_accuracy"] > 0.85
    assert int(state.sampler.buffer.count.sum()) > 0.5 * 80 * 16


@pytest.mark.slow
def test_a_language_model_learns_with_learned_losses_of_no_classes():
    task = tasks.language(make_contexts(200), Bigrams(every_position=False))
    sampler = learned_loss(task, network=LINEAR)
    before, after, _ = train(task, sampler, optax.adam(0.1), 100, 64)
    assert after["test_perplexity"] < 1.3 < 3 < before["test_perplexity"]


@pytest.mark.slow
def test_regression_learns_with_learned_losses_of_no_classes():
    dataset = data.friedman(num_train=400, num_test=100, noise=0.1)
    task = tasks.regression(dataset, networks.MLP(1, hidden=(32,)))
    before, after, _ = train(task, learned_loss(task, network=LINEAR), optax.adam(0.02), 200, 64)
    assert after["test_loss"] < 0.5 * task.initial_loss < 0.5 * before["test_loss"]


@pytest.mark.slow
def test_a_task_of_your_own_may_have_batches_of_any_shape():
    """Here ((x1, x2), y): y is the product of the sums."""
    rng = np.random.default_rng(0)
    x1, x2 = rng.uniform(0, 1, (2, 256, 3)).astype(np.float32)
    part = ((x1, x2), x1.sum(axis=1) * x2.sum(axis=1))

    def init_params(key):
        one, two = jax.random.normal(key, (2, 3))
        return {"one": one, "two": two}, None

    def score_fn(params, model_state, batch):
        (x1, x2), y = batch
        return jnp.square((x1 @ params["one"]) * (x2 @ params["two"]) - y)

    task = tasks.Task(
        dataset=data.from_arrays(part, part),
        init=init_params,
        loss_fn=lambda params, state, batch, key: (score_fn(params, state, batch), state),
        score_fn=score_fn,
        metrics_fn=lambda params, state, batch: {"loss": score_fn(params, state, batch)},
    )
    before, after, state = train(
        task, learned_loss(task, network=LINEAR), optax.adam(0.05), 100, 64
    )
    assert after["test_loss"] < 0.01 * before["test_loss"]
    signs = np.sign(np.concatenate([state.params["one"], state.params["two"]]))
    assert abs(signs.sum()) == 6  # all of one sign: the product is right, as are both or neither


@pytest.mark.slow
def test_an_lstm_knows_one_sentence_by_heart(tmp_path):
    """Words recur in it: no letter has a fixed successor, so what stands before it is needed."""
    sentence = "the cat sat on the mat and the dog sat on the cat\n"
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text(sentence)
    dataset = data.ptb(tmp_path, level="char", format="windows", length=12)
    network = networks.LSTM(len(dataset.vocabulary), features=32, layers=1, embedding=16)
    task = tasks.language(dataset, network)
    sampler = recipes.last_loss(batch_size=4, initial_loss=task.initial_loss)
    before, after, _ = train(task, sampler, optax.adam(0.02), 150, 4)
    assert before["train_perplexity"] == pytest.approx(len(dataset.vocabulary), rel=0.2)
    assert after["train_perplexity"] < 1.1 and after["valid_perplexity"] < 1.1


def test_labels_without_a_number_of_classes_say_what_to_pass():
    part = {"x": np.zeros((4, 2), np.float32), "label": np.zeros(4, np.int32)}
    dataset = data.from_arrays(part, part)
    with pytest.raises(ValueError, match="for classes, pass num_classes="):
        tasks.classification(dataset, networks.MLP(2))


def test_targets_that_do_not_differ_or_are_not_finite_leave_no_mass_to_the_unseen():
    def regression(y):
        made = make_numbers()
        train = made.train | {"y": np.full_like(made.train["y"], 3.0)}
        train["y"][5] = y
        return tasks.regression(made._replace(train=train), networks.MLP(1, hidden=()))

    assert regression(3.0).initial_loss == 1.0
    for bad in (np.nan, np.inf, 1e30):
        with pytest.raises(ValueError, match=r'the variance of "y" is .*; leave out targets that'):
            regression(bad)


def test_a_regression_needs_numbers_to_predict():
    part = {"x": np.zeros((4, 2), np.float32), "label": np.zeros(4, np.int32)}
    dataset = data.from_arrays(part, part, num_classes=2)
    with pytest.raises(ValueError, match="regression needs a data set of"):
        tasks.regression(dataset, networks.MLP(2))
