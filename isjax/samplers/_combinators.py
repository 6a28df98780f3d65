"""Samplers made of samplers: when to sample, where to look, how to weigh."""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import conditions, resampling
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    PyTree,
    Sampler,
    SamplerState,
    drawn_weights,
    take,
)
from isjax.conditions import Condition
from isjax.samplers._importance import everything, refuse_ids, require_whole
from isjax.weights import Policy

__all__ = ["break_even", "epochs", "gate", "reweight"]


class GateState(NamedTuple):
    """The gate's part of `SamplerState.transform`.

    Attributes:
        inner: the gated sampler's transform state.
        condition: the condition's state.
        is_open: [] bool, at the last draw.
    """

    inner: PyTree
    condition: PyTree
    is_open: Array


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

    def init(key: Array, num_examples: int) -> SamplerState:
        state = sampler.init(key, num_examples)
        closed = GateState(state.transform, condition.init(), jnp.zeros((), bool))
        return state._replace(transform=closed)

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        ids = everything(state, batch) if ids is None else ids
        inner, known, _ = state.transform

        def opened(state):
            return sampler.sample(key, state, ids, batch, params)

        is_open = condition.is_open(known, state.step)
        state = state._replace(transform=inner)
        drawn, _ = jax.eval_shape(opened, state)  # b, which the inner sampler alone knows

        def closed(state):
            pool_size = ids.shape[0]
            probs = jnp.full(ids.shape, 1 / pool_size, jnp.float32)
            index, draw_probs = resampling.systematic(key, probs, drawn.ids.shape[0])
            ones = jnp.ones(index.shape, jnp.float32)
            draw = Draw(
                ids=ids[index],
                index=index,
                weights=ones,
                draw_probs=draw_probs,
                scores=ones,
                ess=jnp.float32(1),
                nonfinite=jnp.int32(0),
                pool_size=jnp.int32(pool_size),
                passes=jnp.float32(0),
                mass=jnp.float32(1),
                k=jnp.float32(1),
            )
            return draw, state._replace(step=state.step + 1)

        draw, state = jax.lax.cond(is_open, opened, closed, state)
        return draw, state._replace(transform=GateState(state.transform, known, is_open))

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        inner, known, is_open = state.transform
        state = sampler.update(state._replace(transform=inner), draw, losses, batch)
        usable = jnp.isfinite(losses)
        share = jnp.where(usable, 1 / draw.draw_probs, 0.0)
        share = share / jnp.maximum(jnp.sum(share), 1.0)
        losses = jnp.where(usable, jnp.maximum(losses, 0.0), 0.0).astype(jnp.float32)
        updated = condition.update(known, losses, share)
        known = jax.tree.map(lambda new, old: jnp.where(jnp.any(usable), new, old), updated, known)
        return state._replace(transform=GateState(state.transform, known, is_open))

    def weigh(state: SamplerState, draw: Draw, losses: Array) -> Array:
        inner, _, is_open = state.transform
        weights = sampler.weigh(state._replace(transform=inner), draw, losses)
        return jnp.where(is_open, weights, draw.weights)

    return sampler._replace(init=init, sample=sample, update=update, weigh=weigh)


def break_even(pool_size: int, batch_size: int) -> float:
    """(B + 3b) / (3b): the tau from which scoring a pool of B by forward passes pays.

    A backward pass counts as two forward passes (arXiv 1803.00942).
    """
    return (pool_size + 3 * batch_size) / (3 * batch_size)


class EpochState(NamedTuple):
    """The part of `epochs` in `SamplerState.transform`.

    Attributes:
        inner: the sampler's transform state.
        order: [N] int32, the data set as shuffled for this epoch.
    """

    inner: PyTree
    order: Array


def epochs(sampler: Sampler, pool_size: int) -> Sampler:
    """The pool is the next stretch of a shuffled data set, so that all are looked at equally often.

    Each epoch has another order; what is left at its end, less than a pool, is not looked at. The
    order takes 4 bytes an example.

    Args:
        sampler: chooses from the pool.
        pool_size: B; with the batch size and a scorer that does not care, each example is trained
            on once an epoch.

    Raises:
        ValueError: here if `sampler` has a pool of its own or B < 1; at `init` if B exceeds the
            data set; at `sample` if ids are passed, or a batch that is not the whole data set.
    """
    if sampler.own_pool:
        raise ValueError("epochs: the sampler has a pool of its own already; pass one without")
    if pool_size < 1:
        raise ValueError(f"epochs: pool_size is {pool_size}; look at 1 example or more")

    def init(key: Array, num_examples: int) -> SamplerState:
        if num_examples < pool_size:
            raise ValueError(
                f"epochs: a pool of {pool_size} is more than the {num_examples} examples; "
                f"choose at most {num_examples}"
            )
        state = sampler.init(key, num_examples)
        order = jnp.arange(num_examples, dtype=jnp.int32)
        return state._replace(transform=EpochState(state.transform, order))

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        inner, order = state.transform
        require_whole(batch, order.shape[0], "epochs")
        refuse_ids(ids, "epochs choose by themselves where to look")
        shuffle_key, key = jax.random.split(key)
        number = state.step % (order.shape[0] // pool_size)
        order = jax.lax.cond(
            number == 0, lambda: jax.random.permutation(shuffle_key, order), lambda: order
        )
        ids = jax.lax.dynamic_slice(order, (number * pool_size,), (pool_size,))
        pool = take(batch, ids)
        draw, state = sampler.sample(key, state._replace(transform=inner), ids, pool, params)
        return draw, state._replace(transform=EpochState(state.transform, order))

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        inner, order = state.transform
        state = sampler.update(state._replace(transform=inner), draw, losses, batch)
        return state._replace(transform=EpochState(state.transform, order))

    def weigh(state: SamplerState, draw: Draw, losses: Array) -> Array:
        return sampler.weigh(state._replace(transform=state.transform.inner), draw, losses)

    weights = drawn_weights if sampler.weigh is drawn_weights else weigh
    return sampler._replace(init=init, sample=sample, update=update, weigh=weights, own_pool=True)


def reweight(sampler: Sampler, policy: Policy) -> Sampler:
    """Weighs by a policy that sees the losses of the batch; see `isjax.weights`.

    In a loop of one's own the weights are then `sampler.weigh(state, draw, losses)`, which
    `weighted_value_and_grad` takes as a function of the losses in place of an array.

    Raises:
        TypeError: if `policy` is not callable.
        ValueError: if the sampler weighs by the losses already, or is gated: a policy is for what
            a gate lets through, and uniform draws weigh one.
    """
    if not callable(policy):
        raise TypeError(
            f"reweight: policy is {policy!r}; pass what a function of isjax.weights returns, such "
            "as weights.correcting()"
        )
    if sampler.weigh is not drawn_weights:
        raise ValueError(
            "reweight: this sampler switches, or weighs by the losses already; put it inside, as "
            "in gate(reweight(...), condition), and once"
        )
    return sampler._replace(weigh=lambda state, draw, losses: policy(draw, losses))
