"""Properties of all recipes. tests/recipes/test_methods.py compares each with its method."""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import isjax
from isjax import recipes, scorers
from isjax.training import init_train_state, make_train_step

pytestmark = pytest.mark.slow  # trains by every recipe

KEY = jax.random.key(0)
N, CLASSES = 24, 3
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}
DEFAULTS = isjax.smooth_by_mean(0.5)  # of every recipe that follows losses, with k = 0.5


def data():
    """A task to learn: the class is the position of the largest of the first three numbers."""
    x = np.random.default_rng(0).normal(size=(N, 4))
    return {"x": jnp.float32(x), "label": jnp.asarray(x[:, :CLASSES].argmax(axis=1), jnp.int32)}


def logits_of(params, batch):
    return batch["x"] @ params


def losses_of(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch), batch["label"])


NETWORK = scorers.Network(
    lambda key: 0.1 * jax.random.normal(key, (10,)), lambda p, rows: rows.history @ p
)
ADAM = optax.adam(1e-3)
GIVEN = np.random.default_rng(1).uniform(0.1, 1.4, N).astype(np.float32)

COMPANION = scorers.Companion(
    lambda key: (0.1 * jax.random.normal(key, (4, CLASSES)), None),
    lambda params, model_state, batch, key: (losses_of(params, batch), model_state),
    lambda params, model_state, batch: losses_of(params, batch),
)

# Required arguments of a recipe, beside its batch size.
ARGUMENTS = {
    "biased_loss": {"loss_fn": losses_of},
    "by_source": {"source": np.arange(N) % 3},
    "companion_loss": {"companion": COMPANION},
    "el2n": {"scores": GIVEN},
    "given": {"importances": GIVEN},
    "grad_norm": {"loss_fn": losses_of},
    "grad_norm_bound": {"logits_fn": logits_of},
    "learned_loss": {"network": NETWORK},  # tests/test_golden.py trains the bundled LSTM
    "per_class_gaussian": {"num_classes": CLASSES},
    "proxy_loss": {"example": data(), "num_classes": CLASSES},
    "reducible_loss": {"loss_fn": losses_of, "reference": GIVEN},
    "selective_backprop": {"loss_fn": losses_of},
}


def make(name, **arguments):
    return getattr(recipes, name)(batch_size=6, **ARGUMENTS.get(name, {}) | arguments)


def make_training(sampler):
    """The step of a linear model, and the function that makes its first state."""
    tx = optax.sgd(0.1)
    step = make_train_step(
        lambda params, model_state, batch, key: (losses_of(params, batch), model_state),
        tx,
        sampler,
        pool_size=None if sampler.own_pool else 12,
    )
    return step, lambda: init_train_state(KEY, jnp.zeros((4, CLASSES)), tx, sampler, N)


# Some recipes, composed by hand.
COMPOSED = {
    "uniform": lambda: isjax.importance_sampler(scorers.uniform(), batch_size=6, k=0.0),
    "biased_loss": lambda: isjax.importance_sampler(
        scorers.loss(losses_of), DEFAULTS, batch_size=6, k=0.5
    ),
    "last_loss": lambda: isjax.importance_sampler(
        scorers.last_loss(),
        isjax.chain(isjax.transforms.clip(high=math.inf), DEFAULTS),
        batch_size=6,
        k=0.5,
        initial_loss=1.0,
    ),
    "learned_loss": lambda: isjax.importance_sampler(
        scorers.learned(NETWORK, ADAM, history=10),
        DEFAULTS,
        batch_size=6,
        k=0.5,
        initial_loss=1.0,
    ),
}


def trajectory(sampler, number=20):
    """The last state and the draws of some steps, with losses that differ by example."""
    pool, params = data(), jax.random.normal(KEY, (4, CLASSES))
    ids = None if sampler.own_pool else jnp.arange(N)

    def step(state, key):
        draw, state = sampler.sample(key, state, ids, pool, params)
        batch = jax.tree.map(lambda x: x[draw.ids], pool)
        losses = jnp.square(batch["x"][:, 0])
        return sampler.update(state, draw, losses, batch), draw

    keys = jax.random.split(KEY, number)
    run = jax.jit(
        lambda: jax.lax.scan(step, sampler.init(KEY, N), keys), compiler_options=QUICK_TO_COMPILE
    )
    return run()


@pytest.mark.parametrize("name", COMPOSED)
def test_recipe_draws_as_its_composition_by_hand(name):
    (state, draws), (want_state, want) = trajectory(make(name)), trajectory(COMPOSED[name]())
    assert jax.tree.structure(state) == jax.tree.structure(want_state)
    jax.tree.map(np.testing.assert_array_equal, (state, draws), (want_state, want))
    assert name == "uniform" or np.ptp(draws.draw_probs[-1]) > 0.001


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipe_trains_for_20_steps(name):
    train = data()
    step, begin = make_training(make(name))
    state = jax.jit(begin, compiler_options=QUICK_TO_COMPILE)()
    step = step.lower(state, train).compile(compiler_options=QUICK_TO_COMPILE)
    for _ in range(20):
        state, metrics = step(state, train)
        assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 0
    assert np.mean(trained_losses(state.params, train)) < math.log(CLASSES) - 0.3


trained_losses = jax.jit(losses_of)


def test_uniform_weights_are_exactly_one():
    for size in (41, 47):  # 1 / (B * (1 / B)) is not 1 in float32 for these
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


@pytest.mark.parametrize("name", ["biased_loss", "learned_loss"])
def test_the_papers_recipes_draw_by_the_resampler_named(name):
    composed = {
        "biased_loss": scorers.loss(losses_of),
        "learned_loss": scorers.learned(NETWORK, ADAM, history=10),
    }
    _, others = trajectory(make(name), 3)
    for resample in ("categorical", "without_replacement"):
        by_hand = isjax.importance_sampler(
            composed[name],
            DEFAULTS,
            batch_size=6,
            k=0.5,
            resample=getattr(isjax.resampling, resample),
        )
        (_, draws), (_, want) = trajectory(make(name, resample=resample), 3), trajectory(by_hand, 3)
        jax.tree.map(np.testing.assert_array_equal, draws, want)
        assert not np.array_equal(draws.index, others.index)


@pytest.mark.parametrize("name", ["biased_loss", "learned_loss"])
def test_the_papers_recipes_refuse_an_unknown_resampler(name):
    message = f"recipes.{name}: resample is 'presample'; choose one of categorical, systematic"
    with pytest.raises(ValueError, match=message):
        make(name, resample="presample")


# `prioritized` is left out: it divides its weights by the largest. The weights of `reducible_loss`
# are one unless it is `sampled`; so are those of a closed gate, which opens soon with pool_size=1.
TAKE_K = {
    name: functools.partial(make, name)
    for name in recipes.__all__
    if "k" in inspect.signature(getattr(recipes, name)).parameters and name != "prioritized"
} | {
    "grad_norm_bound": functools.partial(make, "grad_norm_bound", pool_size=1),
    "reducible_loss": functools.partial(make, "reducible_loss", sampled=True),
}


@pytest.mark.parametrize("name", TAKE_K)
def test_biased_recipes_take_k(name):
    _, draws = trajectory(TAKE_K[name](k=-1.0), 12)
    np.testing.assert_allclose(draws.weights, N * draws.draw_probs, rtol=1e-5)
    assert np.ptp(draws.weights) > 0.01


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipes_take_keywords_only_and_always_a_batch_size(name):
    parameters = inspect.signature(getattr(recipes, name)).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(TypeError):
        getattr(recipes, name)(6)
    with pytest.raises(TypeError, match="batch_size"):
        getattr(recipes, name)(**ARGUMENTS.get(name, {}))


@pytest.mark.parametrize("name", recipes.__all__)
def test_the_docstring_of_a_recipe_lists_its_arguments(name):
    recipe = getattr(recipes, name)
    listed = re.search(r"\nArgs:\n(.*?)\n\n", inspect.getdoc(recipe), re.DOTALL)[1]
    assert re.findall(r"^    (\w+): ", listed, re.M) == list(inspect.signature(recipe).parameters)


def test_el2n_refuses_scores_that_are_not_numbers():
    with pytest.raises(ValueError, match="2 scores are NaN"):
        recipes.el2n(batch_size=4, scores=np.array([1.0, np.nan, 2.0, np.nan]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proportions": (1, 2)}, r"proportions is \(1, 2\); give 3 numbers of 0 or more"),
        ({"proportions": (1, 2, 3, 4)}, "give 3 numbers"),
        ({"proportions": (1, -2, 3)}, "give 3 numbers"),
        ({"proportions": (0, 0, 0)}, "one for each source, and one above 0"),
        ({"proportions": (1, 2, 3), "final_proportions": (1, 2)}, "final_proportions is"),
        ({"final_proportions": (1, 2, 3)}, "give numbers to begin with as proportions"),
        ({"pool_size": 2}, "source 0 has 8 of 24 .* pool of 2; choose a pool of at least 3"),
        ({"source": np.arange(3) - 1}, "learned_sources: source is of type int64"),
        ({"floor": 2.0}, "floor in"),
    ],
)
def test_by_source_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("by_source", num_steps=9, **arguments)
    with pytest.raises(ValueError, match="and num_steps"):
        make("by_source", proportions=(1, 2, 3), final_proportions=(1, 2, 3))
