"""Gallery of the examples drawn most and least often; wrong labels show up there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from isjax.base import Batch, take
from isjax.reporting.text import shown
from isjax.tasks import Task
from isjax.training import TrainState, make_eval_step

__all__ = ["MAX_CHARACTERS", "extremes", "make_gallery"]

MAX_CHARACTERS = 140  # of the text or label of an example


def make_gallery(
    task: Task, size: int = 24
) -> Callable[[TrainState, np.ndarray], dict[str, np.ndarray]]:
    """Makes a function that describes the training examples drawn most and least often.

    A call costs one evaluation of 2 `size` examples.

    Args:
        task: Task whose training examples to describe.
        size: Examples of either kind. Limited to half of the data set, but at least one.

    Returns:
        `describe(state, count)`, where `count` [N] int is the number of times each example was
        drawn. It returns arrays [n], first the examples drawn most, then those drawn least:

        - `ids`, and their `count`;
        - `loss`: current loss in evaluation mode;
        - `x` [n, ...]: input, if it is an array;
        - `text`: input as text, if the data set has a vocabulary;
        - `label` and `prediction`: as text, if the task has them.
    """

    def metrics(params: Any, model_state: Any, batch: Batch) -> tuple[Any, Any]:
        output = task.output_fn and task.output_fn(params, model_state, batch)
        return task.score_fn(params, model_state, batch), output

    evaluate = make_eval_step(metrics)

    def describe(state: TrainState, count: np.ndarray) -> dict[str, np.ndarray]:
        ids = extremes(count, max(1, min(size, len(count) // 2)))
        batch = jax.tree.map(np.asarray, take(task.dataset.train, ids))
        loss, output = jax.device_get(evaluate(state, batch))
        numbers = {"ids": ids, "count": count[ids], "loss": np.asarray(loss, np.float32)}
        texts = {name: np.asarray(v) for name, v in _texts(task, batch, output).items()}
        return numbers | texts

    return describe


def extremes(count: np.ndarray, size: int) -> np.ndarray:
    """Returns the ids of the `size` largest counts, then those of the `size` smallest.

    Ties are broken at random, with a fixed seed. No id appears twice if `size <= N / 2`.

    Args:
        count: [N] int32, the number of times each example was drawn.
        size: Number of ids of either kind, at most N.

    Returns:
        [2 size] int ids.
    """
    rng = np.random.default_rng(0)

    def smallest(keys: np.ndarray) -> np.ndarray:
        bound = np.partition(keys, size - 1)[size - 1]
        below, tied = np.flatnonzero(keys < bound), np.flatnonzero(keys == bound)
        ids = np.concatenate([below, rng.choice(tied, size - len(below), replace=False)])
        return ids[np.argsort(keys[ids], kind="stable")]

    keys = count.astype(np.int64)
    most = smallest(-keys)
    keys[most] = np.iinfo(np.int64).max
    return np.concatenate([most, smallest(keys)])


def _texts(task: Task, batch: Batch, output: Any) -> dict[str, Any]:
    """Returns `x` or `text`, `label` and `prediction` of a batch, those that the task has."""
    found: dict[str, Any] = {}
    parts = batch if isinstance(batch, Mapping) else {}
    x, y = (part if isinstance(part, np.ndarray) else None for part in map(parts.get, ("x", "y")))
    labels, names = y, task.dataset.vocabulary
    if names is not None and x is not None and x.ndim == 2:
        found["text"] = [_join_tokens(tokens, names) for tokens in x]
    elif x is not None:
        found["x"] = x
    if task.dataset.num_classes is not None:
        labels = None if task.label_fn is None else np.asarray(task.label_fn(batch))
        names = task.dataset.class_names or [str(i) for i in range(task.dataset.num_classes)]
    if labels is None or (names is not None and labels.ndim != 1):
        return found
    shape = labels.shape if names is None else (len(labels), len(names))
    found["label"] = _names_or_numbers(labels, names)
    if np.shape(output) == shape:
        predictions = output if names is None else output.argmax(axis=-1)
        found["prediction"] = _names_or_numbers(predictions, names)
    return found


def _names_or_numbers(values: np.ndarray, names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [_format_numbers(value) for value in values]
    return [shown(names[value], MAX_CHARACTERS) for value in values]


def _join_tokens(tokens: Sequence[int], vocabulary: Sequence[str]) -> str:
    """Returns tokens as text; characters are joined without spaces, padding is left out."""
    separator = "" if np.median([len(token) for token in vocabulary]) == 1 else " "
    return separator.join(vocabulary[token] for token in tokens if token >= 0)


def _format_numbers(values: np.ndarray) -> str:
    """Returns the first four numbers with three digits."""
    numbers = [f"{float(value):.3g}" for value in values.ravel()[:5]]
    return ", ".join(numbers[:4]) + (", …" if len(numbers) > 4 else "")
