"""Language models."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax.base import Array, Batch, Params, PyTree
from isjax.data.dataset import Dataset
from isjax.data.text import BYTES, UNKNOWN
from isjax.tasks._supervised import supervised
from isjax.tasks._task import Augmentation, Network, Task, num_outputs, target
from isjax.training import EvalFn
from isjax.weights import select_tokens

__all__ = ["excess_loss", "language", "predicts_every_token"]

# `(token losses [b, T], batch, key) -> token weights [b, T]`
Select = Callable[[Array, Batch, Array], Array]


def language(
    dataset: Dataset,
    network: Network,
    augment: Sequence[Augmentation] = (),
    pixels: str = "standardised",
    select: Select | None = None,
) -> Task:
    """Makes a task of next-token prediction: cross-entropy in nats, perplexity, bits per byte.

    A negative target is a mask: nothing is predicted there, and its loss is zero. The loss of an
    example is the sum over its targets, divided by one constant: the mean number of targets of a
    training example. The mean over the training examples, and its gradient, are then those of the
    mean over all targets, however unequal the sequences are. Without a mask the loss of an example
    is the mean over its targets.

    The `loss` reported of a part is the mean over its targets; perplexity is exp of it. If each
    token of the vocabulary is a character, or bytes as Latin-1, there is also `bits_per_byte`, by
    the bytes of the targets in UTF-8. An unknown character counts as one byte. An example never
    seen is assumed to lose log(vocabulary), the loss of a uniform guess.

    Args:
        dataset: examples of `{"x", "y"}`, tokens and the tokens that follow, with a vocabulary; see
            `isjax.data.ptb`. `x` is [N, T] int32, `y` [N, T] or [N]; negative tokens are padding.
        network: Flax module, called as `network(x, train=False)`, from `x` [b, T] to logits
            [b, T, words] for a `y` of [b, T], or [b, words] for a `y` of [b].
        augment: as in `classification`.
        pixels: as in `classification`.
        select: `(token losses [b, T], batch, key) -> token weights [b, T]` for training, without
            gradient, such as `excess_loss(keep=0.6)`. A token's loss is multiplied by
            its weight, and that of the example is the sum, by the same constant. None = all ones.

    Returns:
        The task, with `token_losses_fn`; its metrics have a `perplexity` for each part of the data.

    Raises:
        ValueError: if the data set has no `y`, no vocabulary for its tokens, or only negative
            targets for training.
    """
    number = _targets_of_an_example(dataset)
    sizes = _bytes_of_tokens(dataset.vocabulary or ())

    def per_example(values: Array) -> Array:
        return jnp.sum(values.reshape(values.shape[0], -1), axis=1) / number

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        y, known = jnp.maximum(batch["y"], 0), batch["y"] >= 0
        found = {"loss": _token_losses(logits, batch["y"]), "targets": known.astype(jnp.float32)}
        if sizes is not None:
            found["bytes"] = jnp.where(known, jnp.asarray(sizes)[y], 0.0)
        return {name: per_example(values) for name, values in found.items()}

    def loss_of_selected(logits: Array, batch: Batch, key: Array) -> Array:
        losses = _token_losses(logits, batch["y"])
        weights = cast(Select, select)(jax.lax.stop_gradient(losses), batch, key)
        return per_example(losses * weights)

    def summarise(means: dict[str, float]) -> dict[str, float]:
        total, targets, size = (means.get(name, 0.0) for name in ("loss", "targets", "bytes"))
        loss = total / targets if targets else math.nan
        found = {"loss": loss, "perplexity": float(np.exp(loss))}
        return found | ({"bits_per_byte": total / size / math.log(2)} if size else {})

    train_loss = None if select is None else loss_of_selected
    task = supervised(dataset, network, metrics, augment, pixels, train_loss)
    output_fn = cast(EvalFn, task.output_fn)

    def token_losses_fn(params: Params, model_state: PyTree, batch: Batch) -> Array:
        return _token_losses(output_fn(params, model_state, batch), batch["y"])

    return task._replace(
        initial_loss=math.log(num_outputs(dataset)),
        summarise=summarise,
        token_losses_fn=token_losses_fn,
    )


def excess_loss(
    keep: float, *, sampled: bool = False, k: float = 1.0, smoothing: float = 0.0
) -> Select:
    """Chooses the tokens to train on by their excess loss over a reference (arXiv 2404.07965).

    The reference is `batch["reference"]`, the losses of the same targets by a reference model; see
    `isjax.select_tokens`. A masked target is never chosen. Scorers and metrics then see the loss of
    the chosen tokens alone, times their weights.

    Args:
        keep: share of the tokens of a batch, in (0, 1].
        sampled: draw them, in place of the top share.
        k: exponent of the weights if `sampled`, at most 1.
        smoothing: of the probabilities if `sampled`, at least 0.

    Returns:
        A function for `language(select=...)`.
    """

    def select(losses: Array, batch: Batch, key: Array) -> Array:
        return select_tokens(
            losses,
            batch["reference"],
            keep,
            mask=batch["y"] >= 0,
            key=key if sampled else None,
            k=k,
            smoothing=smoothing,
        )

    return select


def _token_losses(logits: Array, y: Array) -> Array:
    """Cross-entropy of each target, of the shape of `y`; zero where it is negative."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
    return jnp.where(y >= 0, losses, 0.0)


def _targets_of_an_example(dataset: Dataset) -> float:
    """The mean number of targets of a training example."""
    y = np.asarray(target("language", dataset, "y"))
    number = np.count_nonzero(y >= 0)
    if not number:
        raise ValueError('each "y" of the training part is negative; give targets to predict')
    return number / len(y)


def _bytes_of_tokens(vocabulary: Sequence[str]) -> np.ndarray | None:
    """Bytes of each token, [V] float32; None unless they are known.

    They are where each byte is a token, so that all tokens are bytes as Latin-1; and where each
    token is a character, in UTF-8.
    """
    if set(BYTES) <= set(vocabulary) and max("".join(vocabulary)) <= BYTES[-1]:
        return np.array([len(token) for token in vocabulary], np.float32)
    if any(len(token) != 1 and token != UNKNOWN for token in vocabulary):
        return None
    return np.array([1 if t == UNKNOWN else len(t.encode()) for t in vocabulary], np.float32)


def predicts_every_token(dataset: Dataset) -> bool:
    """Tells whether a model predicts after each token, `y` [N, T], or only after the last, [N].

    Args:
        dataset: data of a language task.

    Raises:
        ValueError: if the data set has no `y`.
    """
    return np.ndim(target("language", dataset, "y")) > 1
