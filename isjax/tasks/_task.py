"""The type of a task, and questions about its data set."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from isjax._numerics.precision import Model
from isjax.base import Array, Batch, Params, PyTree
from isjax.data.dataset import Dataset
from isjax.data.source import held
from isjax.tasks.augmentations import Mixed
from isjax.training import EvalFn, LossFn

__all__ = ["Augmentation", "Network", "Task", "num_outputs", "target"]

Network = nn.Module | Model
Augmentation = Callable[[Array, Array], Array | Mixed]


class Task(NamedTuple):
    """A data set with the functions to train and test on it. A batch is any pytree of arrays.

    Attributes:
        dataset: examples to train and test on.
        init: `(key) -> (params, model_state)`.
        loss_fn: `(params, model_state, batch, key) -> (losses [b], model_state)`, for training:
            with augmentation, dropout and statistics of the batch.
        score_fn: `(params, model_state, batch) -> losses [b]`, for evaluation: deterministic, of
            the examples as they are.
        metrics_fn: `(params, model_state, batch) -> {name: [b]}`, as `score_fn`; includes `loss`.
        initial_loss: loss assumed for an example that was never seen.
        label_fn: `(batch) -> classes [b]`; None if the data set has no classes.
        summarise: function from the mean metrics of a part of the data to the metrics reported.
        output_fn: `(params, model_state, batch) -> output` of the network, as `score_fn`; logits
            if the data set has classes.
        token_losses_fn: `(params, model_state, batch) -> losses [b, T]` of each target, as
            `score_fn`, and zero where there is none; None if the task has no tokens.
    """

    dataset: Dataset
    init: Callable[[Array], tuple[Params, PyTree]]
    loss_fn: LossFn
    score_fn: EvalFn
    metrics_fn: EvalFn
    initial_loss: float = 1.0
    label_fn: Callable[[Batch], Array] | None = None
    summarise: Callable[[dict[str, float]], dict[str, float]] = dict
    output_fn: EvalFn | None = None
    token_losses_fn: EvalFn | None = None


def num_outputs(dataset: Dataset) -> int:
    """Counts the outputs that a network needs: one per class, token, or number to predict.

    Args:
        dataset: data of one of the tasks here.

    Returns:
        The size of the last axis of the network's output.

    Raises:
        ValueError: if the data set has tokens but no vocabulary, or nothing to predict.
    """
    if dataset.num_classes is not None:
        return dataset.num_classes
    if dataset.vocabulary is not None:
        return len(dataset.vocabulary)
    y = target("num_outputs", dataset, "y")
    if np.ndim(y) != 2 or not np.issubdtype(y.dtype, np.floating):
        raise ValueError(
            f'"y" is {y.dtype} of shape {np.shape(y)}; numbers to predict must be floating point, '
            "of shape [N, numbers]; for tokens, give the data set a vocabulary"
        )
    return np.shape(y)[-1]


def target(task: str, dataset: Dataset, name: str) -> Any:
    """Returns the training targets, and checks that the training part has them and an `x`.

    Args:
        task: name of the task, for messages.
        dataset: data to look into.
        name: "label" or "y".

    Returns:
        An array; of a `Source`, the part that it holds in memory.

    Raises:
        ValueError: if the examples have no `x` or no target of that name.
    """
    train = held(dataset.train)
    if not isinstance(train, Mapping) or not {"x", name} <= train.keys():
        found = sorted(train) if isinstance(train, Mapping) else type(train).__name__
        remedy = "choose the task that fits the data, or write a Task"
        if "label" in found and dataset.num_classes is None:
            remedy = "for classes, pass num_classes= to isjax.data.from_arrays"
        raise ValueError(
            f'tasks.{task} needs a data set of {{"x", "{name}"}}, but got {found}; {remedy}'
        )
    return train[name]
