"""Classification."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from isjax.base import Array, Batch
from isjax.data.dataset import Dataset
from isjax.tasks._supervised import supervised
from isjax.tasks._task import Augmentation, Network, Task, num_outputs, target

__all__ = ["classification"]


def classification(
    dataset: Dataset,
    network: Network,
    augment: Sequence[Augmentation] = (),
    pixels: str = "standardised",
) -> Task:
    """Makes a task of classes: cross-entropy in nats, and accuracy.

    An example never seen is assumed to lose log(classes), the loss of a uniform guess. If an
    augmentation mixes images (mixup, RICAP), the loss of an example is that of its own label in all
    mixtures that contain it, so that its weight and the stored loss concern that example alone. A
    model that scores the pool sees examples without augmentation.

    Args:
        dataset: examples of `{"x", "label"}`, `label` [N] int. An `x` of uint8, such as images, is
            standardised per channel by mean and deviation over the training part; of a `Source`,
            over the examples that it holds in memory. `x` may be a pytree of several inputs.
        network: Flax module, called as `network(x, train=False)`, from `x` to logits [b, classes].
        augment: functions `(key, x) -> x` for training, applied in order; at most one of them may
            return `Mixed`. See `isjax.tasks.augmentations`.
        pixels: "standardised", or "unit" for an `x` of uint8 divided by 255.

    Returns:
        The task, with `label_fn`.

    Raises:
        ValueError: if the data set has no labels, or no number of classes; or if there is no such
            scale of pixels.
    """

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return {"loss": loss, "accuracy": jnp.argmax(logits, axis=-1) == batch["label"]}

    target("classification", dataset, "label")
    return supervised(dataset, network, metrics, augment, pixels)._replace(
        initial_loss=math.log(num_outputs(dataset)), label_fn=lambda batch: batch["label"]
    )
