"""Evaluation: averages the metrics of a task over each part of its data set."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from isjax.base import Batch
from isjax.data.source import Source, num_examples
from isjax.parallel.mesh import shards
from isjax.tasks import Task
from isjax.training import TrainState, make_eval_step

__all__ = ["Evaluate", "evaluate_batches", "make_evaluation"]

Evaluate = Callable[..., dict[str, float] | None]


def make_evaluation(
    task: Task,
    batch_size: int = 1000,
    max_examples: int = 0,
    further: Sequence[Callable[[TrainState], dict[str, float]]] = (),
    reestimate: Callable[[TrainState], TrainState] | None = None,
) -> Evaluate:
    """Evaluates the train part, the valid part if there is one, and the test part.

    Args:
        task: of the run; its metrics are averaged over examples, in float64.
        batch_size: examples evaluated at once.
        max_examples: of each part, evenly spaced; 0 = all. Those of a `Source` are kept in memory;
            without a limit a `Source` is read anew each time.
        further: each `(state) -> {name: number}`; these metrics are added.
        reestimate: `(state) -> state`, which replaces the state that the parts are evaluated with;
            see `isjax.experiment.batch_statistics`. `further` get the state of training.

    Returns:
        `evaluate(state, should_stop) -> {"train_loss": ..., "test_loss": ..., ...}`. It returns
        None as soon as `should_stop()`, which it asks after each batch.
    """
    step = make_eval_step(task.metrics_fn)
    parts = {
        "train": task.dataset.train,
        "valid": task.dataset.valid,
        "test": task.dataset.test,
    }
    chosen = {name: _spaced(part, max_examples) for name, part in parts.items() if part is not None}

    def mean(
        state: TrainState, part: Batch | Source, should_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        size = num_examples(part)
        totals: dict[str, float] = {}
        for metrics in evaluate_batches(step, state, part, batch_size):
            if should_stop():
                return None
            for name, values in metrics.items():
                total = values.sum(dtype=np.float64)
                totals[name] = totals.get(name, 0.0) + float(total)
        return task.summarise({name: total / size for name, total in totals.items()})

    def evaluate(
        state: TrainState, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        evaluated = {}
        model = state if reestimate is None else reestimate(state)
        for part, examples in chosen.items():
            means = mean(model, examples, should_stop)
            if means is None:
                return None
            evaluated |= {f"{part}_{name}": value for name, value in means.items()}
        for metrics in further:
            evaluated |= metrics(state)
        return evaluated

    return evaluate


def evaluate_batches(
    step: Callable[[TrainState, Batch], Any],
    state: TrainState,
    part: Batch | Source,
    batch_size: int,
) -> Iterator[Any]:
    """Runs an evaluation step over all examples of a part, in order.

    Args:
        step: of `isjax.training.make_eval_step`.
        state: of the model.
        part: of a data set.
        batch_size: examples in a batch; rounded up to share it among the devices.

    Yields:
        The step's results for each batch: pytrees of NumPy arrays [<= batch].
    """
    size = num_examples(part)
    rows = min(size, batch_size)
    rows += -rows % shards()
    for start in range(0, size, rows):
        # The last batch is filled up from the front: one shape, one compilation.
        ids = np.arange(start, start + rows) % size
        batch = jax.tree.map(lambda x: x[ids], part)  # noqa: B023
        values = jax.device_get(step(state, batch))
        yield jax.tree.map(lambda x: x[: size - start], values)  # noqa: B023


def _spaced(part: Batch | Source, max_examples: int) -> Batch | Source:
    size = num_examples(part)
    if not 0 < max_examples < size:
        return part
    ids = np.linspace(0, size, max_examples, endpoint=False).astype(int)
    return jax.tree.map(lambda x: x[ids], part)
