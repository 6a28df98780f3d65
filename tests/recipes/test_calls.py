"""All recipes take the same calls, whatever a user's JAX is set to. Nothing here is compiled."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from test_recipes import CLASSES, KEY, N, data, make, make_training

from isjax import conditions, recipes, weights
from isjax.base import take
from isjax.samplers import checked, epochs, gate, lagged, reweight, stratified

SWAPPED = ["default", "given", "reshuffled", "uniform"]
# They decide shapes, or what is compiled.
STATIC = {"batch_size", "beta", "every", "history", "num_classes", "pool_size", "refresh"}
STATIC |= {"train_every"}


def traced_step(sampler, ids=None):
    """Shapes of a draw, and of the state after its losses were learned."""

    def step():
        state = sampler.init(KEY, N)
        draw, state = sampler.sample(KEY, state, ids, data(), jnp.zeros((4, CLASSES)))
        batch = take(data(), draw.ids)
        losses = jnp.square(batch["x"][:, 0])
        return draw, sampler.weigh(state, draw, losses), sampler.update(state, draw, losses, batch)

    return jax.eval_shape(step)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWAPPED)
@pytest.mark.parametrize("ids", [None, range(12)], ids=["without ids", "with ids"])
def test_these_recipes_can_be_swapped_by_name(name, ids):
    sampler = make(name, initial_loss=2.0)
    draw, weights, _ = traced_step(sampler, None if ids is None else jnp.asarray(ids))
    assert draw.ids.shape == weights.shape == (6,)
    state = sampler.init(KEY, N)
    draw, _ = sampler.sample(KEY, state)  # without the data, too
    assert draw.ids.shape == (6,)


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipe_works_under_strict_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        sampler = make(name)
        traced_step(sampler, None if sampler.own_pool else jnp.arange(N))
        step, begin = make_training(sampler)
        jax.eval_shape(step, jax.eval_shape(begin), data())


WRAPPED = {
    "gate": lambda: gate(recipes.last_loss(batch_size=6), conditions.total_variation()),
    "gate of tau": lambda: gate(recipes.last_loss(batch_size=6), conditions.tau(1.1)),
    "policy": lambda: reweight(recipes.last_loss(batch_size=6), weights.adjusted()),
    "epochs": lambda: epochs(recipes.last_loss(batch_size=6), 12),
    "strata": lambda: stratified(recipes.default(batch_size=2), 3),
    "lag": lambda: lagged(recipes.default(batch_size=6), 1),
    "checked": lambda: checked(recipes.default(batch_size=6)),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_work_under_strict_promotion(make):
    with jax.numpy_dtype_promotion("strict"):
        draw, weights, _ = traced_step(make())
    assert draw.ids.shape == weights.shape == (6,)


def settings():
    for name in recipes.__all__:
        for parameter in inspect.signature(getattr(recipes, name)).parameters.values():
            number = isinstance(parameter.default, int | float) and parameter.default is not False
            if number and parameter.name not in STATIC:
                yield name, parameter.name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameter"), list(settings()))
def test_every_number_of_a_recipe_may_be_traced(name, parameter):
    annealed = {"num_steps": 9} if parameter in ("annealing", "final_pressure") else {}

    def draw(value):
        sampler = make(name, **annealed | {parameter: value})
        state = sampler.init(KEY, N)
        ids = None if sampler.own_pool else jnp.arange(N)
        return sampler.sample(KEY, state, ids, data(), jnp.zeros((4, CLASSES)))[0]

    drawn = jax.eval_shape(jax.vmap(draw), jnp.array([0.3, 0.6]))
    assert drawn.weights.shape == (2, 6)


@pytest.mark.slow
def test_settings_under_vmap_give_the_draws_of_each_alone():
    def draw(smoothing):
        sampler = make("default", smoothing=smoothing)
        state = sampler.init(KEY, N)
        drawn, state = sampler.sample(KEY, state)
        state = sampler.update(state, drawn, jnp.arange(6.0))
        return sampler.sample(KEY, state)[0].draw_probs

    both = jax.jit(jax.vmap(draw))(jnp.array([0.1, 2.0]))
    for each, smoothing in zip(both, (0.1, 2.0), strict=True):
        assert jnp.allclose(each, jax.jit(draw, static_argnums=0)(smoothing), rtol=1e-5)
    assert not jnp.allclose(both[0], both[1], rtol=0.1)
