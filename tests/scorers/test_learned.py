"""The learned scorer: its gradient and optimiser by hand, its networks, and its errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import buffer
from isjax.base import Rows
from isjax.samplers import importance_sampler
from isjax.scorers import Network, coarse_features, features_mlp, learned
from isjax.scorers._learned import LearnedState
from isjax.training import init_train_state, make_train_step

KEY = jax.random.key(0)


def rows_of(history, count=None, batch=None):
    history = jnp.asarray(history, jnp.float32)
    count = jnp.ones(len(history), jnp.int32) if count is None else jnp.asarray(count, jnp.int32)
    return Rows(history, count, batch)


def score(scorer, rows):
    return np.asarray(jax.jit(scorer.score)(jax.jit(scorer.init)(KEY), rows))


# --- with a linear network over (history, count)

HISTORY = np.array([[0.5, 1.0], [2.0, 0.1], [3.0, 3.0], [0.2, 0.9]])
COUNT = np.array([2, 1, 0, 5])
LOSSES = np.array([0.7, 1.5, 2.5, 0.1])
PARAMS = {"w": np.array([0.4, -0.3]), "c": np.array([0.05]), "b": np.array([0.2])}


def linear_network():
    def apply(params, rows):
        counted = params["c"][0] * rows.count + params["b"][0]
        return rows.history @ params["w"] + counted

    return Network(lambda key: jax.tree.map(jnp.float32, PARAMS), apply)


def outputs(params):
    return HISTORY @ params["w"] + params["c"] * COUNT + params["b"]


def gradient(params, losses, log_losses):
    """Of mean (f - target)^2 over the batch, by hand."""
    z = outputs(params)
    if log_losses:
        slope = 2 * (z - np.log(losses)) / len(z)
    else:
        slope = 2 * (np.log1p(np.exp(z)) - losses) / (1 + np.exp(-z)) / len(z)
    return {"w": HISTORY.T @ slope, "c": np.array([COUNT @ slope]), "b": np.array([slope.sum()])}


def sgd(params, grads, moments, step):
    return {k: params[k] - 0.1 * grads[k] for k in params}, moments


def adam(params, grads, moments, step):
    m, v = moments or ({k: 0 * params[k] for k in params},) * 2
    m = {k: 0.9 * m[k] + 0.1 * grads[k] for k in params}
    v = {k: 0.999 * v[k] + 0.001 * grads[k] ** 2 for k in params}
    mean = {k: m[k] / (1 - 0.9**step) for k in params}
    root = {k: np.sqrt(v[k] / (1 - 0.999**step)) + 1e-8 for k in params}
    return {k: params[k] - 1e-3 * mean[k] / root[k] for k in params}, (m, v)


@pytest.mark.parametrize("log_losses", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "by_hand"), [(optax.sgd(0.1), sgd), (None, adam)], ids=["sgd", "default adam"]
)
def test_learned_update_is_one_step_on_the_squared_error(optimizer, by_hand, log_losses):
    scorer = learned(linear_network(), optimizer, history=2, log_losses=log_losses)
    state, params, moments = jax.jit(scorer.init)(KEY), PARAMS, None
    update = jax.jit(scorer.update)
    for step in (1, 2, 3):
        losses = LOSSES * step
        state = update(state, rows_of(HISTORY, COUNT), jnp.float32(losses))
        grads = gradient(params, losses, log_losses)
        params, moments = by_hand(params, grads, moments, step)
    for name, want in params.items():
        np.testing.assert_allclose(state.params[name], want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("log_losses", [False, True])
def test_learned_scores_seen_rows_by_the_network_and_unseen_ones_by_initial_loss(log_losses):
    scorer = learned(linear_network(), history=2, log_losses=log_losses)
    z = outputs(PARAMS)
    predicted = np.exp(z) if log_losses else np.log1p(np.exp(z))
    want = np.where(COUNT > 0, predicted, HISTORY[:, 0])
    out = score(scorer, rows_of(HISTORY, COUNT))
    np.testing.assert_allclose(out, want, rtol=1e-5)
    assert out[2] == 3.0 and scorer.history == 2


@pytest.mark.parametrize("log_losses", [False, True])
@pytest.mark.parametrize("output", [-1e4, 1e4])
def test_learned_scores_stay_finite_and_not_negative(output, log_losses):
    network = Network(lambda key: output, lambda params, rows: rows.history[:, 0] * params)
    scorer = learned(network, optax.sgd(0.1), history=1, log_losses=log_losses)
    out = score(scorer, rows_of(np.ones((3, 1))))
    assert np.all(np.isfinite(out)) and np.all(out >= 0)


def test_a_linear_output_is_clamped_as_a_score_but_not_in_training():
    scorer = learned(linear_network(), optax.sgd(0.1), history=2, linear=True)
    rows = rows_of(HISTORY, [3, 1, 1, 5])
    low = Rows(rows.history - 40, rows.count)
    z = outputs(PARAMS) + PARAMS["c"] * (np.array([3, 1, 1, 5]) - COUNT)
    np.testing.assert_allclose(score(scorer, rows), np.maximum(z, 0), rtol=1e-5, atol=1e-6)
    below = z - 40 * PARAMS["w"].sum()
    assert np.all(below < 0)
    np.testing.assert_array_equal(score(scorer, low), 0.0)
    state = jax.jit(scorer.update)(scorer.init(KEY), low, jnp.float32(LOSSES))
    want = PARAMS["b"] - 0.1 * 2 * np.mean(below - LOSSES)  # the clamp would leave no gradient
    np.testing.assert_allclose(state.params["b"], want, rtol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_an_initial_loss_that_counts_as_observed_is_read_by_the_network(linear):
    """Its place is behind all losses observed, where the buffer keeps it."""
    plain = learned(linear_network(), optax.sgd(0.1), history=2, linear=linear)
    counted = learned(
        linear_network(), optax.sgd(0.1), history=2, linear=linear, initial_observed=True
    )
    rows, one_more = rows_of(HISTORY, COUNT), rows_of(HISTORY, COUNT + 1)
    np.testing.assert_array_equal(score(counted, rows), score(plain, one_more))
    assert score(counted, rows)[2] != HISTORY[2, 0]  # never seen, and predicted all the same
    updated = [
        jax.jit(scorer.update)(scorer.init(KEY), given, jnp.float32(LOSSES)).params
        for scorer, given in ((counted, rows), (plain, one_more))
    ]
    jax.tree.map(np.testing.assert_array_equal, *updated)


@functools.cache
def one_update(log_losses):
    """One update of the linear network, jitted: `(losses) -> state`."""
    scorer = learned(linear_network(), optax.sgd(0.1), history=2, log_losses=log_losses)
    rows = rows_of(HISTORY, COUNT)
    return jax.jit(lambda losses: scorer.update(scorer.init(KEY), rows, losses))


def parameter_change(losses, log_losses=False):
    state = one_update(log_losses)(np.float32(losses))
    return np.concatenate([np.asarray(state.params[k], float) - PARAMS[k] for k in ("w", "c", "b")])


@pytest.mark.parametrize("log_losses", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_learned_learns_from_the_finite_losses_alone(bad, log_losses):
    # The step has the direction of the gradient of the one finite example, at any scale.
    change = parameter_change([bad, LOSSES[1], bad, bad], log_losses)
    z = outputs(PARAMS)[1]
    error = z - np.log(LOSSES[1]) if log_losses else np.log1p(np.exp(z)) - LOSSES[1]
    want = -np.sign(error) * np.concatenate([HISTORY[1], [COUNT[1]], [1.0]])
    cosine = change @ want / np.linalg.norm(change) / np.linalg.norm(want)
    assert cosine == pytest.approx(1.0, abs=1e-5)


def test_learned_learns_nothing_from_a_batch_without_a_finite_loss():
    np.testing.assert_allclose(parameter_change([np.nan, np.inf, -np.inf, np.nan]), 0.0, atol=1e-7)


def test_learned_survives_nan_losses_under_its_default_optimizer():
    scorer = learned(linear_network(), history=2)
    state = jax.jit(scorer.update)(
        scorer.init(KEY), rows_of(HISTORY, COUNT), jnp.float32([np.nan, 1, np.inf, 2])
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": 0}, "history is 0; choose 1 or more for the default network"),
        ({"network": linear_network(), "history": -1}, "history is -1"),
        ({"network": linear_network(), "num_classes": 3}, "leave them out"),
        ({"network": linear_network(), "label_fn": len}, "leave them out"),
        ({"log_losses": True, "linear": True}, "log_losses and linear exclude each other"),
        (
            {"network": linear_network(), "history": 0, "initial_observed": True},
            "no loss to count; leave out initial_observed",
        ),
    ],
    ids=[
        "no history",
        "negative history",
        "classes beside a network",
        "label_fn beside a network",
        "two outputs",
        "initial loss without a history",
    ],
)
def test_learned_refuses_arguments_that_it_cannot_honour(arguments, message):
    with pytest.raises(ValueError, match=message):
        learned(**arguments)


# --- with the bundled LSTM


@pytest.mark.slow
def test_default_network_reads_the_class_by_label_fn():
    by_key = learned(num_classes=3, history=2)
    by_fn = learned(num_classes=3, history=2, label_fn=lambda batch: batch[1])
    state = jax.jit(by_key.init)(KEY)
    history, classes = np.ones((3, 2)), jnp.arange(3)
    out = np.asarray(jax.jit(by_key.score)(state, rows_of(history, batch={"label": classes})))
    again = jax.jit(by_fn.score)(state, rows_of(history, batch=(None, classes)))
    assert len(np.unique(out)) == 3
    np.testing.assert_array_equal(out, again)


@pytest.mark.parametrize(
    ("batch", "remedy"),
    [(None, "pass batch="), ({"x": 0}, "label_fn=")],
    ids=["none", "unlabelled"],
)
def test_default_network_without_classes_to_read_says_what_to_pass(batch, remedy):
    scorer = learned(num_classes=3, history=2)
    state = LearnedState(None, None, None)
    with pytest.raises(ValueError, match=remedy):
        scorer.score(state, rows_of(np.ones((2, 2)), batch=batch))


@pytest.mark.parametrize("labels", [jnp.zeros((3, 1), int), jnp.zeros(2, int), jnp.zeros(3)])
def test_labels_of_another_shape_or_type_are_refused(labels):
    scorer = learned(num_classes=2, history=2)
    rows = rows_of(np.ones((3, 2)), batch={"label": labels})
    with pytest.raises(ValueError, match=r"learned .*one integer per example, shape \(3,\)"):
        scorer.score(LearnedState(None, None, None), rows)


def test_learned_keeps_losses_themselves_and_runs_no_main_model():
    scorer = learned(linear_network(), history=4)
    assert (scorer.history, scorer.remember, scorer.passes) == (4, None, 0)


# --- of a stream, whose examples are seen once


def pools(number, size=64):
    """A stream of pools, x [B, 4] and y [B], whose noise grows with the second feature of x."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        x = rng.uniform(0, 1, (size, 4)).astype(np.float32)
        noise = 3 * x[:, 1] * rng.normal(size=size)
        yield {"x": jnp.asarray(x), "y": jnp.asarray(x[:, 0] + noise, jnp.float32)}


def streaming_step(batch_size=16):
    def loss_fn(params, model_state, batch, key):
        return jnp.square(batch["x"] @ params - batch["y"]), model_state

    proxy = learned(
        features_mlp(lambda batch: batch["x"], 4, hidden=(16,)), optax.adam(1e-2), history=0
    )
    sampler = importance_sampler(proxy, batch_size=batch_size, k=1.0)
    tx = optax.sgd(1e-2)
    state = jax.jit(lambda: init_train_state(KEY, jnp.zeros(4), tx, sampler, 1))()
    return state, make_train_step(loss_fn, tx, sampler, with_draw=True), proxy


@pytest.mark.slow
def test_a_proxy_learns_what_is_hard_in_a_stream_and_it_is_drawn_more():
    state, step, proxy = streaming_step()
    for pool in pools(400):
        state, metrics = step(state, pool)
        assert np.all(np.asarray(metrics["draw"].ids) < 64)  # positions in the pool
    held_out = next(pools(1, size=2000))
    rows = Rows(jnp.zeros((2000, 0)), jnp.zeros(2000, jnp.int32), held_out)
    predicted = np.asarray(jax.jit(proxy.score)(state.sampler.scorer, rows))
    spread = np.asarray(held_out["x"][:, 1])
    assert np.corrcoef(predicted, np.square(spread))[0, 1] > 0.8
    # The expected squared error is 9 x1^2, plus the error of the model.
    hard, easy = predicted[spread > 0.8].mean(), predicted[spread < 0.2].mean()
    assert hard > 5 * easy


@pytest.mark.slow
def test_a_stream_keeps_nothing_of_its_examples_and_compiles_once():
    state, step, _ = streaming_step()
    assert buffer.size(state.sampler.buffer) == 0
    shapes = jax.tree.map(jnp.shape, state)
    for pool in pools(3):
        state, metrics = step(state, pool)
        assert int(metrics["draw"].info.passes) == 0
    assert jax.tree.map(jnp.shape, state) == shapes
    assert step._cache_size() == 1


def test_features_that_cannot_be_are_refused():
    def scored(batch, features=lambda batch: batch["x"]):
        scorer = learned(features_mlp(features, 4), history=0)
        rows = Rows(jnp.zeros((6, 0)), jnp.zeros(6, jnp.int32), batch)
        return scorer.score(LearnedState(None, None, None), rows)

    with pytest.raises(ValueError, match=r"but got none; pass batch= to sampler.sample and sampl"):
        scored(None)
    for shape in [(6, 5), (5, 4), (6,), (6, 4, 1)]:
        message = rf"shape \({shape[0]},.*num_features = 4 for each example, shape \(6, 4\)"
        with pytest.raises(ValueError, match=message):
            scored({"x": jnp.zeros(shape)})


@pytest.mark.parametrize("shape", [(5, 16, 24, 3), (5, 6, 10, 2), (5, 28, 28, 1), (5, 13, 9, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_coarse_features_are_means_over_a_grid_and_the_class(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, shape).astype(dtype)
    label = rng.integers(0, 3, 5).astype(np.int32)
    features = jax.jit(coarse_features(3, lambda batch: batch["y"]))({"x": x, "y": label})
    scaled = x.astype(np.float64) / 64 - 2 if dtype == np.uint8 else x.astype(np.float64)
    for axis in (1, 2):  # of stretches as equal as they can be
        cells = min(shape[axis], 8)
        starts = [-(-cell * shape[axis] // cells) for cell in range(cells)] + [shape[axis]]
        stretches = itertools.pairwise(starts)
        parts = [scaled.take(range(*ends), axis).mean(axis, keepdims=True) for ends in stretches]
        scaled = np.concatenate(parts, axis)
    want = np.hstack([scaled.reshape(5, -1), np.eye(3)[label]])
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, want, rtol=1e-5, atol=1e-5)


def test_coarse_features_leave_signals_and_vectors_as_they_are():
    for shape in [(4, 40, 1), (4, 7)]:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        batch = {"x": x, "label": np.arange(4) % 2}
        want = np.hstack([x.reshape(4, -1), np.eye(2)[batch["label"]]])
        np.testing.assert_array_equal(coarse_features(2)(batch), want.astype(np.float32))


@pytest.mark.parametrize("x", [np.zeros((2, 5), np.int32), {"left": np.zeros((2, 5))}])
def test_coarse_features_of_tokens_or_of_several_inputs_are_refused(x):
    with pytest.raises(ValueError, match=r"floating point or bytes, but it is (int32|dict)"):
        coarse_features(2)({"x": x, "label": np.zeros(2, np.int32)})
