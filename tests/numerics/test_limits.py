import jax
import jax.numpy as jnp

from isjax._numerics.limits import violated


def test_a_condition_on_known_numbers_is_violated_where_it_fails():
    assert not violated() and not violated(True, jnp.bool_(True))
    assert violated(True, False) and violated(jnp.float32(-1) >= 0)


def test_a_condition_on_a_traced_number_counts_as_met():
    assert jax.vmap(lambda x: jnp.int32(violated(x >= 0, x < -1)))(jnp.array([-1.0])) == 0
