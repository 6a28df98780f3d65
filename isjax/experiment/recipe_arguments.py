"""The arguments that a run gives to a recipe, by the names of the recipe's parameters."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from isjax.base import Array, Batch
from isjax.scorers import Companion

__all__ = ["RecipeArguments", "required_parameters"]


class RecipeArguments(NamedTuple):
    """Everything a recipe can ask for by name; None where the task does not have it.

    A recipe gets those that it has parameters for. `config.method_options` may change
    `initial_loss`. It may also give `reference` and `scores`, which are otherwise made before
    training by `isjax.experiment.reference_models`, and must give the `importances` of `given`.

    Attributes:
        batch_size: b, the examples that a step trains on.
        pool_size: B, the examples that the sampler chooses from.
        num_steps: of the run, its budget applied.
        initial_loss: of an example never seen, such as log(num_classes).
        loss_fn: `(params, batch) -> losses [b]` in evaluation mode. With a stateful model `params`
            is the pair `(params, model_state)`.
        logits_fn: `(params, batch) -> logits [b, num_classes]`, with the same `params`.
        stateful: whether the model has state, such as batch statistics.
        example: a batch of one training example, for shapes and dtypes.
        num_classes: of the data set.
        label_fn: `(batch) -> labels [b]`.
        source: int[N], source of each training example in memory.
        companion: the same task with the network that `config.companion` names.
        reference: float32[N], loss of each training example by a model that did not train on it.
        scores: float32[N], norm of each training example's error early in training (EL2N).
    """

    batch_size: int
    pool_size: int
    num_steps: int
    initial_loss: float | None = None
    loss_fn: Callable[..., Array] | None = None
    logits_fn: Callable[..., Array] | None = None
    stateful: bool | None = None
    example: Batch | None = None
    num_classes: int | None = None
    label_fn: Callable[[Batch], Array] | None = None
    source: np.ndarray | None = None
    companion: Companion | None = None
    reference: Array | None = None
    scores: Array | None = None

    def available(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def required_parameters(function: Callable) -> set[str]:
    """The names of the parameters of `function` that have no default."""
    parameters = inspect.signature(function).parameters
    return {name for name, value in parameters.items() if value.default is value.empty}
