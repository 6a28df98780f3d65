"""`stratified`: a draw of its own from each of S equal parts of the data set.

On a mesh each device then draws from the examples that it holds, and nothing but one number a part
passes between devices; on one device the same draws follow from the same seed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax import resampling
from isjax._numerics.leading_axis import merge_parts, split, split_rows
from isjax.base import (
    Array,
    Batch,
    Draw,
    DrawInfo,
    Params,
    PyTree,
    Sampler,
    Span,
    require_integer,
    take,
)
from isjax.gradients import check_losses
from isjax.samplers._importance import refuse_ids
from isjax.samplers._refusals import (
    refuse_wrong_sample,
    refuse_wrong_update,
    require_pool,
    require_weights_of_the_draw,
)

__all__ = ["stratified"]


class StrataState(NamedTuple):
    """State of `stratified`.

    Attributes:
        inner: the states of the parts, each array with a leading axis S, but for the scorer's,
            which is common to all.
        span: the examples of all parts together.
    """

    inner: PyTree
    span: Span

    @property
    def step(self) -> Array:
        """[] int32 draws so far."""
        return self.inner.step[0]

    def extend(self, old: "StrataState", size: int) -> "StrataState":
        """Refuses; see `isjax._numerics.leading_axis.extend`."""
        raise ValueError("stratified: the parts of a larger data set hold other examples")

    def leading_axes(self) -> "StrataState":
        """A row for each part; see `isjax._numerics.leading_axis.leading_axes`."""
        rows = jax.tree.map(lambda x: "parts", self.inner)
        scorer = jax.tree.map(lambda x: "whole", _scorer(self.inner))
        return StrataState(_with_scorer(rows, scorer), jax.tree.map(lambda x: "whole", self.span))


def stratified(sampler: Sampler, strata: int, pool_size: int | None = None) -> Sampler:
    """Draws b / S examples from each of S equal stretches of the data set.

    Let s_i be the unnormalised score of an example, m its mean over a part and M its mean over all
    parts. A part weighs its draws by (m / s_i)^k; here they get (m / M)^(1 - k) times that weight.
    The expected gradient is then that of a draw from the whole, for every k, and unbiased at k = 1.
    If S does not divide N, parts are weighed by their sizes.

    Transforms that depend on the pool (mean smoothing, ranks, `mix_uniform`) are computed within
    each part. At k < 1 the result then equals a draw from the whole only if parts are alike:
    shuffle the data. All parts share one scorer, the mean of those that each part has updated. Each
    part has the rest of the state for itself, such as moving averages of scores.

    Args:
        sampler: draws batches of b / S; its weights do not depend on the losses.
        strata: S.
        pool_size: B / S, of the presample in each part; None = the sampler has a pool of its own.

    Returns:
        A `Sampler` with a pool of its own. It takes data of S ceil(N / S) rows, as
        `parallel.padding.pad(data, S)` makes them.

    Raises:
        ValueError: here if S < 1, if `pool_size` is given to a sampler with a pool of its own or
            missing for one without, or if the sampler is gated or weighs by losses; at `init` if a
            part is smaller than its pool, or if parts differ in size and the sampler cannot take
            such parts.
    """
    require_integer("stratified: strata", strata)
    if strata < 1:
        raise ValueError(f"stratified: strata is {strata}; draw from 1 part or more")
    require_pool(sampler, pool_size, "stratified")
    require_weights_of_the_draw(
        sampler,
        "stratified",
        "put that outside, as in reweight(stratified(...), policy), or draw from the whole",
    )

    def init(key: Array, num_examples: int) -> StrataState:
        span = Span.of(num_examples).pad(strata)
        rows = -(-num_examples // strata)
        last = num_examples - (strata - 1) * rows
        if last < (pool_size or 1):
            raise ValueError(
                f"stratified: {strata} parts of {num_examples} examples leave {max(last, 0)} to "
                f"the last, fewer than its pool of {pool_size or 1}; choose fewer strata"
            )
        whole = sampler.init(key, num_examples)
        if last < rows and sampler.own_pool and not _knows_its_parts(whole):
            raise ValueError(
                f"stratified: {num_examples} examples are not a multiple of {strata}, and this "
                "sampler needs parts of one size; leave some out, or choose other strata"
            )
        inner = split(whole, strata)
        return StrataState(_with_scorer(inner, _scorer(whole)), span)

    def sizes(state: StrataState) -> Array:
        """Examples of each part, [S] int32."""
        rows = state.inner.span.size
        return jnp.minimum(state.span.size - jnp.arange(strata, dtype=jnp.int32) * rows, rows)

    def starts(state: StrataState) -> Array:
        """Id of the first example of each part, [S] int32."""
        return jnp.arange(strata, dtype=jnp.int32) * state.inner.span.size

    def sample(
        key: Array,
        state: StrataState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, StrataState]:
        refuse_wrong_sample(key, state)
        refuse_ids(ids, "stratified draws choose by themselves where to look")

        def of_part(key, part, size, data):
            ids, pool = None, data
            if pool_size is not None:
                pool_key, key = jax.random.split(key)
                ids = resampling.presample(pool_key, size, pool_size)
                pool = take(data, ids)
            return sampler.sample(key, part, ids, pool, params)

        axes = _axes(state.inner)
        draws, inner = jax.vmap(of_part, in_axes=(0, axes, 0, 0))(
            jax.random.split(jax.random.fold_in(key, state.step), strata),
            state.inner,
            sizes(state),
            split_rows(batch, strata),
        )
        inner = _with_scorer(inner, _scorer(state.inner))  # a draw teaches a scorer nothing
        return _merge(draws, starts(state), sizes(state)), state._replace(inner=inner)

    def update(state: StrataState, draw: Draw, losses: Array, batch: Batch = None) -> StrataState:
        refuse_wrong_update(state, draw, losses)
        losses = check_losses(losses, draw.ids.shape[0])
        info = jax.tree.map(lambda x: jnp.broadcast_to(x, (strata,)), draw.info)
        rows = Draw(*split_rows(draw[:-1], strata), info=info)
        rows = rows._replace(ids=rows.ids - starts(state)[:, None])
        losses, batch = split_rows((losses, batch), strata)
        inner = jax.vmap(sampler.update, in_axes=(_axes(state.inner), 0, 0, 0))(
            state.inner, rows, losses, batch
        )
        scorer = jax.tree.map(_mean, _scorer(inner))
        return state._replace(inner=_with_scorer(inner, scorer))

    return Sampler(init, sample, update, sampler.batch_size * strata, own_pool=True, parts=strata)


def _merge(draws: Draw, start: Array, sizes: Array) -> Draw:
    """The draws of S parts, [S, b / S], as one of the whole, [b]."""
    strata, info = sizes.shape[0], draws.info
    number = sizes.astype(jnp.float32)
    share = number * strata / jnp.sum(number)  # of the data set, over 1 / S
    mass = jnp.mean(share * info.mass)
    relative = jnp.where(mass > 0, info.mass / jnp.where(mass > 0, mass, 1.0), 1.0)
    factor = share * jnp.power(relative, 1.0 - info.k)
    square = jnp.mean(share * jnp.square(relative) / info.ess)
    # So that 1 / (B p) is the unbiased weight, B being the parts' pools together.
    pool_size = jnp.sum(info.pool_size, dtype=jnp.int32)
    probs = info.pool_size.astype(jnp.float32) / (pool_size.astype(jnp.float32) * share)
    place = jnp.arange(strata, dtype=jnp.int32) * info.pool_size[0]
    merged = draws._replace(
        ids=draws.ids + start[:, None],
        index=draws.index + place[:, None],
        weights=draws.weights * factor[:, None],
        draw_probs=draws.draw_probs * probs[:, None],
    )
    info = DrawInfo(
        pool_size=pool_size,
        ess=1.0 / square,
        nonfinite=jnp.sum(info.nonfinite, dtype=jnp.int32),
        passes=jnp.sum(info.passes),
        mass=mass,
        k=info.k[0],
        invalid_ids=jnp.sum(info.invalid_ids, dtype=jnp.int32),
    )
    return Draw(*merge_parts(merged[:-1]), info=info)


def _scorer(state: PyTree) -> PyTree:
    """The field `scorer` of a state, or of the state inside wrappers; None if it has none."""
    return _scorer(state.inner) if hasattr(state, "inner") else getattr(state, "scorer", None)


def _with_scorer(state: PyTree, scorer: PyTree) -> PyTree:
    """The state with another scorer, if it has one."""
    if hasattr(state, "inner"):
        return state._replace(inner=_with_scorer(state.inner, scorer))
    return state._replace(scorer=scorer) if hasattr(state, "scorer") else state


def _axes(state: PyTree) -> PyTree:
    """`in_axes` for `jax.vmap`: the parts, but not the shared scorer."""
    over = jax.tree.map(lambda x: 0, state)
    return _with_scorer(over, jax.tree.map(lambda x: None, _scorer(state)))


def _knows_its_parts(state: PyTree) -> bool:
    """Whether one of its types can be cut into parts that differ in size."""
    cut = lambda part: hasattr(part, "split") and not isinstance(part, Span)  # noqa: E731
    return any(map(cut, jax.tree.leaves(state, is_leaf=cut)))


def _mean(parts: Array) -> Array:
    """Mean over the parts of what is real in a scorer's state; counters are alike in all."""
    inexact = jnp.issubdtype(parts.dtype, jnp.inexact)
    return jnp.mean(parts, axis=0, dtype=parts.dtype) if inexact else parts[0]
