"""Evaluation: averages the metrics of a task over each part of its data set."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from isjax.base import Batch
from isjax.data.source import Source, finite_examples, num_examples
from isjax.parallel.mesh import shards
from isjax.reporting.failures import Failures
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
    on_failures: Callable[[dict[str, Failures]], None] = lambda found: None,
) -> Evaluate:
    """Evaluates the train part, the valid part if there is one, and the test part.

    An example whose own data and loss are both not finite is left out of the means: it says nothing
    about the model. Any other loss that is not finite makes a mean NaN or infinite.

    Args:
        task: of the run; its metrics are averaged over examples, in float64.
        batch_size: examples evaluated at once.
        max_examples: of each part, evenly spaced; 0 = all. Those of a `Source` are kept in memory;
            without a limit a `Source` is read anew each time.
        further: each `(state) -> {name: number}`; these metrics are added.
        reestimate: `(state) -> state`, which replaces the state that the parts are evaluated with;
            see `isjax.experiment.batch_statistics`. `further` get the state of training.
        on_failures: called after each evaluation with the failures of each part that has some.

    Returns:
        `evaluate(state, should_stop) -> {"train_loss": ..., "test_loss": ..., ...}`, with
        `train_left_out`, the number of examples left out of the means, if there are any. It returns
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
        state: TrainState, part: Batch | Source, ids: np.ndarray, should_stop: Callable[[], bool]
    ) -> tuple[dict[str, float], Failures] | None:
        totals: dict[str, float] = {}
        seen, failures = 0, Failures([], [])
        for metrics in evaluate_batches(step, state, part, batch_size):
            if should_stop():
                return None
            usable = _usable(metrics["loss"], part, ids, seen, failures)
            seen += len(usable)
            for name, values in metrics.items():
                total = values[usable].sum(dtype=np.float64)
                totals[name] = totals.get(name, 0.0) + float(total)
        size = seen - len(failures.data) or np.nan
        return task.summarise({name: total / size for name, total in totals.items()}), failures

    def evaluate(
        state: TrainState, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        evaluated, found = {}, {}
        model = state if reestimate is None else reestimate(state)
        for part, (examples, ids) in chosen.items():
            result = mean(model, examples, ids, should_stop)
            if result is None:
                return None
            means, failures = result
            evaluated |= {f"{part}_{name}": value for name, value in means.items()}
            if failures.data:
                evaluated[f"{part}_left_out"] = float(len(failures.data))
            if failures != Failures([], []):
                found[part] = failures
        on_failures(found)
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


def _usable(
    losses: np.ndarray, part: Batch | Source, ids: np.ndarray, start: int, failures: Failures
) -> np.ndarray:
    """Tells which examples of a batch belong in the means, and notes the ids of those that fail."""
    failed = np.flatnonzero(~np.isfinite(losses))
    usable = np.ones(len(losses), bool)
    if failed.size:
        finite = finite_examples(jax.tree.map(lambda x: x[start + failed], part))
        usable[failed[~finite]] = False
        failures.data.extend(ids[start + failed[~finite]].tolist())
        failures.loss.extend(ids[start + failed[finite]].tolist())
    return usable


def _spaced(part: Batch | Source, max_examples: int) -> tuple[Batch | Source, np.ndarray]:
    """Returns evenly spaced examples of a part, and their ids in it."""
    size = num_examples(part)
    if not 0 < max_examples < size:
        return part, np.arange(size)
    ids = np.linspace(0, size, max_examples, endpoint=False).astype(int)
    return jax.tree.map(lambda x: x[ids], part), ids
