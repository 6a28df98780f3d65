"""Tasks: data, network, loss and metrics put together."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax._numerics.precision import Model
from isjax.base import Array, Batch, Params, PyTree
from isjax.data.dataset import Dataset
from isjax.data.source import held
from isjax.tasks.mixing import Mixed, per_source
from isjax.training import EvalFn, LossFn

__all__ = ["classification", "language", "regression"]

Network = nn.Module | Model
Augmentation = Callable[[Array, Array], Array | Mixed]


class Task(NamedTuple):
    """What there is to learn, as pure functions. A batch is any pytree of arrays [b, ...].

    Attributes:
        dataset: to train and test on.
        init: `(key) -> (params, model_state)`.
        loss_fn: `(params, model_state, batch, key) -> (losses [b], model_state)`, training view:
            augmentation, dropout, statistics of the batch.
        score_fn: `(params, model_state, batch) -> losses [b]`, evaluation mode, of the examples as
            they are.
        metrics_fn: `(params, model_state, batch) -> {name: [b]}`, as `score_fn`, with `loss`.
        initial_loss: of an example never seen.
        label_fn: `(batch) -> classes [b]`, where the data set has classes.
        summarise: means of the metrics over a part of the data -> metrics of that part.
        output_fn: `(params, model_state, batch) -> output` of the network, as `score_fn`: logits
            where the data set has classes.
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


def num_outputs(dataset: Dataset) -> int:
    """What a network must return for each prediction: classes, tokens, or numbers to predict.

    Raises:
        ValueError: if the data set has tokens, but no vocabulary.
    """
    if dataset.num_classes is not None:
        return dataset.num_classes
    if dataset.vocabulary is not None:
        return len(dataset.vocabulary)
    target = _target("num_outputs", dataset, "y")
    if np.ndim(target) != 2 or not np.issubdtype(target.dtype, np.floating):
        raise ValueError(
            f'"y" is {target.dtype} of shape {np.shape(target)}; numbers to predict are floating '
            "point, of shape [N, numbers], and tokens need a vocabulary in the data set"
        )
    return np.shape(target)[-1]


def predicts_every_token(dataset: Dataset) -> bool:
    """Whether a language model is to predict after each token, not only after the last.

    Raises:
        ValueError: if the data set has no tokens to predict.
    """
    return np.ndim(_target("language", dataset, "y")) > 1


def classification(
    dataset: Dataset, network: Network, augment: Sequence[Augmentation] = ()
) -> Task:
    """Cross-entropy over classes, with accuracy.

    Args:
        dataset: of `{"x", "label"}`. An `x` of bytes (images) is standardised by the mean and
            deviation of its channels in the training part, or what of it is held in memory; `x`
            may be a pytree of several inputs.
        network: from `x` to logits [b, classes], `network(x, train=False)`.
        augment: `(key, x) -> x` of the training view, applied in order; see
            `isjax.tasks.augmentations`. One of them may mix images (mixup, RICAP): the loss of an
            example is then that of its own label in all the mixtures it is part of, so that its
            weight and what is written back concern it alone. A model that scores the pool sees
            examples as they are.
    """

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return {"loss": loss, "accuracy": jnp.argmax(logits, axis=-1) == batch["label"]}

    _target("classification", dataset, "label")
    return _supervised(dataset, network, metrics, augment)._replace(
        initial_loss=math.log(num_outputs(dataset)), label_fn=lambda batch: batch["label"]
    )


def language(dataset: Dataset, network: Network, augment: Sequence[Augmentation] = ()) -> Task:
    """Prediction of the next token, with perplexity: exp of the mean cross-entropy, in nats.

    Args:
        dataset: of `{"x", "y"}`, tokens and the tokens that follow; see `isjax.data.text`. The loss of
            an example is the mean over its targets.
        network: from `x` [b, T] to logits, [b, T, words] or [b, words] as `y` is [b, T] or [b].
        augment: as in `classification`.
    """

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return {"loss": losses.reshape(losses.shape[0], -1).mean(axis=1)}

    _target("language", dataset, "y")

    def summarise(means: dict[str, float]) -> dict[str, float]:
        return means | {"perplexity": float(np.exp(means["loss"]))}

    return _supervised(dataset, network, metrics, augment)._replace(
        initial_loss=math.log(num_outputs(dataset)), summarise=summarise
    )


def regression(dataset: Dataset, network: Network, augment: Sequence[Augmentation] = ()) -> Task:
    """Squared error, the mean over the numbers to predict.

    Args:
        dataset: of `{"x", "y"}`, y [N, numbers]. An example never seen is thought to lose the
            variance of `y`, as if the mean were predicted.
        network: from `x` to predictions [b, numbers].
        augment: as in `classification`.
    """

    def metrics(predictions: Array, batch: Batch) -> dict[str, Array]:
        return {"loss": optax.squared_error(predictions, batch["y"]).mean(axis=-1)}

    target = _target("regression", dataset, "y")
    num_outputs(dataset)  # refuses a target of another kind
    variance = np.var(target, axis=0, dtype=np.float64).mean()
    return _supervised(dataset, network, metrics, augment)._replace(initial_loss=float(variance))


def _target(task: str, dataset: Dataset, name: str) -> Any:
    """What is to be predicted in the training part."""
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


def _supervised(
    dataset: Dataset,
    network: Network,
    metrics: Callable[[Array, Batch], dict[str, Array]],
    augment: Sequence[Augmentation],
) -> Task:
    """A task whose metrics, `loss` among them, follow from the network's output on `batch["x"]`."""
    known = held(dataset.train)["x"]
    standardise = jax.tree.map(_standardiser, known)

    def prepare(x: PyTree) -> PyTree:
        return jax.tree.map(lambda function, leaf: function(leaf), standardise, x)

    def init(key: Array) -> tuple[Params, PyTree]:
        first = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), known)
        model_state, params = flax.core.pop(network.init(key, prepare(first)), "params")
        return params, model_state or None

    def variables(params: Params, model_state: PyTree) -> Mapping[str, Any]:
        return {"params": params, **(model_state or {})}

    def loss_fn(
        params: Params, model_state: PyTree, batch: Batch, key: Array
    ) -> tuple[Array, PyTree]:
        dropout_key, augment_key = jax.random.split(key)
        x, mixed = _augmented(augment, augment_key, batch["x"])
        output, updated = network.apply(
            variables(params, model_state),
            prepare(x),
            train=True,
            rngs={"dropout": dropout_key},
            mutable=list(model_state or {}),
        )
        if mixed is None:
            return metrics(output, batch)["loss"], updated or None
        targets = {name: value for name, value in batch.items() if name != "x"}
        targets = jax.tree.map(jnp.asarray, targets)
        of_source = jax.vmap(
            lambda ids: metrics(output, jax.tree.map(lambda y: y[ids], targets))["loss"],
            in_axes=1,
            out_axes=1,
        )
        losses = per_source(of_source(mixed.source), mixed.source, mixed.share)
        return losses, updated or None

    def output_fn(params: Params, model_state: PyTree, batch: Batch) -> Array:
        output = network.apply(variables(params, model_state), prepare(batch["x"]), train=False)
        output = jnp.asarray(output)
        return output.astype(jnp.promote_types(output.dtype, jnp.float32))

    def metrics_fn(params: Params, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        return metrics(output_fn(params, model_state, batch), batch)

    def score_fn(params: Params, model_state: PyTree, batch: Batch) -> Array:
        return metrics_fn(params, model_state, batch)["loss"]

    return Task(dataset, init, loss_fn, score_fn, metrics_fn, output_fn=output_fn)


def _augmented(
    augment: Sequence[Augmentation], key: Array, x: PyTree
) -> tuple[PyTree, Mixed | None]:
    """The training view of `x`, and what it is mixed of if it is."""
    mixed = None
    for function, own_key in zip(augment, jax.random.split(key, len(augment)), strict=True):
        x = function(own_key, x)
        if isinstance(x, Mixed):
            if mixed is not None:
                raise ValueError("two augmentations mix images; leave one of them out")
            x, mixed = x.x, x
    return x, mixed


def _standardiser(x: np.ndarray) -> Callable[[Array], Array]:
    """Of bytes: to mean 0 and deviation 1 in each channel of `x`. Of anything else: as it is.

    What comes as floating point, such as the averages of a view, keeps its type.
    """
    if x.dtype != np.uint8:
        return lambda x: x
    values = np.arange(256.0)
    counts = np.stack([_count_bytes(channel) for channel in np.moveaxis(x, -1, 0)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = np.sum(shares * (values[None, :] - mean[:, None]) ** 2, axis=1)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0)).astype(np.float32)
    mean = mean.astype(np.float32)

    def standardise(x: Array) -> Array:
        shape = (1,) * (x.ndim - 1) + mean.shape
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        x = (x.astype(jnp.float32) - mean.reshape(shape)) / deviation.reshape(shape)
        return x.astype(dtype)

    return standardise


def _count_bytes(x: np.ndarray) -> np.ndarray:
    """How often each value occurs, in slices, since counting takes 8 bytes for each."""
    slices = (x[start : start + 10_000] for start in range(0, len(x), 10_000))
    return sum((np.bincount(part.ravel(), minlength=256) for part in slices), np.zeros(256, int))
