"""Ids that occur several times, as a CPU finds them and as an accelerator does."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import accelerator

from isjax import buffer
from isjax.diagnostics import unique_share

devices = pytest.mark.parametrize(
    "device", [contextlib.nullcontext, accelerator], ids=["cpu", "accelerator"]
)


@pytest.mark.slow
@devices
@pytest.mark.parametrize("size", [1, 2, 7, 128, 1000])
@pytest.mark.parametrize("kinds", [1, 5, 10**9])
def test_equal_ids_are_counted(device, size, kinds):
    ids = np.random.default_rng(size).integers(0, kinds, size).astype(np.int32)
    with device():
        number, share = jax.jit(buffer.counts)(ids), jax.jit(unique_share)(ids)
    assert number.dtype == np.int32
    np.testing.assert_array_equal(number, np.sum(ids[:, None] == ids[None, :], axis=1))
    assert share == pytest.approx(len(set(ids.tolist())) / size)


@pytest.mark.slow
@devices
def test_a_mean_of_large_losses_does_not_overflow(device):
    losses = jnp.float32([3e38, 3e38, np.nan, np.inf, 1.0])
    with device():
        start = buffer.init(10, 1, 2.5)
        written = jax.jit(buffer.write)(start, jnp.int32([4, 4, 4, 7, 9]), losses)
    np.testing.assert_allclose(written.losses[np.array([4, 7, 9])], np.float32([3e38, 2.5, 1.0]))
    np.testing.assert_array_equal(written.failed, np.arange(10) == 7)


@pytest.mark.slow
@devices
@pytest.mark.parametrize("function", [buffer.counts, unique_share])
def test_memory_does_not_grow_with_the_square_of_the_batch(device, function):
    def bytes_for(size):
        ids = jax.ShapeDtypeStruct((size,), jnp.int32)
        return jax.jit(function).lower(ids).compile().memory_analysis().temp_size_in_bytes

    with device():
        assert bytes_for(16384) <= 6 * bytes_for(4096) + 1000
