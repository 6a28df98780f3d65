"""The learned scorer: a small model that predicts an example's loss from its past."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax.base import Array, Batch, PyTree, Rows, Scorer
from isjax.scorers._rows import labels_of

__all__ = [
    "Network",
    "coarse_features",
    "features_mlp",
    "history_lstm",
    "history_mlp",
    "learned",
]


class Network(NamedTuple):
    """A network over rows, for `learned`.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, rows) -> [B]`, a real number for each row.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Rows], Array]


class LearnedState(NamedTuple):
    """The scorer's own model, trained beside the main one, and [] int32 how often it could be."""

    params: PyTree
    opt_state: optax.OptState
    step: Array


def learned(
    network: Network | None = None,
    optimizer: optax.GradientTransformation | None = None,
    *,
    num_classes: int | None = None,
    label_fn: Callable[[Batch], Array] | None = None,
    history: int = 10,
    log_losses: bool = False,
    train_every: int = 1,
) -> Scorer:
    """A small model predicts the loss from the past, trained in parallel (arXiv 1706.00043).

    Each update, or one in `train_every`, is one optimiser step on the squared error between the
    predictions for the batch just trained, from its rows before write-back, and the losses just
    observed. Examples never seen score `initial_loss`, which their history holds.

    Args:
        network: an `(init, apply)` pair over rows (see `Network`); by default the paper's LSTM.
        optimizer: of the network; by default `optax.adam(1e-3)`.
        num_classes: classes, numbered from 0, that the default network embeds; None = it reads
            losses alone.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        history: H, the past losses that the network reads; 0 = it goes by `rows.batch` alone, and
            nothing is remembered of any example: for a stream, with a `network` such as
            `features_mlp`.
        log_losses: predict log losses: errors then count in proportion.
        train_every: updates from one optimiser step to the next.

    Raises:
        ValueError: if `history` is negative, or 0 for the default network, `train_every` is not
            positive, or `num_classes` is given beside a `network`.
    """
    if history < 0 or (network is None and history == 0):
        raise ValueError(
            f"scorers.learned: history is {history}; the default network reads at least 1 loss, "
            "and one that reads the batch alone is to be given as network="
        )
    if train_every < 1:
        raise ValueError(f"scorers.learned: train_every is {train_every}; choose 1 or more")
    if network is None:
        network = history_lstm(history, num_classes, label_fn)
    elif num_classes is not None or label_fn is not None:
        raise ValueError(
            "scorers.learned: num_classes and label_fn are for the default network; "
            "leave them out and let your network read rows.batch"
        )
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer

    def compared(output: Array) -> Array:
        return output if log_losses else jax.nn.softplus(output)

    def target(losses: Array) -> Array:
        return jnp.log(jnp.maximum(losses, 1e-6)) if log_losses else losses

    def init(key: Array) -> LearnedState:
        params = network.init(key)
        return LearnedState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def score(state: LearnedState, rows: Rows) -> Array:
        predicted = compared(network.apply(state.params, rows))
        if log_losses:
            predicted = jnp.exp(jnp.minimum(predicted, 80.0))
        if not history:
            return predicted
        return jnp.where(rows.count > 0, predicted, jnp.maximum(rows.history[:, 0], 0.0))

    def update(state: LearnedState, rows: Rows, losses: Array) -> LearnedState:
        def squared_error(params: PyTree) -> Array:
            error = compared(network.apply(params, rows)) - target(losses)
            return jnp.mean(jnp.square(jnp.where(jnp.isfinite(losses), error, 0.0)))

        def train() -> LearnedState:
            grads = jax.grad(squared_error)(state.params)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return LearnedState(params, opt_state, state.step + 1)

        if train_every == 1:
            return train()
        due = state.step % train_every == 0
        return jax.lax.cond(due, train, lambda: state._replace(step=state.step + 1))

    return Scorer(init, score, update, history)


def history_lstm(
    history: int = 10,
    num_classes: int | None = None,
    label_fn: Callable[[Batch], Array] | None = None,
) -> Network:
    """The paper's network: two stacked LSTMs over the past losses, with the class.

    Args:
        history: H, the past losses that it reads.
        num_classes: classes, numbered from 0; None = it reads none.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
    """
    networks = _networks()
    return _of_rows(
        networks.HistoryLSTM(num_classes),
        lambda rows: (rows.history, rows.count),
        (jnp.zeros((1, history), jnp.float32), jnp.zeros((1,), jnp.int32)),
        num_classes,
        label_fn,
    )


def history_mlp(
    history: int = 3,
    num_classes: int | None = None,
    label_fn: Callable[[Batch], Array] | None = None,
) -> Network:
    """A network of one small hidden layer over past losses, count, age and class.

    Far fewer operations than `history_lstm` (benchmarks/step_cost.py); arguments as there.
    """
    networks = _networks()
    none = jnp.zeros((1,), jnp.int32)
    return _of_rows(
        networks.HistoryMLP(num_classes),
        lambda rows: (rows.history, rows.count, rows.age),
        (jnp.zeros((1, history), jnp.float32), none, none),
        num_classes,
        label_fn,
    )


def features_mlp(
    features: Callable[[Batch], Array], num_features: int, hidden: tuple[int, ...] = (64,)
) -> Network:
    """A small proxy of the main model: dense layers over features of the example itself.

    For streams, of whose examples nothing is remembered: `learned(features_mlp(...), history=0)`.

    Args:
        features: `(batch) -> [B, num_features]`, of about unit scale, cheap to compute.
        num_features: of an example.
        hidden: sizes of the hidden layers.

    Raises:
        ValueError: when it is to score or to learn, if there is no batch, or its features are not
            of the shape above.
    """
    module = _networks().MLP(outputs=1, hidden=hidden)

    def apply(params: PyTree, rows: Rows) -> Array:
        if rows.batch is None:
            raise ValueError(
                "scorers.features_mlp reads features of the batch, but got none; "
                "pass batch= to sampler.sample and sampler.update"
            )
        inputs, wanted = features(rows.batch), (rows.count.shape[0], num_features)
        if jnp.shape(inputs) != wanted:
            raise ValueError(
                f"scorers.features_mlp got features of shape {jnp.shape(inputs)}; return one row "
                f"of num_features = {num_features} for each example, shape {wanted}"
            )
        return jnp.asarray(module.apply(params, inputs))[:, 0]

    return Network(lambda key: module.init(key, jnp.zeros((1, num_features), jnp.float32)), apply)


def coarse_features(
    num_classes: int, label_fn: Callable[[Batch], Array] | None = None, cells: int = 8
) -> Callable[[Batch], Array]:
    """What an example looks like from afar, and its class, for `features_mlp`.

    Images [B, H, W, C] as their means over a grid of at most `cells` x `cells`, any other `x` of
    floating point as it is; bytes as x / 64 - 2.

    Args:
        num_classes: classes, numbered from 0.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        cells: along each side of an image.

    Returns:
        `(batch) -> [B, features]` float32, of a batch whose `"x"` is one array.

    Raises:
        ValueError: when called, if `"x"` is neither floating point nor bytes.
    """

    def features(batch: Batch) -> Array:
        x = batch["x"]
        dtype = getattr(x, "dtype", None)
        if dtype is None or not (dtype == jnp.uint8 or jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(
                'scorers.coarse_features needs batch["x"] to be one array of floating point or '
                f"bytes, but it is {dtype or type(x).__name__}; write features of your own"
            )
        label = batch["label"] if label_fn is None else label_fn(batch)
        number, scaled = x.shape[0], x.astype(jnp.float32)
        scaled = scaled / 64 - 2 if dtype == jnp.uint8 else scaled
        if x.ndim == 4:
            rows, columns = (_means(size, min(size, cells)) for size in x.shape[1:3])
            scaled = jnp.einsum("hH,wW,bHWc->bhwc", rows, columns, scaled)
        return jnp.concatenate(
            [scaled.reshape(number, -1), jax.nn.one_hot(label, num_classes)], axis=1
        )

    return features


def _means(size: int, cells: int) -> np.ndarray:
    """[cells, size], by which a vector becomes the means over equal stretches of it."""
    member = np.arange(size) * cells // size == np.arange(cells)[:, None]
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)


def _networks() -> Any:
    try:
        from isjax import networks
    except ImportError as error:
        raise ImportError(
            "the networks of scorers.learned need flax: pip install flax, or pass network="
        ) from error
    return networks


def _of_rows(
    module: Any,
    inputs: Callable[[Rows], tuple],
    example: tuple,
    num_classes: int | None,
    label_fn: Callable[[Batch], Array] | None,
) -> Network:
    """A Flax module of some inputs and classes as a network over rows."""

    def labels(rows: Rows) -> Array | None:
        return None if num_classes is None else labels_of(rows, label_fn, "scorers.learned")

    return Network(
        init=lambda key: module.init(key, *example, jnp.zeros((1,), jnp.int32)),
        apply=lambda params, rows: jnp.asarray(module.apply(params, *inputs(rows), labels(rows))),
    )
