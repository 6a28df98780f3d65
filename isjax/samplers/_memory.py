"""The memory of a sampler, read and written: the state's `step`, `span`, `buffer`, `scorer`.

Any NamedTuple with these four fields will do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from isjax import buffer
from isjax._numerics.finite import if_finite
from isjax.base import Array, Batch, Params, Rows, Scorer, Span
from isjax.buffer import ScoreBuffer
from isjax.gradients import check_losses


def begin(scorer: Scorer, key: Array, num_examples: int, initial_loss: float) -> dict[str, Any]:
    """The four fields, before anything was drawn.

    Raises:
        ValueError: if there are no examples.
    """
    span = Span.of(num_examples)
    keeps_losses = scorer.remember is None
    return {
        "step": jnp.zeros((), jnp.int32),
        "span": span,
        "buffer": buffer.init(
            num_examples, scorer.history, initial_loss, keeps_losses=keeps_losses
        ),
        "scorer": scorer.init(key),
    }


def buffer_of(state: Any) -> ScoreBuffer:
    """The buffer of a state, also of one inside wrappers; an empty one if it has none."""
    found = optax.tree.get(state, "buffer")
    return ScoreBuffer() if found is None else found


def read(state: Any, ids: Array, batch: Batch, params: Params = None) -> Rows:
    """What a scorer may see of the examples `ids` [B], of which `batch` holds the data."""
    with jax.named_scope("buffer"):
        history, count = buffer.read(state.buffer, ids)
        age = buffer.age(state.buffer, ids, state.step)
    return Rows(history, count, batch, params, ids + state.span.first, age)


def score(
    scorer: Scorer, state: Any, ids: Array, batch: Batch, params: Params = None
) -> tuple[Array, Array, Array]:
    """Scores a pool.

    Returns:
        Scores [B] as the scorer gave them; whether each is finite, [B] bool; and whether the
        example may be drawn by it, [B] bool. One whose last loss was not finite may not: otherwise
        such examples are drawn more often as other losses fall.

    Raises:
        ValueError: if the scorer does not return one score for each example.
    """
    with jax.named_scope("score"):
        # The gradient of a step is that of the loss, not of the choice.
        scores = jax.lax.stop_gradient(scorer.score(state.scorer, read(state, ids, batch, params)))
    if jnp.shape(scores) != ids.shape:
        raise ValueError(
            f"the scorer returned shape {jnp.shape(scores)} for a pool of {ids.shape[0]}; "
            f"return one score per row, shape {ids.shape}"
        )
    finite = jnp.isfinite(scores)
    return scores, finite, finite & ~buffer.has_failed(state.buffer, ids)


def observe(scorer: Scorer, state: Any, ids: Array, losses: Array, batch: Batch) -> Any:
    """Lets scorer and buffer learn the losses [b] of the examples `ids`, whose data is `batch`."""
    losses = check_losses(losses, ids.shape[0]).astype(jnp.float32)
    # The scorer learns from what was known when the batch was drawn, before these losses.
    with jax.named_scope("learn"):
        drawn = state._replace(step=jnp.maximum(state.step - 1, 0))
        learned = scorer.update(state.scorer, read(drawn, ids, batch), losses)
        learned = if_finite(learned, state.scorer)
    remember = scorer.remember or buffer.shift
    written = buffer.write(state.buffer, ids, losses, state.step, remember)
    return state._replace(scorer=learned, buffer=written)
