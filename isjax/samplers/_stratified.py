"""`stratified`: a draw of its own from each of S equal parts of the data set.

On a mesh each device then draws from the examples that it holds, and nothing but one number a part
passes between devices; on one device the same draws follow from the same seed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import resampling
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
from isjax.samplers._importance import refuse_ids, require_pool
from isjax.samplers.sum_tree import Tree, first

__all__ = ["stratified"]


class StrataState(NamedTuple):
    """The part of `stratified` in `SamplerState.transform`.

    Attributes:
        inner: the transform states of the parts, with a leading axis S.
        sizes: [S] int32, the examples of each part.
    """

    inner: PyTree
    sizes: Array

    def leading_axes(self) -> PyTree:
        """A row for each part; see `base.leading_axes`."""
        return StrataState(jax.tree.map(lambda x: "strata", self.inner), "whole")


def stratified(sampler: Sampler, strata: int, pool_size: int | None = None) -> Sampler:
    """Draws b / S examples from each of S equal stretches of the data set.

    With s_i what a draw is proportional to, m the mean of it over a part and M over all parts, an
    example drawn with weight (m / s_i)^k of its part gets (m / M)^(1 - k) times that, by which the
    expected gradient is that of a draw from the whole, for every k; and at k = 1 it is unbiased.
    Parts that differ in size, N not being a multiple of S, are weighed by their sizes.

    That is with s_i as its part has it. What is taken relative to a pool, such as smoothing by the
    mean score, ranks, or `mix_uniform`, by which m is the same everywhere, is taken relative to the
    part: at k < 1 this follows the whole as closely as parts are alike. Shuffled, they are.

    The scorer is common to all parts: it becomes the mean of those that each has updated. What
    else a sampler keeps, such as moving averages of scores, each part has for itself.

    Args:
        sampler: of batches of b / S, which weighs a draw when it makes it.
        strata: S.
        pool_size: B / S, of the presample in each part; None = the sampler has a pool of its own.

    Returns:
        A `Sampler` with a pool of its own. Arrays by example have S ceil(N / S) rows, those of the
        last part perhaps beyond N: `padding.pad(data, S)` is the data set that it takes.

    Raises:
        ValueError: here if S < 1, if a pool is given to a sampler that has one or is lacking for
            one that has none, or if the sampler is gated or weighs by losses; at `init` if a part
            is smaller than its pool, or parts differ in size and the sampler cannot tell it.
    """
    if strata < 1:
        raise ValueError(f"stratified: strata is {strata}; draw from 1 part or more")
    require_pool(sampler, pool_size, "stratified")
    if sampler.weigh is not drawn_weights:
        raise ValueError(
            "stratified: this sampler switches, or weighs by the losses of a whole batch: put that "
            "outside, as in reweight(stratified(...), policy), or draw from the whole"
        )

    def init(key: Array, num_examples: int) -> SamplerState:
        rows = -(-num_examples // strata)
        last = num_examples - (strata - 1) * rows
        if last < (pool_size or 1):
            raise ValueError(
                f"stratified: {strata} parts of {num_examples} examples leave {max(last, 0)} to "
                f"the last, fewer than its pool of {pool_size or 1}; choose fewer strata"
            )
        state = sampler.init(key, rows)
        if last < rows and sampler.own_pool and not _trees(state.transform):
            raise ValueError(
                f"stratified: {num_examples} examples are not a multiple of {strata}, and this "
                "sampler needs parts of one size; leave some out, or choose other strata"
            )
        full, short = state.transform, _first(state.transform, last)
        stack = lambda x, y: jnp.stack([x] * (strata - 1) + [y])  # noqa: E731
        sizes = jnp.full((strata,), rows, jnp.int32).at[-1].set(last)
        return state._replace(
            buffer=jax.tree.map(lambda x: jnp.concatenate([x] * strata), state.buffer),
            transform=StrataState(jax.tree.map(stack, full, short), sizes),
        )

    def parts(tree: PyTree) -> PyTree:
        """[S n, ...] -> [S, n, ...]."""
        return jax.tree.map(lambda x: x.reshape(strata, -1, *x.shape[1:]), tree)

    def whole(tree: PyTree) -> PyTree:
        """[S, n, ...] -> [S n, ...]."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def starts(sizes: Array) -> Array:
        """The id of the first example of each part, [S]."""
        return jnp.arange(strata, dtype=jnp.int32) * sizes[0]

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        refuse_ids(ids, "stratified draws choose by themselves where to look")

        def of_part(key, buffer, transform, start, size, data):
            part = SamplerState(state.step, buffer, state.scorer, transform, start)
            ids, pool = None, data
            if pool_size is not None:
                pool_key, key = jax.random.split(key)
                ids = resampling.presample(pool_key, size, pool_size)
                pool = take(data, ids)
            draw, part = sampler.sample(key, part, ids, pool, params)
            return draw, part.transform

        inner, sizes = state.transform
        keys, start = jax.random.split(key, strata), starts(sizes)
        draws, inner = jax.vmap(of_part)(
            keys, parts(state.buffer), inner, start, sizes, parts(batch)
        )
        state = state._replace(step=state.step + 1, transform=StrataState(inner, sizes))
        return _merge(draws, start, sizes), state

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        def of_part(buffer, transform, start, ids, losses, batch):
            part = SamplerState(state.step, buffer, state.scorer, transform, start)
            part = sampler.update(part, draw._replace(ids=ids - start), losses, batch)
            return part.buffer, part.transform, part.scorer

        inner, sizes = state.transform
        ids, losses, batch = parts((draw.ids, losses, batch))
        buffer, inner, scorers = jax.vmap(of_part)(
            parts(state.buffer), inner, starts(sizes), ids, losses, batch
        )
        return state._replace(
            buffer=whole(buffer),
            transform=StrataState(inner, sizes),
            scorer=jax.tree.map(_mean, scorers),
        )

    def take_parts(data: Batch, ids: Array) -> Batch:
        """What `take` gives, each part from its own."""

        def of_part(part: Batch, ids: Array) -> Batch:
            return jax.tree.map(lambda x: x[ids % x.shape[0]], part)

        return whole(jax.vmap(of_part)(parts(data), parts(ids)))

    return sampler._replace(init=init, sample=sample, update=update, own_pool=True, take=take_parts)


def _merge(draws: Draw, start: Array, sizes: Array) -> Draw:
    """The draws of S parts, [S, b / S], as one of the whole, [b]."""
    strata = sizes.shape[0]
    pools, power = jnp.asarray(draws.pool_size), jnp.asarray(draws.k)
    share = (sizes * strata / jnp.sum(sizes)).astype(jnp.float32)  # of the data set, over 1 / S
    mass = jnp.mean(share * draws.mass)
    relative = jnp.where(mass > 0, draws.mass / jnp.where(mass > 0, mass, 1.0), 1.0)
    factor = share * jnp.power(relative, 1.0 - power)
    square = jnp.mean(share * jnp.square(relative) / draws.ess)
    # So that 1 / (B p) is the unbiased weight, B being the parts' pools together.
    pool_size = jnp.sum(pools, dtype=jnp.int32)
    probs = pools / (pool_size * share)
    place = jnp.arange(strata, dtype=jnp.int32) * pools[0]
    return Draw(
        ids=(draws.ids + start[:, None]).reshape(-1),
        index=(draws.index + place[:, None]).reshape(-1),
        weights=(draws.weights * factor[:, None]).reshape(-1),
        draw_probs=(draws.draw_probs * probs[:, None]).reshape(-1),
        scores=draws.scores.reshape(-1),
        ess=1.0 / square,
        nonfinite=jnp.sum(jnp.asarray(draws.nonfinite), dtype=jnp.int32),
        pool_size=pool_size,
        passes=jnp.sum(jnp.asarray(draws.passes)),
        mass=mass,
        k=power[0],
    )


def _first(state: PyTree, size: int) -> PyTree:
    """A sampler's transform state, of the first `size` examples alone."""
    return jax.tree.map(lambda x: first(x, size) if _is_tree(x) else x, state, is_leaf=_is_tree)


def _trees(state: PyTree) -> list[Tree]:
    """Those of a sampler's transform state; each knows how many examples there are."""
    return list(filter(_is_tree, jax.tree.leaves(state, is_leaf=_is_tree)))


def _is_tree(part: PyTree) -> bool:
    return isinstance(part, Tree)


def _mean(parts: Array) -> Array:
    """Of what is real in a scorer's state; counters are alike in all parts."""
    inexact = jnp.issubdtype(parts.dtype, jnp.inexact)
    return jnp.mean(parts, axis=0, dtype=parts.dtype) if inexact else parts[0]
