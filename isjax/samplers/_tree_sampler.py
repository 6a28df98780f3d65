"""`tree_sampler`: draws from the whole data set at a cost that hardly depends on its size."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from isjax import resampling
from isjax._numerics.limits import violated
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    PyTree,
    Sampler,
    ScalarOrSchedule,
    Schedule,
    Scorer,
    Span,
    require_integer,
    take,
)
from isjax.distributions import effective_sample_size, normalize
from isjax.samplers import sum_tree
from isjax.samplers._importance import (
    count_invalid,
    make_draw,
    new_memory,
    observe,
    pool_of,
    require_whole,
    score,
)
from isjax.samplers._refusals import (
    refuse_wrong_sample,
    refuse_wrong_update,
    require_batch_size,
    require_initial_loss,
    require_kind,
)
from isjax.weights import exponent_schedule

__all__ = ["tree_sampler"]

_UNIFORM = 2.0**44  # stands for infinite smoothing


class TreeState(NamedTuple):
    """State of `tree_sampler`.

    Attributes:
        step: [] int32 draws so far.
        span: the examples that it is of.
        buffer: `isjax.buffer.ScoreBuffer`.
        scorer: the scorer's state.
        scores: `isjax.samplers.sum_tree.SumTree` of each example's score when last scored.
        next: [] int32 id at which the rolling refresh goes on.
    """

    step: Array
    span: Span
    buffer: PyTree
    scorer: PyTree
    scores: sum_tree.SumTree
    next: Array


def tree_sampler(
    scorer: Scorer,
    *,
    batch_size: int,
    k: ScalarOrSchedule = 1.0,
    smoothing: ScalarOrSchedule = 0.5,
    refresh: int = 0,
    initial_loss: float = 1.0,
) -> Sampler:
    """Importance sampling with the whole data set as the pool, in O(b log N) a step.

    Scores are kept in a tree of partial sums. An example is scored anew when a loss of it has been
    observed, b of them a step, and by the rolling refresh; else its score stands, even if the
    scorer has learned since.

    Args:
        scorer: scores by the buffer or by ids, without the main model; see `isjax.scorers`.
            Examples not yet observed score `initial_loss`, until a refresh scores them; a scorer
            by ids, such as `scorers.given`, scores all at the start.
        batch_size: b, the examples drawn.
        k: as in `importance_sampler`.
        smoothing: c >= 0, a number or a schedule of the sampler's step; p ~ s + c mean(s), the mean
            being over the whole data set. 0 = none, infinite = uniform draws.
        refresh: R examples, or all if there are fewer, that are scored before each draw, in the
            order of their ids; 0 = none. For a scorer that reads classes, `sample` then needs
            `batch`, the whole data set.
        initial_loss: loss assumed for an example never seen, above 0: without mass it would be
            drawn by smoothing alone.

    Returns:
        A `Sampler` with a pool of its own. `Draw.ess` is an estimate, from the examples drawn. Its
        `sample` also takes a pool's `ids` [B], and then draws from these, in O(B).

    Raises:
        TypeError: if `scorer` is not one, but perhaps the function that makes it.
        ValueError: here if `batch_size` < 1, k > 1, smoothing or refresh is negative,
            `initial_loss` is not above 0 and finite, or the scorer remembers nothing or runs the
            main model; at `init` if the data set is empty;
            at `sample` if the batch is not the whole data set, or ids are passed to a sampler that
            refreshes.
    """
    require_kind(scorer, Scorer, "scorer")
    require_batch_size(batch_size)
    require_initial_loss(initial_loss, above=0)
    if scorer.passes or not (scorer.history or scorer.by_id):
        raise ValueError(
            "tree_sampler keeps scores of examples that it does not load: it needs a scorer that "
            "reads past losses or ids, such as scorers.last_loss(), scorers.learned() or "
            "scorers.given(scores); use importance_sampler for this one"
        )
    if not callable(smoothing) and violated(smoothing >= 0):
        raise ValueError(f"tree_sampler: smoothing is {smoothing}; choose 0 or more")
    require_integer("tree_sampler: refresh", refresh)
    if refresh < 0:
        raise ValueError(f"tree_sampler: refresh is {refresh}; choose 0 or more examples a step")
    k_of_step = exponent_schedule(k)
    smooth = cast(Schedule, smoothing) if callable(smoothing) else lambda step: smoothing

    def init(key: Array, num_examples: int) -> TreeState:
        memory = new_memory(scorer, key, num_examples, initial_loss)
        scores = sum_tree.init(jnp.full((num_examples,), initial_loss, jnp.float32))
        state = TreeState(**memory, scores=scores, next=jnp.zeros((), jnp.int32))
        if scorer.by_id:
            known, _, _ = score(scorer, state, jnp.arange(num_examples, dtype=jnp.int32), None)
            state = state._replace(scores=sum_tree.init(known))
        return state

    def rescored(state: TreeState, ids: Array, batch: Batch) -> tuple[TreeState, Array]:
        """Scores these examples anew. Counts the scores that are not finite."""
        scores, finite, _ = score(scorer, state, ids, batch)
        with jax.named_scope("buffer"):
            updated = sum_tree.update(state.scores, ids, scores)
        return state._replace(scores=updated), jnp.sum(~finite, dtype=jnp.int32)

    def refreshed(state: TreeState, batch: Batch) -> tuple[TreeState, Array]:
        """Scores the next examples of the rolling refresh."""
        number = min(refresh, state.span.size)
        stale = (state.next + jnp.arange(number, dtype=jnp.int32)) % state.scores.size
        following = (state.next + refresh) % state.scores.size
        state, nonfinite = rescored(state, stale, take(batch, stale))
        return state._replace(next=following), nonfinite

    def sample(
        key: Array,
        state: TreeState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, TreeState]:
        del params
        refuse_wrong_sample(key, state)
        if refresh and ids is not None:
            raise ValueError(
                "tree_sampler: the rolling refresh reads the whole data set, not a pool; pass no "
                "ids, or leave refresh at 0"
            )
        key = jax.random.fold_in(key, state.step)
        smoothing_now = jnp.minimum(jnp.asarray(smooth(state.step), jnp.float32), _UNIFORM)
        if ids is not None:
            pool, _ = pool_of(state, ids, None, batch_size)
            draw = draw_from_pool(key, state, smoothing_now, pool)
            return draw, state._replace(step=state.step + 1)
        require_whole(batch, state.span, "tree_sampler")
        if state.span.size < batch_size:
            raise ValueError(
                f"tree_sampler: a data set of {state.span.size} is smaller than the batch of "
                f"{batch_size}; shrink the batch, or initialise for all of the examples"
            )
        nonfinite = jnp.int32(0)
        if refresh:
            state, nonfinite = refreshed(state, batch)
        size = sum_tree.active(state.scores)
        ids, draw_probs, scores, mass = sum_tree.sample(
            key, state.scores, batch_size, smoothing_now
        )
        draw = make_draw(
            state,
            ids,
            ids,
            draw_probs,
            scores=scores,
            pool_size=size,
            k=k_of_step,
            # sum p^2 is the mean of p over draws by p.
            ess=jnp.minimum(1 / (size.astype(jnp.float32) * jnp.mean(draw_probs)), 1.0),
            mass=mass,
            nonfinite=nonfinite,
        )
        return draw, state._replace(step=state.step + 1)

    def draw_from_pool(key: Array, state: TreeState, smoothing_now: Array, pool: Array) -> Draw:
        scores = sum_tree.scores_of(state.scores, pool)
        size = sum_tree.active(state.scores).astype(jnp.float32)
        mean = sum_tree.total(state.scores) / size
        excluded = sum_tree.is_excluded(state.scores, pool)
        smoothed = jnp.where(excluded, 0.0, scores + smoothing_now * mean)
        mass = jnp.sum(smoothed)
        probs = normalize(jnp.where(mass > 0, smoothed, (~excluded).astype(jnp.float32)))
        left = jnp.maximum(jnp.sum(~excluded, dtype=jnp.int32), 1)
        index, draw_probs = resampling.systematic(key, probs, batch_size)
        return make_draw(
            state,
            pool[index],
            index,
            draw_probs,
            scores=scores[index],
            pool_size=left,
            k=k_of_step,
            ess=jnp.minimum(effective_sample_size(probs) / left, 1.0),
            mass=mass / left,
            invalid_ids=count_invalid(pool, state.span),
        )

    def update(state: TreeState, draw: Draw, losses: Array, batch: Batch = None) -> TreeState:
        refuse_wrong_update(state, draw, losses)
        state = observe(scorer, state, draw.ids, losses, batch)
        scores, _, _ = score(scorer, state, draw.ids, batch)
        with jax.named_scope("buffer"):
            updated = sum_tree.update(state.scores, draw.ids, scores)
        return state._replace(scores=updated)

    return Sampler(init, sample, update, batch_size, own_pool=True)
