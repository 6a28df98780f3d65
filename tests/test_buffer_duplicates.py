import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.buffer import counts, slots


@pytest.mark.parametrize("size", [1, 2, 7, 128, 1000])
@pytest.mark.parametrize("kinds", [1, 5, 10**9])
def test_equal_ids_share_a_slot_of_their_own_and_are_counted(size, kinds):
    ids = np.random.default_rng(size).integers(0, kinds, size).astype(np.int32)
    slot, number = np.asarray(jax.jit(slots)(ids)), np.asarray(jax.jit(counts)(ids))
    assert slot.dtype == number.dtype == np.int32
    assert np.all((slot >= 0) & (slot < size))
    np.testing.assert_array_equal(slot[:, None] == slot[None, :], ids[:, None] == ids[None, :])
    np.testing.assert_array_equal(number, np.sum(ids[:, None] == ids[None, :], axis=1))


def test_memory_does_not_grow_with_the_square_of_the_batch():
    def bytes_for(size):
        ids = jax.ShapeDtypeStruct((size,), jnp.int32)
        return jax.jit(counts).lower(ids).compile().memory_analysis().temp_size_in_bytes

    assert bytes_for(4096) <= 6 * bytes_for(1024)
