import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from processes import python

import isjax
from isjax import recipes, scorers
from isjax.base import FlatRows, take
from isjax.experiment import draw_statistics
from isjax.parallel import padding, sharding
from isjax.parallel.mesh import make_mesh
from isjax.samplers import stratified
from isjax.training import init_train_state


def mean_square(params, batch):
    return jnp.mean(jnp.square(params * batch["x"]), axis=(1, 2))


LAID = """
import json, jax, numpy as np
from isjax.parallel import sharding
from isjax.parallel.mesh import make_mesh

mesh = make_mesh(4, 2)
read = []

class Watched(np.ndarray):
    def __getitem__(self, index):
        read.append([index.start, index.stop])
        return np.asarray(self)[index]

x = np.arange(10).reshape(10, 1).view(Watched)
placed = sharding.place({"x": x}, mesh)["x"]
more = sharding.place({"x": np.ones((10, 1))}, mesh, 6)["x"]
print(json.dumps({
    "values": np.asarray(placed)[:, 0].tolist(),
    "parts": sorted({s.data[:, 0].tolist().__str__() for s in placed.addressable_shards}),
    "read": sorted(read),
    "more": more.shape,
}))
"""


def begin(sampler, size=1_100):  # a tree of two levels
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    state = init_train_state(jax.random.key(0), params, optax.adam(0.1), sampler, size)
    return padding.pad_state(state._replace(record=draw_statistics.init(size)), 1)


def specs(sampler, rule=sharding.replicated):
    state = begin(sampler)
    placed = sharding.shardings(state, make_mesh(1), rule)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    return jax.tree.map(lambda x: x.spec, placed)


def test_what_is_by_example_is_divided_and_the_rest_is_everywhere():
    found = specs(isjax.tree_sampler(scorers.last_loss(), batch_size=4))
    assert set(jax.tree.leaves(found.sampler.buffer)) == {P("data")}
    assert found.sampler.scores.levels == (P("data"), P())
    assert found.record.count == P("data") and found.record.scores == P()
    assert set(jax.tree.leaves((found.params, found.opt_state, found.key))) == {P()}


def test_what_each_part_keeps_is_divided():
    inner = isjax.tree_sampler(scorers.last_loss(), batch_size=4)
    found = specs(stratified(inner, 4)).sampler
    assert set(jax.tree.leaves(found.inner)) == {P("data")}


def test_parameters_and_their_moments_follow_a_rule():
    found = specs(isjax.recipes.uniform(batch_size=4), sharding.last_axis)
    moments = found.opt_state[0]
    for tree in (found.params, moments.mu, moments.nu):
        assert tree == {"kernel": P(None, "model"), "bias": P()}


@pytest.mark.slow
def test_each_device_gets_its_rows_and_reads_no_others():
    found = python(LAID, devices=8)
    assert found["values"] == [*range(10), 0, 0]
    assert found["more"] == [12, 1]
    assert found["parts"] == ["[0, 1, 2]", "[3, 4, 5]", "[6, 7, 8]", "[9, 0, 0]"]
    assert {tuple(part) for part in found["read"]} == {(0, 3), (3, 6), (6, 9), (9, 12)}


def test_a_state_is_built_as_it_is_made():
    sampler = isjax.tree_sampler(scorers.last_loss(), batch_size=4)
    made = sharding.build(lambda scale: scale * jnp.ones(3), (2.0,), make_mesh(1))
    np.testing.assert_array_equal(made, 2)
    built = sharding.build(lambda: begin(sampler), (), make_mesh(1))
    for found, expected in zip(
        jax.tree.leaves(built), jax.tree.leaves(begin(sampler)), strict=True
    ):
        if not jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 4), (4,), ()])
def test_the_plain_rule_divides_nothing(shape):
    assert sharding.replicated(jnp.ones(shape), make_mesh(1)) == P()


@pytest.mark.parametrize(
    ("shape", "rows"), [((5, 7, 3), 128), ((8, 8, 2), 128), ((150,), 256), ((64,), 128)]
)
def test_flat_rows_hold_the_same_examples(shape, rows):
    x = np.random.default_rng(0).integers(0, 256, (10, *shape)).astype(np.uint8)
    flat = sharding.flat_rows(x)
    assert isinstance(flat, FlatRows) and flat.rows.shape == (10, rows)
    np.testing.assert_array_equal(take({"x": flat}, np.int32([3, 3, 9]))["x"], x[[3, 3, 9]])
    np.testing.assert_array_equal(flat[:], x)


@pytest.mark.parametrize("shape", [(), (5,), (128,), (3, 4, 5)])
def test_what_a_tpu_gathers_in_place_or_would_double_stays_as_it_is(shape):
    x = np.zeros((10, *shape), np.float32)
    assert sharding.flat_rows(x) is x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "pool_size"),
    [
        (recipes.default(batch_size=4), None),
        (recipes.uniform(batch_size=4), 8),
        (recipes.reshuffled(batch_size=4), None),
        (isjax.importance_sampler(scorers.loss(mean_square), batch_size=4), None),
        (stratified(recipes.uniform(batch_size=2), 2, 4), None),
    ],
    ids=["tree", "pool", "epochs", "model", "strata"],
)
def test_a_step_on_flat_rows_is_that_on_arrays(sampler, pool_size):
    x = np.random.default_rng(0).normal(size=(12, 8, 9)).astype(np.float32)
    data, tx = {"x": jnp.asarray(x)}, optax.sgd(0.1)

    def loss_fn(params, model_state, batch, key):
        return mean_square(params, batch), model_state

    step = isjax.make_train_step(loss_fn, tx, sampler, pool_size=pool_size)
    start = lambda: init_train_state(jax.random.key(0), jnp.ones(()), tx, sampler, 12)  # noqa: E731
    expected, _ = step(start(), data)
    found, _ = step(start(), jax.tree.map(sharding.flat_rows, data))
    np.testing.assert_array_equal(found.params, expected.params)
    assert found.params != 1
