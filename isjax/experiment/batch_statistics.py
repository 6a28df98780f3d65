"""Statistics of batch norm taken from uniform batches, for evaluation.

Batches drawn by importance lean towards hard examples, and so do batch norm's running averages.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array, Batch, Params, PyTree, take
from isjax.data.source import num_examples
from isjax.parallel.mesh import spread
from isjax.tasks import Task
from isjax.training import TrainState

__all__ = ["COLLECTION", "make_reestimation"]

COLLECTION = "batch_stats"


def make_reestimation(
    task: Task, num_batches: int, batch_size: int, seed: int = 0
) -> Callable[[TrainState], TrainState]:
    """Replaces the running averages of batch norm by means over uniform batches.

    The batches go through the training view, with dropout and augmentation, as those that are
    trained on. They are the same at each call. A call costs `num_batches` forward passes of a
    batch. It takes any model state that holds moving averages in the collection "batch_stats".

    Args:
        task: of the run.
        num_batches: batches that the statistics are averaged over, at least 1.
        batch_size: examples of a batch; that of training, whose statistics these replace.
        seed: of the draws.

    Returns:
        `reestimate(state) -> state`, a copy with other model state; training goes on with the old.
    """

    @jax.jit
    def of_batch(params: Params, model_state: PyTree, batch: Batch, key: Array) -> PyTree:
        old, batch = model_state[COLLECTION], spread(batch)

        def updated(averages: PyTree) -> PyTree:
            state = {**model_state, COLLECTION: averages}
            return task.loss_fn(params, state, batch, key)[1][COLLECTION]

        # new = d old + (1 - d) of_batch: from zeros the update gives (1 - d) of_batch, and its
        # derivative is d, whatever the decay of each layer.
        zeros, ones = jax.tree.map(jnp.zeros_like, old), jax.tree.map(jnp.ones_like, old)
        new, decay = jax.jvp(updated, (zeros,), (ones,))
        return jax.tree.map(
            lambda new, d, old: jnp.where(d < 1, new / jnp.where(d < 1, 1 - d, 1), old),
            new,
            decay,
            old,
        )

    def reestimate(state: TrainState) -> TrainState:
        rng, total = np.random.default_rng(seed), None
        for number in range(num_batches):
            ids = rng.integers(0, num_examples(task.dataset.train), batch_size)
            batch, key = take(task.dataset.train, ids), jax.random.key(number)
            found = of_batch(state.params, state.model_state, batch, key)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        mean = jax.tree.map(lambda x: x / num_batches, total)
        return state._replace(model_state={**state.model_state, COLLECTION: mean})

    return reestimate
