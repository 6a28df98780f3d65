import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax._numerics import duplicates


@pytest.mark.parametrize("size", [1, 2, 7, 128, 1000])
@pytest.mark.parametrize("kinds", [1, 5, 10**9])
def test_equal_ids_are_added_and_counted_by_sort_as_by_pairs(size, kinds):
    rng = np.random.default_rng(size)
    ids = rng.integers(0, kinds, size).astype(np.int32)
    x = rng.integers(-9, 9, size).astype(np.float32)
    same = ids[:, None] == ids[None, :]
    for total in (duplicates.total_by_sort, duplicates.total_by_pairs):
        np.testing.assert_array_equal(
            jax.jit(lambda ids, total=total: total(ids)(x))(ids), same @ x
        )
    number = jax.jit(duplicates.counts)(ids)
    assert number.dtype == np.int32
    np.testing.assert_array_equal(number, np.sum(same, axis=1))
    for distinct in (duplicates.distinct_by_sort, duplicates.distinct_by_pairs):
        assert jax.jit(distinct)(ids) == len(set(ids.tolist()))


@pytest.mark.parametrize("total", [duplicates.total_by_sort, duplicates.total_by_pairs])
def test_a_mean_of_large_values_does_not_overflow(total, monkeypatch):
    for name in ("total_by_sort", "total_by_pairs"):
        monkeypatch.setattr(duplicates, name, total)
    values = np.float32([3e38, 3e38, np.nan, np.inf, 1.0])
    mean, known = duplicates.mean_finite(jnp.int32([4, 4, 4, 7, 9]), values)
    np.testing.assert_allclose(mean, np.float32([3e38, 3e38, 3e38, 0.0, 1.0]), rtol=1e-6)
    np.testing.assert_array_equal(known, [True, True, True, False, True])


@pytest.mark.parametrize("function", [duplicates.counts, duplicates.distinct])
def test_memory_does_not_grow_with_the_square_of_the_batch(function):
    def bytes_for(size):
        ids = jax.ShapeDtypeStruct((size,), jnp.int32)
        return jax.jit(function).lower(ids).compile().memory_analysis().temp_size_in_bytes

    assert bytes_for(4096) <= 6 * bytes_for(1024) + 1000
