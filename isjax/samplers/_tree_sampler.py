"""`tree_sampler`: draws from the whole data set at a cost that hardly depends on its size."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from isjax import buffer
from isjax.base import (
    Array,
    Batch,
    Draw,
    Params,
    Sampler,
    SamplerState,
    ScalarOrSchedule,
    Schedule,
    Scorer,
    take,
)
from isjax.samplers import sum_tree
from isjax.samplers._importance import (
    keeps_losses,
    observe,
    refuse_ids,
    require_kind,
    require_whole,
    rows_of,
)
from isjax.weights import exponent_schedule, importance_weights

__all__ = ["tree_sampler"]

_UNIFORM = 2.0**44  # what infinite smoothing counts as


class TreeState(NamedTuple):
    """The part of `tree_sampler` in `SamplerState.transform`.

    Attributes:
        scores: `isjax.samplers.sum_tree.Tree` of what each example scored when last scored.
        next: [] int32, the example that the rolling refresh comes to next.
    """

    scores: sum_tree.Tree
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
        scorer: one that goes by what is remembered of an example; see `isjax.scorers`. Examples
            not yet observed score `initial_loss`, until a refresh comes to them.
        batch_size: b, the examples drawn.
        k: as in `importance_sampler`.
        smoothing: c >= 0, a number or a schedule of the sampler's step; p ~ s + c mean(s), the mean
            being over the whole data set. 0 = none, infinite = uniform draws.
        refresh: R examples, or all if there are fewer, that are scored before each draw, in the
            order of their ids; 0 = none. For a scorer that reads classes, `sample` then needs
            `batch`, the whole data set.
        initial_loss: what an example never seen is thought to lose.

    Returns:
        A `Sampler` with a pool of its own. `Draw.ess` is an estimate, from the examples drawn.

    Raises:
        TypeError: if `scorer` is not one, but perhaps the function that makes it.
        ValueError: here if `batch_size` < 1, k > 1, smoothing or refresh is negative, or the scorer
            remembers nothing or runs the main model; at `init` if the data set is empty;
            at `sample` if ids are passed, or a batch that is not the whole data set.
    """
    require_kind(scorer, Scorer, "scorer")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 example")
    if not scorer.history or scorer.passes:
        raise ValueError(
            "tree_sampler keeps scores of examples that it does not look at: it needs a scorer of "
            "what is remembered, such as scorers.last_loss() or scorers.learned(); use "
            "importance_sampler for this one"
        )
    if not (callable(smoothing) or smoothing >= 0):
        raise ValueError(f"tree_sampler: smoothing is {smoothing}; choose 0 or more")
    if refresh < 0:
        raise ValueError(f"tree_sampler: refresh is {refresh}; choose 0 or more examples a step")
    exponent = exponent_schedule(k)
    smooth = cast(Schedule, smoothing) if callable(smoothing) else lambda step: smoothing

    def init(key: Array, num_examples: int) -> SamplerState:
        if num_examples < 1:
            raise ValueError(f"the data set has {num_examples} examples; sampling needs at least 1")
        scores = sum_tree.init(jnp.full((num_examples,), initial_loss, jnp.float32))
        return SamplerState(
            step=jnp.zeros((), jnp.int32),
            buffer=buffer.init(num_examples, scorer.history, initial_loss),
            scorer=scorer.init(key),
            transform=TreeState(scores, jnp.zeros((), jnp.int32)),
        )

    def scored(state: SamplerState, ids: Array, batch: Batch) -> tuple[sum_tree.Tree, Array]:
        """The tree with these examples scored anew, and how many scores were not finite."""
        with jax.named_scope("score"):
            scores = scorer.score(state.scorer, rows_of(state, ids, batch))
        finite = jnp.isfinite(scores)
        worth = finite & ~buffer.has_failed(state.buffer, ids)
        scores = jnp.where(worth, scores, 0.0)
        with jax.named_scope("buffer"):
            updated = sum_tree.update(state.transform.scores, ids, scores)
        return updated, jnp.sum(~finite, dtype=jnp.int32)

    def sample(
        key: Array,
        state: SamplerState,
        ids: Array | None = None,
        batch: Batch = None,
        params: Params = None,
    ) -> tuple[Draw, SamplerState]:
        del params
        refuse_ids(ids, "tree_sampler chooses from the whole data set")
        require_whole(batch, buffer.size(state.buffer), "tree_sampler")
        scores, start = state.transform
        size = scores.size  # less than the buffer has, where that is padded
        nonfinite = jnp.int32(0)
        if refresh:
            number = min(refresh, buffer.size(state.buffer))
            stale = (start + jnp.arange(number, dtype=jnp.int32)) % size
            scores, nonfinite = scored(state, stale, take(batch, stale))
            start = (start + refresh) % size
        share = jnp.asarray(smooth(state.step), jnp.float32)
        constant = jnp.minimum(share, _UNIFORM) * sum_tree.total(scores) / size
        power = jnp.asarray(exponent(state.step), jnp.float32)
        ids, draw_probs, raw = sum_tree.sample(key, scores, batch_size, constant)
        draw = Draw(
            ids=ids,
            index=ids,
            weights=importance_weights(draw_probs, size, power),
            draw_probs=draw_probs,
            scores=raw,
            # sum p^2 is the mean of p over draws by p.
            ess=jnp.minimum(1 / (size * jnp.mean(draw_probs)), 1.0),
            nonfinite=nonfinite,
            pool_size=size,
            passes=jnp.float32(0),
            mass=sum_tree.total(scores) / size + constant,
            k=power,
        )
        return draw, state._replace(step=state.step + 1, transform=TreeState(scores, start))

    def update(state: SamplerState, draw: Draw, losses: Array, batch: Batch = None) -> SamplerState:
        state = observe(scorer, state, draw.ids, losses, batch)
        scores, _ = scored(state, draw.ids, batch)
        return state._replace(transform=state.transform._replace(scores=scores))

    return Sampler(init, sample, update, own_pool=True, keeps_losses=keeps_losses(scorer))
