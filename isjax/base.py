"""Types and contracts of the funnel that narrows a pool of examples to one weighted batch.

    ids [B] -> rows -> scores [B] -> probs [B] -> (index, draw_probs) [b] -> weights [b]
            -> losses [b], gradient -> buffer, scorer

`N` examples in the data set, `B` in the pool (the presample), `b` in the batch, `H` past losses
kept per example. Only the buffer knows `N`; a scorer sees only rows, a transform only scores, a
resampler only probabilities.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array
PyTree = Any
Batch = Any  # pytree of arrays with a common leading axis
Params = Any
Schedule = Callable[[Array], Any]  # optax's: of a step, a number
ScalarOrSchedule = float | Schedule
Resampler = Callable[[Array, Array, int], tuple[Array, Array]]


class Rows(NamedTuple):
    """All that a scorer may see of `B` examples.

    Attributes:
        history: [B, H] float32 past losses, newest first, or what else the scorer remembers; those
            not yet observed hold the sampler's `initial_loss`.
        count: [B] int32 times observed; 0 = never seen.
        batch: pytree with leading axis B, if the caller loaded the examples.
        params: whatever the scorer's function takes.
        ids: [B] int32 into the data set.
        age: [B] int32 draws since last observed, 1 = by the last draw; if never, since the start.
    """

    history: Array
    count: Array
    batch: Batch = None
    params: Params = None
    ids: Array | None = None
    age: Array | None = None


class Scorer(NamedTuple):
    """Says how important each example is.

    Attributes:
        init: `(key) -> state`.
        score: `(state, rows) -> scores`, [B] float32. What is negative after the transforms is not
            drawn, nor what is not finite.
        update: `(state, rows, losses) -> state`, given the rows of a batch as they were before its
            losses, [b] float32, were written back. Losses may be NaN or infinite; a new state that
            is not finite is not taken.
        history: `H`, how many numbers it reads of each example; 0 = it needs no buffer.
        remember: `(history [b, H], count [b], losses [b]) -> history`, what becomes of an example's
            numbers when a loss is observed; None = they are its last H losses, newest first.
        passes: forward passes of the main model that scoring an example takes, a backward pass
            counting as two, and a cheap view of the model as its share: 0.25 at half resolution.
    """

    init: Callable[[Array], PyTree]
    score: Callable[[PyTree, Rows], Array]
    update: Callable[[PyTree, Rows, Array], PyTree]
    history: int = 1
    remember: Callable[[Array, Array, Array], Array] | None = None
    passes: float = 0.0


class ScoreTransform(NamedTuple):
    """Optax's shape, on scores instead of gradients.

    Attributes:
        init: `() -> state`.
        update: `(scores, state) -> (scores, state)`, scores [B] float32.
    """

    init: Callable[[], PyTree]
    update: Callable[[Array, PyTree], tuple[Array, PyTree]]


class Draw(NamedTuple):
    """One batch of `b` examples drawn from a pool of `B`.

    Attributes:
        ids: [b] int32 into the data set.
        index: [b] int32 into the pool.
        weights: [b] float32 for the gradient.
        draw_probs: [b] float32 probability per draw: `1 / (B * draw_probs)` is the unbiased weight.
        scores: [b] float32 before transforms: what the scorer predicted.
        ess: [] float32 effective sample size of the pool, as a share of B.
        nonfinite: [] int32 scores of the pool that were NaN or infinite: examples not drawn.
        pool_size: [] int32 B.
        passes: [] float32 forward passes of the main model that the choice took, counted as
            `Scorer.passes` are: B times those of an example.
        mass: [] float32, the pool's mean of what the draw is proportional to; 0 = it was uniform
            for want of any.
        k: [] float32, the exponent of the weights.
    """

    ids: Array
    index: Array
    weights: Array
    draw_probs: Array
    scores: Array
    ess: Array
    nonfinite: Array | int = 0
    pool_size: Array | int = 0
    passes: Array | float = 0.0
    mass: Array | float = 1.0
    k: Array | float = 1.0


class SamplerState(NamedTuple):
    """Arrays only: donated, sharded and checkpointed whole.

    Attributes:
        step: [] int32 draws so far.
        buffer: `isjax.buffer.ScoreBuffer`.
        scorer: the scorer's state.
        transform: the transform's state.
        first: [] int32, the id of the first example, where the state is of a part of the data set;
            None = of the whole.
    """

    step: Array
    buffer: PyTree
    scorer: PyTree
    transform: PyTree
    first: Array | None = None


def drawn_weights(state: SamplerState, draw: Draw, losses: Array) -> Array:
    """Those of the draw, whatever the losses. -> [b]."""
    del state, losses
    return draw.weights


def take(data: Batch, ids: ArrayLike) -> Batch:
    """The examples `ids` [b] of a data set, a pytree of arrays with leading axis N."""
    return jax.tree.map(lambda x: x[ids], data)


def num_examples(data: Batch) -> int:
    """N, the length that the leading axes of all arrays in `data` share.

    Raises:
        ValueError: if there is no array, no example, or no common length.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(data)
    shapes = {jax.tree_util.keystr(path) or "data": jnp.shape(leaf) for path, leaf in leaves}
    sizes = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(sizes) != 1 or 0 in sizes:
        listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items()) or "no arrays"
        raise ValueError(
            "a data set needs arrays with one common, non-empty leading axis, an example each; "
            f"got {listed}"
        )
    return sizes.pop()


def leading_axes(state: PyTree) -> PyTree:
    """What the leading axis of each array of a state counts: a tree of strings.

    A type says so by a method `leading_axes(self)`, which returns a tree like itself of "examples"
    (a row for each of N, padded for devices), "strata" (a row for each of S parts) or "whole". All
    other arrays are "whole".
    """
    says = lambda part: hasattr(part, "leading_axes")  # noqa: E731
    return jax.tree.map(
        lambda part: part.leading_axes() if says(part) else "whole", state, is_leaf=says
    )


class Sampler(NamedTuple):
    """Chooses what to train on next, and learns from the losses it then sees.

    Attributes:
        init: `(key, num_examples) -> SamplerState`.
        sample: `(key, state, ids=None, batch=None, params=None) -> (Draw, state)`. `batch` holds
            the examples `ids` or, without ids, those of the whole data set.
        update: `(state, draw, losses, batch=None) -> state`.
        weigh: `(state, draw, losses) -> weights`, [b] float32, for the gradient: `draw.weights`,
            unless they depend on the losses of the batch.
        own_pool: whether it chooses by itself where to look, so that no `ids` are passed.
        keeps_losses: whether what it remembers of an example begins with the loss last observed.
        take: `(data, ids [b]) -> batch`, how what was drawn is gathered from the data set.
    """

    init: Callable[[Array, int], SamplerState]
    sample: Callable[..., tuple[Draw, SamplerState]]
    update: Callable[..., SamplerState]
    weigh: Callable[[SamplerState, Draw, Array], Array] = drawn_weights
    own_pool: bool = False
    keeps_losses: bool = False
    take: Callable[[Batch, Array], Batch] = take
