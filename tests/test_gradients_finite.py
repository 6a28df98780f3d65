import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.gradients import all_finite

TREE = {"a": jnp.ones((3, 2)), "b": (jnp.zeros(()), jnp.arange(4)), "c": jnp.ones(2, jnp.bfloat16)}


def with_value(value):
    return TREE | {"a": TREE["a"].at[1, 1].set(value)}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_one_bad_number_anywhere_is_found(wrap):
    check = wrap(all_finite)
    for value in (np.nan, np.inf, -np.inf):
        assert not check(with_value(value))
        assert not check(TREE | {"c": jnp.asarray([0, value], jnp.bfloat16)})


def test_one_bad_number_at_any_place_of_arrays_of_any_shape_is_found():
    shapes = [(), (5,), (3, 2), (2, 3, 4), (1, 1), (0, 3), (3, 0)]
    check, tree = jax.jit(all_finite), {str(shape): np.ones(shape, np.float32) for shape in shapes}
    assert check(tree)
    for name, array in tree.items():
        for place in np.ndindex(array.shape):
            for value in (np.nan, np.inf, -np.inf):
                bad = array.copy()
                bad[place] = value
                assert not check(tree | {name: bad})


@pytest.mark.parametrize("value", [0.0, -0.0, 3e38, -3e38, 1e-45])
def test_the_largest_and_smallest_numbers_are_finite(value):
    assert jax.jit(all_finite)(with_value(value))


def test_two_infinities_do_not_cancel():
    assert not jax.jit(all_finite)(TREE | {"a": jnp.asarray([np.inf, -np.inf])})


def test_trees_without_floating_point_numbers_are_finite():
    assert all_finite(()) and all_finite({"key": jax.random.key(0), "n": jnp.arange(3)})
