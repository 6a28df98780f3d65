"""Regression."""

from collections.abc import Sequence

import numpy as np
import optax

from isjax.base import Array, Batch
from isjax.data.dataset import Dataset
from isjax.tasks._supervised import supervised
from isjax.tasks._task import Augmentation, Network, Task, num_outputs, target

__all__ = ["regression"]


def regression(
    dataset: Dataset,
    network: Network,
    augment: Sequence[Augmentation] = (),
    pixels: str = "standardised",
) -> Task:
    """Makes a task of regression: squared error, averaged over the numbers to predict.

    An example never seen is assumed to lose the variance of `y`, the loss of predicting the mean,
    or 1 if `y` is constant.

    Args:
        dataset: examples of `{"x", "y"}`, `y` [N, numbers] float.
        network: Flax module, called as `network(x, train=False)`, from `x` to predictions
            [b, numbers].
        augment: as in `classification`.
        pixels: as in `classification`.

    Returns:
        The task.

    Raises:
        ValueError: if the data set has no `y`, or one of another shape or type, or if its variance
            is not finite.
    """

    def metrics(predictions: Array, batch: Batch) -> dict[str, Array]:
        return {"loss": optax.squared_error(predictions, batch["y"]).mean(axis=-1)}

    y = target("regression", dataset, "y")
    num_outputs(dataset)  # checks shape and type
    with np.errstate(invalid="ignore", over="ignore"):
        variance = float(np.var(y, axis=0, dtype=np.float64).mean())
    if not variance <= np.finfo(np.float32).max:
        raise ValueError(
            f'the variance of "y" is {variance:.3g}, which float32 does not hold; leave out '
            'targets that are not finite, and scale "y" to a deviation of 1'
        )
    task = supervised(dataset, network, metrics, augment, pixels)
    return task._replace(initial_loss=variance or 1.0)
