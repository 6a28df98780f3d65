"""Every sampler names swapped, mistyped and misshapen arguments, with the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isjax
from isjax import recipes, samplers, scorers

N, b = 12, 2
SAMPLERS = {
    "pool": recipes.last_loss(batch_size=b),
    "tree": recipes.default(batch_size=b),
    "gate": isjax.gate(recipes.last_loss(batch_size=b), 2.0),
    "epochs": recipes.reshuffled(batch_size=b),
    "lagged": samplers.lagged(recipes.default(batch_size=b), 1),
    "stratified": samplers.stratified(recipes.default(batch_size=1), 2),
    "checked": samplers.checked(recipes.default(batch_size=b)),
    "reweight": isjax.reweight(recipes.last_loss(batch_size=b), isjax.weights.correcting()),
}
KEY = jax.random.key(0)
DATA = {"x": np.zeros((2000, 4), np.float32), "label": np.zeros(2000, np.int32)}


@pytest.fixture(scope="module", params=SAMPLERS)
def started(request):
    """A sampler, its state, and the shape of a draw."""
    sampler = SAMPLERS[request.param]
    state = jax.jit(sampler.init, static_argnums=1)(KEY, N)
    draw, _ = jax.eval_shape(sampler.sample, KEY, state)
    return sampler, state, draw


@pytest.mark.slow
def test_key_and_state_that_are_swapped_are_named(started):
    sampler, state, _ = started
    with pytest.raises(TypeError, match=r"swapped; call sample\(key, state, ids\)"):
        sampler.sample(state, KEY)
    with pytest.raises(TypeError, match=r"swapped; call sample\(key, state, ids\)"):
        jax.jit(sampler.sample)(state, KEY)
    with pytest.raises(TypeError, match="state is of type dict, not the state of a sampler"):
        sampler.sample(KEY, DATA)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_arguments_of_update_that_are_swapped_are_named(started, order):
    sampler, state, draw = started
    arguments = (state, draw, jnp.ones(b))
    with pytest.raises(TypeError, match=r"update: .*; call update\(state, draw, losses\)"):
        sampler.update(*(arguments[i] for i in order))


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (DATA, r"ids are \['label'\] int32\[2000\], \['x'\] float32\[2000, 4\]; pass the numbers"),
        (DATA["x"], r"ids are float32\[2000, 4\]; pass the numbers"),
        (jnp.arange(8.0), r"ids are float32\[8\]; pass"),
        (jnp.zeros((2, 4), jnp.int32), r"ids are int32\[2, 4\]; pass"),
        (jnp.ones(N, bool), r"ids are bool\[12\]; pass"),
        (3, "ids are int; pass"),
        ("train", "ids are str; pass"),
    ],
    ids=["data set", "examples", "floats", "matrix", "mask", "number", "name"],
)
def test_a_pool_that_is_no_ids_is_named(started, ids, named):
    sampler, state, _ = started
    with pytest.raises(TypeError, match=named):
        sampler.sample(KEY, state, ids)


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ({"loss": jnp.ones(b)}, r"losses that are a dict, \['loss'\] float32\[2\]"),
        ([1.0, 2.0], "losses that are a list"),
        (1.0, "losses that are a float"),
    ],
)
def test_losses_that_are_no_array_are_named(started, losses, named):
    sampler, state, draw = started
    with pytest.raises(TypeError, match=named):
        sampler.update(state, draw, losses)
    with pytest.raises(ValueError, match="leave the mean over the batch to isjax"):
        sampler.update(state, draw, jnp.float32(1))


@pytest.mark.parametrize(
    ("number", "error", "named"),
    [
        (12.0, TypeError, "num_examples is 12.0; pass the integer 12"),
        ([1.0] * 30_000, TypeError, r"num_examples is \[1.0, .*; pass an integer"),
        (3_000_000_000, ValueError, "3000000000 examples, but ids are int32"),
    ],
    ids=["float", "list", "more than int32"],
)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_number_of_examples_that_is_none_is_named_in_few_words(sampler, number, error, named):
    with pytest.raises(error, match=named) as caught:
        sampler.init(KEY, number)
    assert len(str(caught.value)) < 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda n: recipes.default(batch_size=n), "batch_size"),
        (lambda n: isjax.importance_sampler(scorers.last_loss(), batch_size=n), "batch_size"),
        (lambda n: recipes.reshuffled(batch_size=n), "batch_size"),
        (lambda n: isjax.epochs(SAMPLERS["pool"], n), "epochs: pool_size"),
        (lambda n: samplers.lagged(SAMPLERS["pool"], 1, n), "lagged: pool_size"),
        (lambda n: samplers.lagged(SAMPLERS["tree"], n), "lagged: lag"),
        (lambda n: samplers.stratified(SAMPLERS["tree"], n), "stratified: strata"),
        (lambda n: isjax.tree_sampler(scorers.last_loss(), batch_size=b, refresh=n), "refresh"),
        (lambda n: isjax.presample(KEY, N, n), "presample: size"),
        (lambda n: isjax.presample(KEY, n, b), "presample: num_examples"),
    ],
)
def test_a_size_that_is_no_integer_is_named_with_the_integer(make, name):
    with pytest.raises(TypeError, match=rf"{name} is 4\.0; pass the integer 4"):
        make(4.0)
    with pytest.raises(TypeError, match=rf"{name} is '4'; pass an integer"):
        make("4")
    make(np.int64(4))


def test_a_list_of_integers_is_a_pool():
    sampler, ids = SAMPLERS["pool"], [3, 5, 7, 9]
    draw, _ = jax.jit(lambda key, state: sampler.sample(key, state, ids))(KEY, sampler.init(KEY, N))
    assert set(np.asarray(draw.ids).tolist()) <= set(ids)
