"""Limits of arguments, which may be traced."""

import jax.core


def violated(*conditions: object) -> bool:
    """Tells whether a condition on an argument fails; one on a traced number counts as met.

    So that `jax.vmap` can run many settings at once: their values are unknown when checked.

    Args:
        *conditions: results of comparisons, such as `0 <= decay, decay < 1`.
    """
    return any(not isinstance(met, jax.core.Tracer) and not met for met in conditions)
