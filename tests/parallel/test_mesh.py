import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from processes import python

from isjax import recipes
from isjax.parallel import mesh
from isjax.training import init_train_state, make_train_step

PLACED = """
import json, jax, jax.numpy as jnp
from isjax.parallel import mesh

small = mesh.make_mesh(2, 2)
inside = {}
with jax.set_mesh(mesh.make_mesh(4, 2)):
    inside["shards"] = mesh.shards()
    spread = jax.jit(lambda x: mesh.spread({"even": x, "odd": x[:3], "none": x[0]}))(jnp.arange(8))
    inside |= {name: x.sharding.shard_shape(x.shape) for name, x in spread.items()}
    whole = jax.jit(lambda x: mesh.gathered(x * 1))(spread["even"])
    inside["whole"] = whole.sharding.shard_shape(whole.shape)
    inside["values"] = whole.tolist()
print(json.dumps(inside | {"small": dict(small.shape), "all": dict(mesh.make_mesh().shape)}))
"""


@pytest.mark.slow
def test_examples_are_spread_over_the_data_axis_where_it_divides_them():
    found = python(PLACED, devices=8)
    assert found["shards"] == 4
    assert found["even"] == [2] and found["odd"] == [3] and found["none"] == []
    assert found["whole"] == [8] and found["values"] == list(range(8))
    assert found["small"] == {"data": 2, "model": 2} and found["all"] == {"data": 8, "model": 1}


def test_without_a_mesh_nothing_happens():
    tree = {"x": jnp.ones((3, 2))}
    assert mesh.spread(tree)["x"] is tree["x"]
    assert mesh.gathered(tree)["x"] is tree["x"]
    assert mesh.shards() == 1


def test_one_device_is_a_mesh_of_one():
    assert dict(mesh.make_mesh(1).shape) == {"data": 1, "model": 1}
    np.testing.assert_array_equal(mesh.make_mesh(1).devices, [[jax.devices()[0]]])


def step_and_state():
    def loss_fn(params, model_state, batch, key):
        return jnp.square(batch["x"] @ params - batch["y"]), model_state

    sampler, tx = recipes.default(batch_size=4), optax.sgd(0.1)
    data = {"x": jnp.ones((8, 3)), "y": jnp.ones(8)}
    state = init_train_state(jax.random.key(0), jnp.zeros(3), tx, sampler, 8)
    return make_train_step(loss_fn, tx, sampler), state, data


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["batch", "data"])
def test_the_name_of_a_mapped_axis_decides_nothing(axis):
    step, *arguments = step_and_state()
    arguments = jax.tree.map(lambda x: x[None], arguments)
    _, metrics = jax.pmap(step, axis_name=axis)(*arguments)
    np.testing.assert_allclose(metrics["loss"], [1.0])


@pytest.mark.slow
def test_explicit_axes_are_left_to_the_caller():
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))):
        assert mesh.shards() == 1
        step, *arguments = step_and_state()
        _, metrics = step(*arguments)
        np.testing.assert_allclose(metrics["loss"], 1.0)


@pytest.mark.parametrize(("data", "model"), [(99, 1), (0, 99), (1, 0), (-1, 1), (1, -1)])
def test_a_mesh_that_the_devices_do_not_make_is_refused(data, model):
    with pytest.raises(ValueError, match=f"data={data} times model={model} was asked for"):
        mesh.make_mesh(data, model)
