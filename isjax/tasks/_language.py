"""Language models."""

import math
from collections.abc import Sequence

import numpy as np
import optax

from isjax.base import Array, Batch
from isjax.data.dataset import Dataset
from isjax.tasks._supervised import supervised
from isjax.tasks._task import Augmentation, Network, Task, num_outputs, target

__all__ = ["language", "predicts_every_token"]


def language(
    dataset: Dataset,
    network: Network,
    augment: Sequence[Augmentation] = (),
    pixels: str = "standardised",
) -> Task:
    """Makes a task of next-token prediction: cross-entropy in nats, and perplexity.

    The loss of an example is the mean over its targets; perplexity is exp of the mean loss. An
    example never seen is assumed to lose log(vocabulary), the loss of a uniform guess.

    Args:
        dataset: examples of `{"x", "y"}`, tokens and the tokens that follow, with a vocabulary; see
            `isjax.data.ptb`. `x` is [N, T] int32, `y` [N, T] or [N].
        network: Flax module, called as `network(x, train=False)`, from `x` [b, T] to logits
            [b, T, words] for a `y` of [b, T], or [b, words] for a `y` of [b].
        augment: as in `classification`.
        pixels: as in `classification`.

    Returns:
        The task; its metrics have a `perplexity` for each part of the data.

    Raises:
        ValueError: if the data set has no `y`, or no vocabulary for its tokens.
    """

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return {"loss": losses.reshape(losses.shape[0], -1).mean(axis=1)}

    def summarise(means: dict[str, float]) -> dict[str, float]:
        return means | {"perplexity": float(np.exp(means["loss"]))}

    target("language", dataset, "y")
    return supervised(dataset, network, metrics, augment, pixels)._replace(
        initial_loss=math.log(num_outputs(dataset)), summarise=summarise
    )


def predicts_every_token(dataset: Dataset) -> bool:
    """Tells whether a model predicts after each token, `y` [N, T], or only after the last, [N].

    Args:
        dataset: data of a language task.

    Raises:
        ValueError: if the data set has no `y`.
    """
    return np.ndim(target("language", dataset, "y")) > 1
