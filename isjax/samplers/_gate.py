"""`gate`: samples by importance only while that is worth its cost."""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import conditions, resampling
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler
from isjax.conditions import Condition
from isjax.samplers._importance import (
    count_invalid,
    make_draw,
    pool_of,
    span_of_inner,
    step_of_inner,
)
from isjax.samplers._refusals import refuse_wrong_sample, refuse_wrong_update

__all__ = ["break_even", "gate"]


class GateState(NamedTuple):
    """State of `gate`.

    Attributes:
        inner: the gated sampler's state.
        condition: the condition's state.
        is_open: [] bool, at the last draw.
    """

    inner: PyTree
    condition: PyTree
    is_open: Array

    step, span = step_of_inner, span_of_inner


def gate(sampler: Sampler, condition: Condition | float) -> Sampler:
    """Samples by importance only while that is worth its cost, else uniformly, without scoring.

    Args:
        sampler: what to switch. While closed its scorer does not run, draws are uniform, of weight
            and score one, its transform stands still, and its `update` goes on learning.
        condition: see `isjax.conditions`; a number is short for `conditions.tau` of it.

    Raises:
        TypeError: if `condition` is neither.
        ValueError: if `sampler` has a pool of its own.
    """
    if sampler.own_pool:
        raise ValueError(
            "a gate draws from the pool it is given; put it inside: epochs(gate(...)), and have "
            "tree_sampler draw uniformly by a schedule of its smoothing, infinite where closed"
        )
    if not isinstance(condition, Condition):
        if not isinstance(condition, numbers.Real | Array):
            raise TypeError(
                f"gate: condition is {condition!r}; pass a number, for tau, or what a function of "
                "isjax.conditions returns, such as conditions.after(1000)"
            )
        condition = conditions.tau(condition)

    def init(key: Array, num_examples: int) -> GateState:
        inner = sampler.init(key, num_examples)
        return GateState(inner, condition.init(), jnp.zeros((), bool))

    def sample(
        key: Array,
        state: GateState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, GateState]:
        refuse_wrong_sample(key, state)
        pool, batch = pool_of(state.inner, ids, batch, sampler.batch_size)
        invalid = 0 if ids is None else count_invalid(pool, state.span)

        def opened(inner: PyTree) -> tuple[Draw, PyTree]:
            return sampler.sample(key, inner, pool, batch, params)

        def closed(inner: PyTree) -> tuple[Draw, PyTree]:
            draw = uniform_draw(key, inner, pool, sampler.batch_size, invalid)
            return draw, advanced(inner)

        is_open = jnp.asarray(condition.is_open(state.condition, state.step), bool)
        draw, inner = jax.lax.cond(is_open, opened, closed, state.inner)
        return draw, GateState(inner, state.condition, is_open)

    def update(state: GateState, draw: Draw, losses: Array, batch: Batch = None) -> GateState:
        refuse_wrong_update(state, draw, losses)
        inner = sampler.update(state.inner, draw, losses, batch)
        usable = jnp.isfinite(losses)
        share = jnp.where(usable, 1 / draw.draw_probs, 0.0)
        share = share / jnp.maximum(jnp.sum(share), 1.0)
        losses = jnp.where(usable, jnp.maximum(losses, 0.0), 0.0).astype(jnp.float32)
        updated = condition.update(state.condition, losses, share)
        known = jax.tree.map(
            lambda new, old: jnp.where(jnp.any(usable), new, old), updated, state.condition
        )
        return GateState(inner, known, state.is_open)

    def reweigh(state: GateState, draw: Draw, losses: Array) -> Array:
        weights = sampler.weigh(state.inner, draw, losses)
        return jnp.where(state.is_open, weights, draw.weights)

    return Sampler(init, sample, update, sampler.batch_size, reweigh)


def uniform_draw(
    key: Array, state: PyTree, pool: Array, batch_size: int, invalid_ids: Array | int
) -> Draw:
    """Draws b of the pool [B] uniformly, of weight and score one."""
    pool_size = pool.shape[0]
    key = jax.random.fold_in(key, state.step)
    probs = jnp.full((pool_size,), 1 / pool_size, jnp.float32)
    index, draw_probs = resampling.systematic(key, probs, batch_size)
    return make_draw(
        state,
        pool[index],
        index,
        draw_probs,
        scores=jnp.ones((batch_size,), jnp.float32),
        pool_size=pool_size,
        k=0.0,  # so that weights are one exactly
        ess=1.0,
        mass=1.0,
        invalid_ids=invalid_ids,
    )


def advanced(state: PyTree) -> PyTree:
    """The state after one more draw, all else as it was."""
    if hasattr(state, "inner"):
        return state._replace(inner=advanced(state.inner))
    return state._replace(step=state.step + 1)


def break_even(pool_size: int, batch_size: int) -> float:
    """(B + 3b) / (3b): the tau from which scoring a pool of B by forward passes pays.

    A backward pass counts as two forward passes (arXiv 1803.00942).
    """
    return (pool_size + 3 * batch_size) / (3 * batch_size)
