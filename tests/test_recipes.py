import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import isjax
from isjax import recipes, scorers
from isjax.training import init_train_state, make_train_step

KEY = jax.random.key(0)
N, CLASSES = 24, 3
DEFAULTS = isjax.smooth_by_mean(0.5)  # of every recipe that follows losses, and k = 0.5


def data():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)
    return {"x": jnp.float32(x), "label": jnp.asarray(label, jnp.int32)}


def losses_of(params, batch):
    logits = batch["x"] @ params
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


NETWORK = scorers.Network(
    lambda key: 0.1 * jax.random.normal(key, (10,)), lambda p, rows: rows.history @ p
)
ADAM = optax.adam(1e-3)

# Each recipe beside its composition written out by hand.
COMPOSED = {
    "uniform": (
        functools.partial(recipes.uniform, batch_size=6),
        lambda: isjax.importance_sampler(scorers.uniform(), batch_size=6, k=0.0),
    ),
    "biased_loss": (
        functools.partial(recipes.biased_loss, batch_size=6, loss_fn=losses_of),
        lambda: isjax.importance_sampler(scorers.loss(losses_of), DEFAULTS, batch_size=6, k=0.5),
    ),
    "last_loss": (
        functools.partial(recipes.last_loss, batch_size=6),
        lambda: isjax.importance_sampler(
            scorers.last_loss(), DEFAULTS, batch_size=6, k=0.5, initial_loss=1.0
        ),
    ),
    "learned_loss": (
        functools.partial(recipes.learned_loss, batch_size=6, network=NETWORK),
        lambda: isjax.importance_sampler(
            scorers.learned(NETWORK, ADAM, history=10),
            DEFAULTS,
            batch_size=6,
            k=0.5,
            initial_loss=1.0,
        ),
    ),
}


def test_every_recipe_is_composed_here():
    assert set(COMPOSED) == set(recipes.__all__)


def trajectory(sampler, number=20):
    """Draws of some steps whose losses differ by example, and the last state."""
    pool, params = data(), jax.random.normal(KEY, (4, CLASSES))

    def step(state, key):
        draw, state = sampler.sample(key, state, jnp.arange(N), pool, params)
        batch = jax.tree.map(lambda x: x[draw.ids], pool)
        losses = jnp.square(batch["x"][:, 0])
        return sampler.update(state, draw, losses, batch), draw

    keys = jax.random.split(KEY, number)
    return jax.jit(lambda s: jax.lax.scan(step, s, keys))(sampler.init(KEY, N))


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipe_draws_as_its_composition_by_hand(name):
    recipe, by_hand = COMPOSED[name]
    (state, draws), (want_state, want) = trajectory(recipe()), trajectory(by_hand())
    assert jax.tree.structure(state) == jax.tree.structure(want_state)
    jax.tree.map(np.testing.assert_array_equal, (state, draws), (want_state, want))
    assert name == "uniform" or np.ptp(draws.draw_probs[-1]) > 0.001


ARGUMENTS = {
    "biased_loss": {"loss_fn": losses_of},
    "learned_loss": {"network": NETWORK},  # the golden run trains the bundled LSTM
}


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipe_trains_for_20_steps(name):
    sampler = getattr(recipes, name)(batch_size=6, **ARGUMENTS.get(name, {}))
    tx = optax.sgd(0.1)
    step = make_train_step(
        lambda params, model_state, batch, key: (losses_of(params, batch), model_state),
        tx,
        sampler,
        pool_size=12,
    )
    state = init_train_state(KEY, jnp.zeros((4, CLASSES)), tx, sampler, N)
    before = np.mean(losses_of(state.params, data()))
    for _ in range(20):
        state, metrics = step(state, data())
        assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 0
    assert np.mean(losses_of(state.params, data())) < before - 0.01


def test_uniform_weights_are_exactly_one():
    for size in (41, 47):  # 1 / (B * (1 / B)) is not 1 in float32 for some of these
        sampler = recipes.uniform(batch_size=5)
        draw, _ = jax.jit(sampler.sample)(KEY, sampler.init(KEY, size), jnp.arange(size))
        np.testing.assert_array_equal(draw.weights, np.ones(5, np.float32))


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ({"num_classes": CLASSES}, math.log(CLASSES)),
        ({"num_classes": CLASSES, "initial_loss": 0.7}, 0.7),
        ({}, 1.0),
    ],
    ids=["log of the classes", "given", "no classes"],
)
def test_learned_loss_starts_from_the_loss_of_a_uniform_guess(arguments, want):
    sampler = recipes.learned_loss(batch_size=2, history=2, **arguments)
    state = jax.eval_shape(lambda: sampler.init(KEY, 5))  # the LSTM itself is not needed
    assert state.buffer.losses.shape == (5, 2)
    history = jax.jit(lambda: sampler.init(KEY, 5).buffer.losses)()
    np.testing.assert_allclose(history, np.full((5, 2), want), rtol=1e-6)


@pytest.mark.parametrize("name", ["biased_loss", "last_loss", "learned_loss"])
def test_biased_recipes_take_k(name):
    recipe, _ = COMPOSED[name]
    _, draws = trajectory(recipe(k=-1.0), 3)
    np.testing.assert_allclose(draws.weights, N * draws.draw_probs, rtol=1e-5)


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipes_take_keywords_only_and_always_a_batch_size(name):
    with pytest.raises(TypeError):
        getattr(recipes, name)(6)
    with pytest.raises(TypeError, match="batch_size"):
        getattr(recipes, name)(**ARGUMENTS.get(name, {}))
