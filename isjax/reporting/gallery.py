"""The examples drawn most and least, and what the model makes of them: wrong labels show there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from isjax.base import Batch, take
from isjax.tasks import Task
from isjax.training import TrainState, make_eval_step

__all__ = ["extremes", "make_gallery"]


def make_gallery(
    task: Task, size: int = 24
) -> Callable[[TrainState, np.ndarray], dict[str, np.ndarray]]:
    """Shows the training examples drawn most and least.

    Args:
        task: of which the examples are.
        size: examples of either kind; half of the data set if that is less, but one at least.

    Returns:
        `show(state, count [N]) -> {name: [n, ...]}`, first those drawn most, then those least:
        `ids`; `count`, times drawn; `loss`, now, in evaluation mode; `x`, where it is an array; and
        as text, where there is such a thing, `label`, `prediction`, and the `text` of tokens.
    """

    def metrics(params: Any, model_state: Any, batch: Batch) -> tuple[Any, Any]:
        output = task.output_fn and task.output_fn(params, model_state, batch)
        return task.score_fn(params, model_state, batch), output

    evaluate = make_eval_step(metrics)

    def show(state: TrainState, count: np.ndarray) -> dict[str, np.ndarray]:
        ids = extremes(count, max(1, min(size, len(count) // 2)))
        batch = jax.tree.map(np.asarray, take(task.dataset.train, ids))
        loss, output = jax.device_get(evaluate(state, batch))
        shown = {"ids": ids, "count": count[ids], "loss": loss}
        return shown | _in_words(task, batch, output)

    return show


def extremes(count: np.ndarray, size: int) -> np.ndarray:
    """The ids of the `size` largest counts, then of as many smallest; ties by a fixed lot.

    No id comes twice, as long as `size` is at most half of the counts.
    """
    lots = np.random.default_rng(0)

    def first(keys: np.ndarray) -> np.ndarray:
        bound = np.partition(keys, size - 1)[size - 1]
        sure, tied = np.flatnonzero(keys < bound), np.flatnonzero(keys == bound)
        ids = np.concatenate([sure, lots.choice(tied, size - len(sure), replace=False)])
        return ids[np.argsort(keys[ids], kind="stable")]

    keys = count.astype(np.int64)
    most = first(-keys)
    keys[most] = np.iinfo(np.int64).max
    return np.concatenate([most, first(keys)])


def _in_words(task: Task, batch: Batch, output: Any) -> dict[str, np.ndarray]:
    """What there is to tell; of a task of one's own it may be nothing."""
    found = {}
    parts = batch if isinstance(batch, Mapping) else {}
    x, y = (part if isinstance(part, np.ndarray) else None for part in map(parts.get, ("x", "y")))
    labels, names = y, task.dataset.vocabulary
    if names is not None and x is not None and x.ndim == 2:
        found["text"] = [_text(tokens, names) for tokens in x]
    elif x is not None:
        found["x"] = x
    if task.dataset.num_classes is not None:
        labels = None if task.label_fn is None else np.asarray(task.label_fn(batch))
        names = task.dataset.class_names or [str(i) for i in range(task.dataset.num_classes)]
    if labels is None or (names is not None and labels.ndim != 1):
        return {name: np.asarray(values) for name, values in found.items()}
    shape = labels.shape if names is None else (len(labels), len(names))
    found["label"] = _said(labels, names)
    if np.shape(output) == shape:
        found["prediction"] = _said(output if names is None else output.argmax(axis=-1), names)
    return {name: np.asarray(values) for name, values in found.items()}


def _said(values: np.ndarray, names: Sequence[str] | None) -> list[str]:
    return [_numbers(value) if names is None else names[value] for value in values]


def _text(tokens: Sequence[int], vocabulary: Sequence[str]) -> str:
    between = "" if np.median([len(token) for token in vocabulary]) == 1 else " "
    return between.join(vocabulary[token] for token in tokens if token >= 0)


def _numbers(values: np.ndarray) -> str:
    decimals = [f"{float(value):.3g}" for value in values.ravel()[:5]]
    return ", ".join(decimals[:4]) + (", …" if len(decimals) > 4 else "")
