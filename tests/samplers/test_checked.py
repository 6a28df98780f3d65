"""Each mistake that `checked` knows is made once, under jit, and the right loop stays silent."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import recipes, weights
from isjax.samplers import checked, reweight

N, b = 20, 4


def train(mistake=None, sampler=None):
    """Five steps of a loop with one mistake; returns what was warned of."""
    sampler = checked(sampler or recipes.last_loss(batch_size=b))

    @jax.jit
    def step(key, state, number):
        ids = jnp.arange(N) + (5 if mistake == "ids" else 0)
        draw, after = sampler.sample(key, state, ids)
        losses = jnp.ones(b)
        if mistake == "negative":
            losses = losses.at[0].set(-1.0)
        if mistake == "nonfinite":
            losses = losses.at[0].set(jnp.nan)
        if mistake == "state":
            return sampler.update(state, draw, losses)
        return after if mistake == "update" else sampler.update(after, draw, losses)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = sampler.init(jax.random.key(0), N)
        for number in range(5):
            key = jax.random.key(9) if mistake == "key" else jax.random.key(number + 1)
            state = step(key, state, number)
        jax.effects_barrier()
    return [str(each.message) for each in caught]


@pytest.mark.slow
def test_a_loop_without_mistakes_is_silent():
    assert train() == []
    assert train(sampler=recipes.default(batch_size=b)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("key", "jax.random.fold_in(key, step)"),
        ("update", "sampler.update(state, draw, losses)"),
        ("state", "the state that sample returns"),
        ("ids", "ids that are of no example"),
        ("negative", "below zero"),
        ("nonfinite", "NaN or infinite"),
    ],
)
def test_each_mistake_is_told_once_with_its_remedy(mistake, words):
    (message,) = train(mistake)
    assert message.startswith("isjax.checked: ") and words in message


def test_it_draws_and_weighs_as_the_sampler_does():
    sampler = reweight(recipes.default(batch_size=b), weights.correcting())
    found = []
    for each in (sampler, checked(sampler)):

        @jax.jit
        def drawn(key, state, losses, each=each):
            draw, state = each.sample(key, state)
            return draw.ids, each.weigh(state, draw, losses)

        state = each.init(jax.random.key(0), N)
        found.append(drawn(jax.random.key(1), state, np.arange(1.0, b + 1, dtype=np.float32)))
    np.testing.assert_array_equal(*[each[0] for each in found])
    np.testing.assert_array_equal(*[each[1] for each in found])


def test_data_of_another_size_is_refused():
    sampler = checked(recipes.default(batch_size=b), {"x": np.zeros((30, 2))})
    with pytest.raises(ValueError, match="30 examples, but num_examples is 20"):
        sampler.init(jax.random.key(0), N)
    sampler.init(jax.random.key(0), 30)
