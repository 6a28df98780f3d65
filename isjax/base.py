"""Types and contracts of the funnel that narrows a pool of examples to one weighted batch.

    ids [B] -> rows -> scores [B] -> probs [B] -> (index, draw_probs) [b] -> weights [b]
            -> losses [b], gradient -> buffer, scorer

`N` examples in the data set, `B` in the pool (the presample), `b` in the batch, `H` past losses
kept per example. Only the buffer knows `N`; a scorer sees only rows, a transform only scores, a
resampler only probabilities.
"""

import dataclasses
import functools
import math
import numbers
import reprlib
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

MAX_EXAMPLES = 2**31 - 1


class Rows(NamedTuple):
    """The inputs of a scorer, for `B` examples.

    Attributes:
        history: [B, H] float32 past losses, newest first, or other numbers that the scorer
            remembers. Entries not yet observed hold the sampler's `initial_loss`.
        count: [B] int32 times observed; 0 = never seen.
        batch: pytree with leading axis B, if the caller loaded the examples.
        params: whatever the scorer's function takes.
        ids: [B] int32 into the data set.
        age: [B] int32 draws since last observed: 1 = by the last draw. For an example never seen,
            draws since the start.
    """

    history: Array
    count: Array
    batch: Batch = None
    params: Params = None
    ids: Array | None = None
    age: Array | None = None


class Scorer(NamedTuple):
    """Scores how important each example is.

    Attributes:
        init: `(key) -> state`.
        score: `(state, rows) -> scores`, [B] float32. Scores that are negative after the
            transforms, or not finite, get probability zero (in `tree_sampler`: count as zero).
        update: `(state, rows, losses) -> state`. `rows` are those of the batch as read before its
            losses, [b] float32, are written back. Losses may be NaN or infinite. A new state that
            is not finite is discarded.
        history: `H`, numbers read per example; 0 = the scorer needs no buffer.
        remember: `(history [b, H], count [b], losses [b]) -> history`, the update of an example's
            numbers when its loss is observed; None = keep the last H losses, newest first.
        passes: forward passes of the main model per scored example. A backward pass counts as two;
            a cheap view of the model as its share, such as 0.25 at half resolution.
        by_id: whether the score depends on `rows.ids`, so that scores differ before any loss was
            observed. `tree_sampler` then scores all examples at the start.
    """

    init: Callable[[Array], PyTree]
    score: Callable[[PyTree, Rows], Array]
    update: Callable[[PyTree, Rows, Array], PyTree]
    history: int = 1
    remember: Callable[[Array, Array, Array], Array] | None = None
    passes: float = 0.0
    by_id: bool = False


class ScoreTransform(NamedTuple):
    """Reshapes scores, with optax's interface: scores take the place of gradients.

    Attributes:
        init: `() -> state`.
        update: `(scores, state) -> (scores, state)`, scores [B] float32.
    """

    init: Callable[[], PyTree]
    update: Callable[[Array, PyTree], tuple[Array, PyTree]]


class DrawInfo(NamedTuple):
    """Scalars that describe a draw.

    Attributes:
        pool_size: [] int32 B.
        ess: [] float32 effective sample size of the pool, as a share of B.
        nonfinite: [] int32 scores of the pool that were NaN or infinite. They count as zero; in
            `tree_sampler`, smoothing may still draw those examples.
        passes: [] float32 forward passes of the main model that scoring took: B times
            `Scorer.passes`.
        mass: [] float32 mean unnormalised score of the pool; 0 if the draw fell back to uniform.
        k: [] float32 exponent of the weights.
        invalid_ids: [] int32 ids of the pool that are of no example: JAX reads the last row for
            them, and writes nothing.
    """

    pool_size: Array
    ess: Array
    nonfinite: Array
    passes: Array
    mass: Array
    k: Array
    invalid_ids: Array


class Draw(NamedTuple):
    """One batch of `b` examples drawn from a pool of `B`.

    Attributes:
        ids: [b] int32 into the data set.
        index: [b] int32 into the pool.
        weights: [b] float32 for the gradient.
        draw_probs: [b] float32 probability per draw: `1 / (B * draw_probs)` is the unbiased weight.
        scores: [b] float32 before transforms: the scorer's predictions.
        last_loss: [b] float32 losses last observed before this draw; None if the sampler keeps
            none.
        info: scalars that describe the draw.
    """

    ids: Array
    index: Array
    weights: Array
    draw_probs: Array
    scores: Array
    last_loss: Array | None
    info: DrawInfo

    @property
    def ess(self) -> Array:
        """Effective sample size of the pool, as a share of B: `info.ess`."""
        return self.info.ess

    @property
    def pool_size(self) -> Array:
        """Examples drawn from, B: `info.pool_size`."""
        return self.info.pool_size


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["first"], meta_fields=["size", "rows"]
)
@dataclasses.dataclass(frozen=True)
class Span:
    """The examples that a sampler's state keeps record of. `Span.of(N)` makes it.

    Attributes:
        first: [] int32 id of the first of them; above 0 in the state of a part of the data set.
        size: how many, known when a step is traced.
        rows: rows of the data: the examples and the padding.
    """

    first: Array
    size: int
    rows: int

    @classmethod
    def of(cls, num_examples: int) -> "Span":
        """The whole data set.

        Args:
            num_examples: N, at least 1.

        Raises:
            TypeError: if that is no integer.
            ValueError: if there are none, or more than int32 can number.
        """
        require_integer("num_examples", num_examples)
        if num_examples < 1:
            raise ValueError(f"the data set has {num_examples} examples; sampling needs at least 1")
        require_int32(num_examples)
        return cls(jnp.zeros((), jnp.int32), num_examples, num_examples)

    def pad(self, multiple: int) -> "Span":
        """The same examples, among more rows; see `isjax.parallel.padding`."""
        return dataclasses.replace(self, rows=self.rows + -self.rows % multiple)

    def extend(self, old: "Span", size: int) -> "Span":
        """This span; see `isjax._numerics.leading_axis.extend`."""
        del old, size
        return self

    def split(self, parts: int, size: int) -> "Span":
        """A span for each part; see `isjax._numerics.leading_axis.split`."""
        rows = -(-size // parts)
        return Span(self.first + jnp.arange(parts, dtype=jnp.int32) * rows, rows, rows)


class Sampler(NamedTuple):
    """Chooses what to train on next, and learns from the losses that follow.

    A state is a NamedTuple of arrays. It has the fields `step`, [] int32, the draws so far, which
    `sample` increases by one, and `span`, made by `Span.of(num_examples)`. A wrapper keeps the
    state of the wrapped sampler in a field `inner`, and has `step` and `span` as properties.

    Put arrays with a row for each example into a NamedTuple of their own, with a method
    `leading_axes` that returns the same structure with "examples" for each such array. Devices and
    `samplers.stratified` then divide them. A field `scorer` is shared by all parts of `stratified`.
    Rows beyond `span.size` are padding: never draw them. Make draws with `samplers.make_draw`.
    `tests/samplers/test_own_sampler.py` is an example.

    Attributes:
        init: `(key, num_examples) -> state`.
        sample: `(key, state, ids=None, batch=None, params=None) -> (Draw, state)`. `ids` [B] is the
            pool. Without it the sampler draws from the whole data set, or chooses a pool itself.
            `batch` holds the examples `ids` or, without ids, the whole data set, perhaps padded.
            `params` are for a scorer that runs the main model.
        update: `(state, draw, losses, batch=None) -> state`. `losses` [b] of the batch may be NaN
            or infinite, and `draw.ids` may repeat.
        batch_size: b.
        reweigh: `(state, draw, losses) -> weights`, [b] float32; None = `draw.weights`, whatever
            the losses.
        own_pool: True if the sampler chooses its own pool; `make_train_step` then passes no ids.
        parts: S stretches of the data set, each of which gives b / S examples.
    """

    init: Callable[[Array, int], PyTree]
    sample: Callable[..., tuple[Draw, PyTree]]
    update: Callable[..., PyTree]
    batch_size: int
    reweigh: Callable[[PyTree, Draw, Array], Array] | None = None
    own_pool: bool = False
    parts: int = 1

    def weigh(self, state: PyTree, draw: Draw, losses: Array) -> Array:
        """Weights of the batch for the gradient.

        Args:
            state: as `sample` returned it.
            draw: of b examples.
            losses: [b] of the batch.

        Returns:
            [b] float32: `draw.weights`, unless the sampler weighs by the losses.
        """
        return draw.weights if self.reweigh is None else self.reweigh(state, draw, losses)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class FlatRows:
    """An array of a data set, with an example in a row.

    A TPU gathers rows of a multiple of 128 entries in place. It would first transpose the whole of
    an array of images, at every step. `parallel.sharding.place` makes these, and `take` reads them.

    Attributes:
        rows: [N, P], P at least the entries of an example; the rest is zero.
        shape: of an example.
    """

    rows: Array
    shape: tuple[int, ...]

    def __getitem__(self, ids: ArrayLike | slice) -> Array:
        """The examples `ids`, [b, ...]."""
        return self.rows[ids][:, : math.prod(self.shape)].reshape(-1, *self.shape)


def take(data: Batch, ids: ArrayLike) -> Batch:
    """Gathers examples.

    Args:
        data: pytree of arrays, or of `FlatRows`, with leading axis N.
        ids: [b] int32.

    Returns:
        The same pytree of arrays with leading axis b.
    """
    return jax.tree.map(lambda x: x[ids], data, is_leaf=lambda x: isinstance(x, FlatRows))


def require_integer(name: str, value: Any) -> None:
    """Checks a number that decides a shape.

    Args:
        name: of the argument.
        value: a caller's.

    Raises:
        TypeError: if it is no integer, such as 64.0 or a list.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        whole = isinstance(value, float) and value.is_integer()
        remedy = f"pass the integer {int(value)}" if whole else "pass an integer"
        raise TypeError(f"{name} is {reprlib.repr(value)}; {remedy}")


def require_int32(num_examples: int) -> None:
    """Checks that int32 can number the examples.

    Raises:
        ValueError: if there are too many.
    """
    if num_examples > MAX_EXAMPLES:
        raise ValueError(
            f"there are {num_examples} examples, but ids are int32 and number {MAX_EXAMPLES} at "
            "most; use a part of the data, or give one id to several examples"
        )
