"""`importance_sampler`: scorer, transform, resampler and weights composed into one `Sampler`.

The file also has what all samplers share: a memory (buffer and scorer) and `make_draw`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isjax import buffer, resampling, transforms
from isjax._numerics.leading_axis import keeps_examples
from isjax.base import (
    Array,
    Batch,
    Draw,
    DrawInfo,
    FlatRows,
    Params,
    PyTree,
    Resampler,
    Rows,
    Sampler,
    ScalarOrSchedule,
    Scorer,
    ScoreTransform,
    Span,
    take,
)
from isjax.buffer import ScoreBuffer
from isjax.distributions import effective_sample_size, mean_mass, normalize
from isjax.gradients import check_losses, shapes_of
from isjax.samplers._refusals import (
    refuse_wrong_sample,
    refuse_wrong_update,
    require_batch_size,
    require_initial_loss,
    require_kind,
    wrong_shape,
)
from isjax.weights import exponent_schedule, importance_weights

__all__ = ["SamplerState", "importance_sampler", "make_draw"]


class SamplerState(NamedTuple):
    """State of `importance_sampler`. Arrays only: donated, sharded and checkpointed whole.

    Attributes:
        step: [] int32 draws so far.
        span: the examples that it is of.
        buffer: `isjax.buffer.ScoreBuffer`.
        scorer: the scorer's state.
        transform: the transform's state.
    """

    step: Array
    span: Span
    buffer: PyTree
    scorer: PyTree
    transform: PyTree


def importance_sampler(
    scorer: Scorer,
    transform: ScoreTransform = transforms.identity(),  # noqa: B008 (an immutable pair)
    *,
    batch_size: int,
    k: ScalarOrSchedule = 1.0,
    resample: Resampler = resampling.systematic,
    initial_loss: float = 1.0,
    rescale: Callable[[Draw], Array] | None = None,
) -> Sampler:
    """Biased importance sampling (arXiv 1706.00043).

    Args:
        scorer: says how important an example is; see `isjax.scorers`.
        transform: reshapes the scores; see `isjax.transforms`.
        batch_size: b, the examples drawn.
        k: exponent of the weights (1 / (B p))^k, a number or a schedule of the sampler's step, of
            which values above 1 count as 1. 1 corrects fully and 0 is no correction; smaller
            prefers harder examples.
        resample: see `isjax.resampling`.
        initial_loss: loss assumed for an example never seen; the logarithm of the number of
            classes suits classification.
        rescale: `(draw) -> weights`, of the draw as weighted by k: `weights.preserve_mean_score`,
            `weights.divide_by_largest`, or one's own; None = they stay.

    Returns:
        A `Sampler`. Its `sample` takes the pool's `ids` [B]. Without ids the pool is the whole
        data set or, for a scorer that needs no history, the examples of `batch`, of which `ids`
        are then the positions. `batch` (the pool's examples) and `params` are passed on to the
        scorer, which may need them; `update` takes the `batch` that was trained on, and what is
        learned takes effect with the next draw.

    `draw.info.invalid_ids` counts ids of the pool beyond the data set: JAX reads the last row for
    them, and writes nothing. Randomness comes from `key` and the state's step, so that a key may be
    used again.

    Raises:
        TypeError: if `scorer` or `transform` is not one, but perhaps the function that makes it, or
            the ids are not integers.
        ValueError: here if `batch_size` < 1, k > 1 (of a schedule, its first value), or
            `initial_loss` is not finite; when traced, if the pool is smaller than the batch, the
            scorer lacks its input, or scores or losses are not one for each example.
    """
    require_kind(scorer, Scorer, "scorer")
    require_kind(transform, ScoreTransform, "transform")
    require_batch_size(batch_size)
    require_initial_loss(initial_loss)
    k_of_step = exponent_schedule(k)

    def init(key: Array, num_examples: int) -> SamplerState:
        memory = new_memory(scorer, key, num_examples, initial_loss)
        return SamplerState(**memory, transform=transform.init())

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        refuse_wrong_sample(key, state)
        is_given = ids is not None
        ids, batch = pool_of(state, ids, batch, batch_size)
        scores, finite, drawable = score(scorer, state, ids, batch, params)
        transformed, transform_state = transform.update(scores, state.transform)
        if jnp.shape(transformed) != ids.shape:
            raise wrong_shape("the transform", transformed, ids.shape)
        # A transform that prefers low scores must not prefer these: they count as the pool's least.
        least = jnp.min(jnp.where(drawable, transformed, jnp.inf))
        transformed = jnp.where(drawable, transformed, jnp.minimum(transformed, least))
        transformed = jnp.where(finite, transformed, 0.0)
        probs = normalize(transformed)
        ess, mass = effective_sample_size(probs) / probs.shape[0], mean_mass(transformed)
        key = jax.random.fold_in(key, state.step)
        index, draw_probs = resample(key, probs, batch_size)
        for drawn in (index, draw_probs):
            if jnp.shape(drawn) != (batch_size,):
                raise wrong_shape("the resampler", drawn, (batch_size,))
        transform_state = if_finite(transform_state, state.transform)
        draw = make_draw(
            state,
            ids[index],
            index,
            draw_probs,
            scores=scores[index],
            pool_size=probs.shape[0],
            k=k_of_step,
            ess=ess,
            mass=mass,
            nonfinite=jnp.sum(~finite, dtype=jnp.int32),
            passes=probs.shape[0] * scorer.passes,
            invalid_ids=count_invalid(ids, state.span) if is_given else 0,
        )
        if rescale is not None:
            draw = draw._replace(weights=rescale(draw))
        return draw, state._replace(step=state.step + 1, transform=transform_state)

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        refuse_wrong_update(state, draw, losses)
        return observe(scorer, state, draw.ids, losses, batch)

    return Sampler(init, sample, update, batch_size)


def make_draw(
    state: PyTree,
    ids: Array,
    index: Array,
    draw_probs: Array,
    *,
    scores: Array,
    pool_size: Array | int,
    k: ScalarOrSchedule,
    ess: Array | float,
    mass: Array | float,
    nonfinite: Array | int = 0,
    passes: Array | float = 0.0,
    invalid_ids: Array | int = 0,
) -> Draw:
    """Makes a draw of b examples, weighted by (1 / (B p))^k.

    Make every draw of a sampler of your own with it: `gate` needs draws of one structure and type.

    Args:
        state: of the sampler. Where it holds a `ScoreBuffer` called `buffer`, the draw gets the
            losses last observed.
        ids: [b] int32 into the data set.
        index: [b] int32 into the pool.
        draw_probs: [b] float32, as a resampler returns them.
        scores: [b] float32 before transforms.
        pool_size: B.
        k: exponent of the weights, at most 1: a number, or a schedule of the state's step.
        ess: effective sample size of the pool, as a share of B.
        mass: mean unnormalised score of the pool; 0 if the draw fell back to uniform.
        nonfinite: scores of the pool that were NaN or infinite.
        passes: forward passes of the main model that scoring took.
        invalid_ids: ids of the pool that are of no example.
    """
    losses = buffer_of(state).losses
    newest = ids if losses is None or losses.ndim == 1 else (ids, 0)
    last_loss = None if losses is None else losses[newest]
    exponent = jnp.asarray(k(state.step) if callable(k) else k, jnp.float32)
    info = DrawInfo(
        pool_size=jnp.asarray(pool_size, jnp.int32),
        ess=jnp.asarray(ess, jnp.float32),
        nonfinite=jnp.asarray(nonfinite, jnp.int32),
        passes=jnp.asarray(passes, jnp.float32),
        mass=jnp.asarray(mass, jnp.float32),
        k=exponent,
        invalid_ids=jnp.asarray(invalid_ids, jnp.int32),
    )
    weights = importance_weights(draw_probs, pool_size, exponent)
    return Draw(
        ids=ids.astype(jnp.int32),
        index=index.astype(jnp.int32),
        weights=weights,
        draw_probs=draw_probs.astype(jnp.float32),
        scores=scores.astype(jnp.float32),
        last_loss=last_loss,
        info=info,
    )


# Properties of the state of a wrapper, which holds the state of the wrapped sampler as `inner`.
step_of_inner = property(lambda state: state.inner.step, doc="[] int32 draws so far.")
span_of_inner = property(lambda state: state.inner.span, doc="The examples that the state is of.")


# The memory of a sampler: the fields `step`, `span`, `buffer` and `scorer` of its state.


def new_memory(scorer: Scorer, key: Array, num_examples: int, initial_loss: float) -> dict:
    """The four fields, before anything was drawn."""
    keeps_losses = scorer.remember is None
    return {
        "step": jnp.zeros((), jnp.int32),
        "span": Span.of(num_examples),
        "buffer": buffer.init(
            num_examples, scorer.history, initial_loss, keeps_losses=keeps_losses
        ),
        "scorer": scorer.init(key),
    }


def buffer_of(state: PyTree) -> ScoreBuffer:
    """The buffer of a state, or of the state inside wrappers; an empty one if there is none."""
    while hasattr(state, "inner"):
        state = state.inner
    found = getattr(state, "buffer", None)
    return found if isinstance(found, ScoreBuffer) else ScoreBuffer()


def rows_of(state: Any, ids: Array, batch: Batch, params: Params = None) -> Rows:
    """Returns the rows of the examples `ids` [B], of which `batch` holds the data."""
    with jax.named_scope("buffer"):
        history, count = buffer.read(state.buffer, ids)
        age = buffer.age(state.buffer, ids, state.step)
    return Rows(history, count, batch, params, ids + state.span.first, age)


def score(
    scorer: Scorer, state: Any, ids: Array, batch: Batch, params: Params = None
) -> tuple[Array, Array, Array]:
    """Scores a pool.

    Returns:
        Scores [B] float32, zero where the example may not be drawn by its score; whether each was
        finite, [B] bool; and whether the example may be drawn, [B] bool. An example whose last loss
        was not finite may not: otherwise such examples are drawn more often as other losses fall.

    Raises:
        ValueError: if the scorer does not return one score for each example.
    """
    rows = rows_of(state, ids, batch, params)
    failed = buffer.has_failed(state.buffer, ids)
    with jax.named_scope("score"):
        # The gradient of a step is that of the loss, not of the choice.
        scores = jax.lax.stop_gradient(scorer.score(state.scorer, rows))
    if jnp.shape(scores) != ids.shape:
        raise wrong_shape("the scorer", scores, ids.shape)
    finite = jnp.isfinite(scores)
    drawable = finite & ~failed
    return jnp.where(drawable, scores, 0.0).astype(jnp.float32), finite, drawable


def observe(scorer: Scorer, state: Any, ids: Array, losses: Array, batch: Batch) -> Any:
    """Lets scorer and buffer learn the losses [b] of the examples `ids`, whose data is `batch`."""
    if getattr(losses, "shape", None) != ids.shape:
        check_losses(losses, ids.shape[0])
    losses = losses.astype(jnp.float32)
    # JAX writes nothing beyond the last row, but -1 would be the last row itself.
    ids = jnp.where(is_invalid(ids, state.span), jnp.iinfo(jnp.int32).max, ids)
    # The scorer learns from what was known when the batch was drawn, before these losses.
    rows = rows_of(state._replace(step=jnp.maximum(state.step - 1, 0)), ids, batch)
    remember = scorer.remember or buffer.shift
    written = buffer.write(state.buffer, ids, losses, state.step, remember)
    with jax.named_scope("learn"):
        learned = if_finite(scorer.update(state.scorer, rows, losses), state.scorer)
    return state._replace(scorer=learned, buffer=written)


def if_finite(new: PyTree, old: PyTree) -> PyTree:
    """The new state if all of it is finite, else the old one."""

    def finite(x: Array) -> Array | bool:
        return jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else True

    sound = jax.tree.reduce(jnp.logical_and, jax.tree.map(finite, new), True)
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, old)


def pool_of(state: PyTree, ids: Array | None, batch: Batch, batch_size: int) -> tuple[Array, Batch]:
    """The ids of the pool [B], and its examples.

    Without ids the pool is the whole data set or, where nothing is remembered, `batch`.
    """
    if ids is not None:
        ids = require_ids(ids)
    else:
        leaves, span = jax.tree.leaves(batch), state.span
        rows = leaves[0].shape[0] if leaves else 0
        stream = rows not in (0, span.rows) and not keeps_examples(state)
        if not stream:
            require_whole(batch, span, "importance_sampler")
        ids = jnp.arange(rows if stream else span.size, dtype=jnp.int32)
        batch = take(batch, ids) if rows > ids.shape[0] else batch  # padded for devices
    if ids.shape[0] < batch_size:
        raise ValueError(
            f"a pool of {ids.shape[0]} is smaller than the batch of {batch_size}; "
            "enlarge the pool or shrink the batch"
        )
    flat = lambda x: isinstance(x, FlatRows)  # noqa: E731
    return ids, jax.tree.map(lambda x: x[:] if flat(x) else x, batch, is_leaf=flat)


def is_invalid(ids: Array, span: Span) -> Array:
    """Whether ids are of no example. [n] -> [n] bool."""
    return (ids < 0) | (ids >= span.size)


def count_invalid(ids: Array, span: Span) -> Array:
    """Counts the ids of a pool that are of no example. [B] -> [] int32."""
    return jnp.sum(is_invalid(ids, span), dtype=jnp.int32)


def require_ids(ids: Any) -> Array:
    """Refuses ids that are not integers [B], such as a mask or the examples; returns the others."""
    if isinstance(ids, list | range):
        ids = np.asarray(ids)
    integers = hasattr(ids, "dtype") and jnp.issubdtype(ids.dtype, jnp.integer)
    if not integers or ids.ndim != 1:
        raise TypeError(
            f"ids are {shapes_of(ids)}; pass the numbers of the examples in the data set, integers "
            "[B] such as those of presample or jnp.flatnonzero(mask), and the examples themselves, "
            "if the scorer needs them, as batch="
        )
    return jnp.asarray(ids)


def require_whole(batch: Batch, span: Span, name: str) -> None:
    """Refuses a batch without ids that is not the whole data set; `name` is for the message.

    It may be padded to `span.rows`, see `isjax.parallel.padding`.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if not (sizes <= {span.size} or sizes <= {span.rows}):
        raise ValueError(
            f"{name}: got a batch of {', '.join(map(str, sorted(sizes)))} examples and no ids, but "
            f"remembers the {span.size} examples of a data set by their ids; pass all of the data, "
            "or none, or the ids of the batch. For a stream, take a recipe that remembers nothing "
            "by id, such as biased_loss or proxy_loss"
        )


def refuse_ids(ids: Array | None, subject: str) -> None:
    """Refuses a pool from outside; `subject` says which sampler chooses, and where."""
    if ids is not None:
        require_ids(ids)
        raise ValueError(f"{subject}; pass no ids, no pool_size")
