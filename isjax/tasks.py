"""Tasks: data, network, loss and metrics put together."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax

from isjax.base import Array, Params, PyTree
from isjax.data import Dataset
from isjax.training import EvalFn, LossFn

__all__ = ["classification"]


class Task(NamedTuple):
    """What there is to learn, as pure functions.

    Attributes:
        dataset: to train and test on.
        init: `(key) -> (params, model_state)`.
        loss_fn: `(params, model_state, batch, key) -> (losses [b], model_state)`, training view.
        score_fn: `(params, model_state, batch) -> losses [b]`, evaluation mode.
        metrics_fn: `(params, model_state, batch) -> {name: [b]}`, evaluation mode, with `loss`.
    """

    dataset: Dataset
    init: Callable[[Array], tuple[Params, PyTree]]
    loss_fn: LossFn
    score_fn: EvalFn
    metrics_fn: EvalFn


def classification(dataset: Dataset, network: nn.Module) -> Task:
    """Cross-entropy over classes, with accuracy.

    Args:
        dataset: of `{"x", "label"}`.
        network: from `batch["x"]` to logits [b, classes].
    """

    def init(key):
        return network.init(key, jnp.asarray(dataset.train["x"][:1])), None

    def losses(params, batch):
        logits = jnp.asarray(network.apply(params, batch["x"]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), logits

    def loss_fn(params, model_state, batch, key):
        return losses(params, batch)[0], model_state

    def score_fn(params, model_state, batch):
        return losses(params, batch)[0]

    def metrics_fn(params, model_state, batch):
        loss, logits = losses(params, batch)
        return {"loss": loss, "accuracy": jnp.argmax(logits, axis=-1) == batch["label"]}

    return Task(dataset, init, loss_fn, score_fn, metrics_fn)
