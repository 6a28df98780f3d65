"""Training with optax's wrappers around an optimiser, and with models in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import buffer, recipes, scorers
from isjax.training import init_train_state, make_train_step

pytestmark = pytest.mark.slow  # compiles a step for every recipe

N, B, b = 40, 20, 8
RATE = 0.05
DIM = 3
BAD = (0, 20)  # their losses are NaN; once drawn, neither is drawn again before others


def make_data(bad=()):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, DIM)), 3 * rng.normal(size=N)
    y[list(bad)] = np.nan
    return {"x": jnp.float32(x), "y": jnp.float32(y)}


def loss_fn(params, model_state, batch, key):
    return 0.5 * jnp.square(batch["x"] @ params["w"] - batch["y"]), model_state


def zeros(dtype=jnp.float32):
    return {"w": jnp.zeros(DIM, dtype)}


def begin(tx, sampler=None, loss=loss_fn, params=None):
    """Returns a train state and a step that also returns its draw."""
    sampler = sampler or recipes.last_loss(batch_size=b, k=0.5)
    state = init_train_state(jax.random.key(0), params or zeros(), tx, sampler, N)
    return state, make_train_step(loss, tx, sampler, pool_size=B, with_draw=True)


def mean_gradient(data, w, draw):
    """Gradient of the mean weighted squared error, in NumPy and float64."""
    x, y = (np.asarray(data[name], float)[draw.ids] for name in ("x", "y"))
    error = x @ w - y
    return (np.asarray(draw.weights, float) * error) @ x / b


def weights_of(state):
    return np.asarray(state.params["w"], float)


# Several small batches for one update.


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.gradient_transformation()])
def test_multi_steps_updates_by_the_mean_of_the_weighted_gradients(wrap):
    """An update equals that of one batch with three times as many draws."""
    every, data = 3, make_data()
    state, step = begin(wrap(optax.MultiSteps(optax.sgd(RATE, momentum=0.9), every)))
    w, velocity = np.zeros(DIM), np.zeros(DIM)
    for _ in range(4):
        total = np.zeros(DIM)
        for _ in range(every):
            np.testing.assert_allclose(weights_of(state), w, rtol=1e-4, atol=1e-6)
            state, metrics = step(state, data)
            total += mean_gradient(data, w, metrics["draw"])
        velocity = total / every + 0.9 * velocity
        w = w - RATE * velocity
    np.testing.assert_allclose(weights_of(state), w, rtol=1e-4, atol=1e-6)
    assert step._cache_size() == 1


def test_the_sampler_learns_at_every_small_batch():
    data, network = make_data(), scorers.history_mlp(2)  # compiles in less than half the time
    sampler = recipes.learned_loss(batch_size=b, network=network, history=2, initial_loss=1.0)
    state, step = begin(optax.MultiSteps(optax.sgd(RATE), 3), sampler)
    count = np.zeros(N, int)
    for number in range(1, 3):  # of three: no update yet
        scorer = jax.device_get(state.sampler.scorer)
        state, metrics = step(state, data)
        draw = metrics["draw"]
        count[np.unique(draw.ids)] += 1
        np.testing.assert_array_equal(state.sampler.buffer.count, count)
        history, _ = buffer.read(state.sampler.buffer, draw.ids)
        np.testing.assert_allclose(history[:, 0], 0.5 * data["y"][draw.ids] ** 2, rtol=1e-6)
        moved = jax.tree.map(
            lambda old, new: not np.array_equal(old, new), scorer, state.sampler.scorer
        )
        assert any(jax.tree.leaves(moved)) and int(state.sampler.step) == number
        assert not np.any(weights_of(state))


def test_a_small_batch_that_is_not_finite_is_left_out_of_the_mean():
    """The update waits for another small batch instead."""
    every, data, bad = 2, make_data(), make_data(range(N))
    state, step = begin(optax.MultiSteps(optax.sgd(RATE), every))
    total = np.zeros(DIM)
    for now in (data, bad, data):
        assert not np.any(weights_of(state))
        state, metrics = step(state, now)
        assert bool(metrics["skipped"]) == (now is bad)
        if now is data:
            total += mean_gradient(data, np.zeros(DIM), metrics["draw"])
    np.testing.assert_allclose(weights_of(state), -RATE * total / every, rtol=1e-5)


# Wrappers and chains.


def test_apply_if_finite_finds_nothing_left_to_do():
    """The step itself skips and counts non-finite gradients; the optimiser sees none."""
    data, w, skipped = make_data(BAD), np.zeros(DIM), 0
    state, step = begin(optax.apply_if_finite(optax.sgd(RATE), max_consecutive_errors=1))
    for _ in range(6):
        state, metrics = step(state, data)
        skipped += int(metrics["skipped"])
        if not metrics["skipped"]:
            w = w - RATE * mean_gradient(data, w, metrics["draw"])
        np.testing.assert_allclose(weights_of(state), w, rtol=1e-4)
    assert 0 < skipped < 6 and int(state.opt_state.total_notfinite) == 0


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_clips_the_mean_of_the_weighted_gradients(limit):
    data, w = make_data(), np.zeros(DIM)
    state, step = begin(optax.chain(optax.clip_by_global_norm(limit), optax.sgd(RATE)))
    for _ in range(4):
        state, metrics = step(state, data)
        gradient = mean_gradient(data, w, metrics["draw"])
        norm = np.linalg.norm(gradient)
        assert (norm > limit) == (limit < 1)
        w = w - RATE * gradient * min(1, limit / norm)
        np.testing.assert_allclose(weights_of(state), w, rtol=1e-4)


def test_injected_hyperparameters_follow_their_schedule_and_can_be_read():
    data, w = make_data(), np.zeros(DIM)
    rates = optax.linear_schedule(RATE, 0.0, 4)
    state, step = begin(optax.inject_hyperparams(optax.sgd)(learning_rate=rates))
    for number in range(4):
        state, metrics = step(state, data)
        rate = RATE * (1 - number / 4)
        assert float(state.opt_state.hyperparams["learning_rate"]) == pytest.approx(rate)
        w = w - rate * mean_gradient(data, w, metrics["draw"])
        np.testing.assert_allclose(weights_of(state), w, rtol=1e-4)


def test_injected_hyperparameters_can_be_set_between_steps():
    data = make_data()
    state, step = begin(optax.inject_hyperparams(optax.sgd)(learning_rate=RATE))
    state, _ = step(state, data)
    state.opt_state.hyperparams["learning_rate"] = jnp.float32(0.0)
    before = weights_of(state)
    state, _ = step(state, data)
    np.testing.assert_array_equal(weights_of(state), before)
    assert step._cache_size() == 1


def with_average(tx, decay):
    """Adds a moving average of the parameters to the optimiser's state, as a user may."""

    def update(grads, state, params):
        updates, inner = tx.update(grads, state[0], params)
        new = optax.apply_updates(params, updates)
        return updates, (inner, optax.incremental_update(new, state[1], 1 - decay))

    return optax.GradientTransformation(lambda params: (tx.init(params), params), update)


def test_a_moving_average_of_parameters_can_ride_in_the_optimiser():
    data, average, skipped = make_data(BAD), np.zeros(DIM), 0
    state, step = begin(with_average(optax.sgd(RATE), 0.9))
    for _ in range(6):
        state, metrics = step(state, data)
        skipped += int(metrics["skipped"])
        if not metrics["skipped"]:
            average = 0.9 * average + 0.1 * weights_of(state)
        np.testing.assert_allclose(state.opt_state[1]["w"], average, rtol=1e-5)
    assert 0 < skipped < 6


def test_updates_can_be_averaged():
    """`optax.ema` averages updates: momentum without the bias of its first steps."""
    data, w, average = make_data(), np.zeros(DIM), np.zeros(DIM)
    state, step = begin(optax.chain(optax.ema(0.9), optax.sgd(RATE)))
    for number in range(1, 5):
        state, metrics = step(state, data)
        average = 0.9 * average + 0.1 * mean_gradient(data, w, metrics["draw"])
        w = w - RATE * average / (1 - 0.9**number)
        np.testing.assert_allclose(weights_of(state), w, rtol=1e-4)


# A model in bfloat16.


def rounded_loss(params, model_state, batch, key):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, batch))
    losses, _ = loss_fn(half[0], None, half[1], key)
    assert losses.dtype == jnp.bfloat16
    return losses, model_state


SAMPLERS = {
    "last_loss": lambda: recipes.last_loss(batch_size=b),
    "default": lambda: recipes.default(batch_size=b),
    "learned_loss": lambda: recipes.learned_loss(batch_size=b, history=2, initial_loss=1.0),
    "biased_loss": lambda: recipes.biased_loss(
        batch_size=b, loss_fn=lambda params, batch: rounded_loss(params, None, batch, None)[0]
    ),
    "per_class_gaussian": lambda: recipes.per_class_gaussian(
        batch_size=b, num_classes=1, label_fn=lambda batch: jnp.zeros(batch["y"].shape, int)
    ),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_losses_in_bfloat16_are_scored_and_kept_in_float32(name, dtype):
    sampler, data = SAMPLERS[name](), make_data()
    params = zeros(dtype)
    state = init_train_state(jax.random.key(0), params, optax.adam(RATE), sampler, N)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    step = make_train_step(
        rounded_loss,
        optax.adam(RATE),
        sampler,
        pool_size=None if sampler.own_pool else B,
        with_draw=True,
    )
    for _ in range(3):
        state, metrics = step(state, data)
        draw = metrics.pop("draw")
        assert draw.weights.dtype == draw.scores.dtype == draw.draw_probs.dtype == jnp.float32
        assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
    assert metrics["loss"].dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    assert step._cache_size() == 1
    floats = [
        x.dtype for x in jax.tree.leaves(state.sampler) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    assert set(floats) <= {jnp.dtype("float32")}
