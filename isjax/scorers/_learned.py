"""The learned scorer, a small model that predicts losses, and the networks that read histories."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from isjax.base import Array, PyTree, Rows, Scorer
from isjax.scorers._common import LabelFn

__all__ = ["HistoryLSTM", "HistoryMLP", "Network", "history_lstm", "history_mlp", "learned"]

# From this many examples on a CPU unrolls the LSTM's loop over past losses, and takes less time
# (benchmarks/step_cost.py). On an accelerator a loop takes twice as many kernels.
UNROLL_FROM = 512


class Network(NamedTuple):
    """A network that predicts losses, for `learned`.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, rows) -> [B]`, a real number for each of B examples.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Rows], Array]


class LearnedState(NamedTuple):
    """State of `learned`.

    Attributes:
        params: of the network.
        opt_state: of its optimiser.
        step: [] int32 updates so far, those without an optimiser step included.
    """

    params: PyTree
    opt_state: optax.OptState
    step: Array


def learned(
    network: Network | None = None,
    optimizer: optax.GradientTransformation | None = None,
    *,
    num_classes: int | None = None,
    label_fn: LabelFn | None = None,
    history: int = 10,
    log_losses: bool = False,
    linear: bool = False,
    initial_observed: bool = False,
    train_every: int = 1,
) -> Scorer:
    """The loss that a small model predicts, trained beside the main one (arXiv 1706.00043).

    Each update is one optimiser step on the squared error between the predictions for the batch
    and its losses. Predictions are from the rows as they were before the losses were written back.
    Losses that are not finite are left out. Examples never seen score `initial_loss`, unless that
    counts as observed.

    Use it where losses can be predicted from the past. It costs the network on the pool, and its
    gradient on the batch; the main model makes no pass for it.

    Args:
        network: predicts a number for each example, see `Network`; by default `history_lstm`, the
            paper's LSTM.
        optimizer: of the network; by default `optax.adam(1e-3)`, over all parameters as one array.
        num_classes: classes, numbered from 0, that the default network embeds; None = it reads
            losses alone.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.
        history: H, the past losses that the network reads. 0 = it reads `rows.batch` alone, and
            nothing is remembered of any example: for a stream, with a `network` such as
            `features_mlp`.
        log_losses: predict log losses, so that errors count in proportion to the loss.
        linear: the network's output is itself the loss predicted, and scores are clamped at 0, as
            in the authors' code; else it goes through a softplus.
        initial_observed: `initial_loss` counts as the first loss observed, as in the authors' code:
            the network reads it, and predicts the loss of examples never seen, too.
        train_every: updates from one optimiser step to the next.

    Returns:
        A `Scorer` that keeps H losses for each example. `sample` and `update` need `batch` if the
        network reads it, as for classes.

    Raises:
        ValueError: if `history` is negative, or 0 for the default network; if `train_every` is not
            positive; if `num_classes` or `label_fn` is given beside a `network`; or if both
            `log_losses` and `linear` are given, or `initial_observed` without a history.
    """
    if history < 0 or (network is None and history == 0):
        raise ValueError(
            f"scorers.learned: history is {history}; choose 1 or more for the default network, or "
            "0 with network= for one that reads the batch alone"
        )
    if log_losses and linear:
        raise ValueError("scorers.learned: log_losses and linear exclude each other; give one")
    if initial_observed and not history:
        raise ValueError(
            "scorers.learned: with history 0 there is no loss to count; leave out initial_observed"
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
    optimizer = optax.with_extra_args_support(optimizer or optax.flatten(optax.adam(1e-3)))

    def predict(params: PyTree, rows: Rows) -> Array:
        """The loss, or its logarithm if `log_losses`."""
        output = network.apply(params, with_initial(rows))
        return output if log_losses or linear else jax.nn.softplus(output)

    def with_initial(rows: Rows) -> Rows:
        # Entries not yet observed hold the initial loss, so that one more count includes it.
        return rows._replace(count=rows.count + 1) if initial_observed else rows

    def init(key: Array) -> LearnedState:
        params = network.init(key)
        return LearnedState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def score(state: LearnedState, rows: Rows) -> Array:
        predicted = predict(state.params, rows)
        if log_losses:
            predicted = jnp.exp(jnp.minimum(predicted, 80.0))
        predicted = jnp.maximum(predicted, 0.0) if linear else predicted
        if not history or initial_observed:
            return predicted
        return jnp.where(rows.count > 0, predicted, jnp.maximum(rows.history[:, 0], 0.0))

    def update(state: LearnedState, rows: Rows, losses: Array) -> LearnedState:
        target = jnp.log(jnp.maximum(losses, 1e-6)) if log_losses else losses

        def squared_error(params: PyTree) -> Array:
            error = predict(params, rows) - target
            return jnp.mean(jnp.square(jnp.where(jnp.isfinite(losses), error, 0.0)))

        def train() -> LearnedState:
            error, grads = jax.value_and_grad(squared_error)(state.params)
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                updates, opt_state = optimizer.update(
                    grads, state.opt_state, state.params, value=error
                )
            params = optax.apply_updates(state.params, updates)
            return LearnedState(params, opt_state, state.step + 1)

        if train_every == 1:
            return train()
        due = state.step % train_every == 0
        return jax.lax.cond(due, train, lambda: state._replace(step=state.step + 1))

    return Scorer(init, score, update, history)


class HistoryLSTM(nn.Module):
    """Predicts an example's next loss from its past losses and its class (arXiv 1706.00043).

    Two stacked LSTMs read the observed losses, oldest first; losses never observed are masked. The
    last output is concatenated with an embedding of the class, and goes through one dense layer.

    Attributes:
        num_classes: classes of the embedding; None = the class is not read.
        features: units of each LSTM and of the embedding.
    """

    num_classes: int | None = None
    features: int = 32

    @nn.compact
    def __call__(self, history, count, label=None):
        """Predicts a real number for each example.

        Args:
            history: [B, H] float32 past losses, newest first.
            count: [B] int32 times observed.
            label: [B] int classes; read if `num_classes` is given.

        Returns:
            [B] float32.
        """
        length = jnp.minimum(count, history.shape[1])
        # Newest first to oldest first; the observed losses stand at the front.
        position = length[:, None] - 1 - jnp.arange(history.shape[1])[None, :]
        losses = jnp.take_along_axis(history, jnp.maximum(position, 0), axis=1)
        outputs = _StackedLSTM(self.features)(losses.T)
        summary = outputs[jnp.maximum(length - 1, 0), jnp.arange(length.shape[0])]
        summary = jnp.where(length[:, None] > 0, summary, 0.0)
        if self.num_classes is not None:
            label = nn.Embed(self.num_classes, self.features)(label)
            summary = jnp.concatenate([summary, label], axis=-1)
        return nn.Dense(1)(summary)[:, 0]


class _StackedLSTM(nn.Module):
    """Outputs of the second of two stacked LSTMs, at each step.

    The second reads one loss while the first reads the next: both then multiply the first one's
    output at once, and one loop serves both. The gates (input, forget, cell, output) of an LSTM
    share two matrices; Flax's cells have eight, and take longer to compile.
    """

    features: int

    @nn.compact
    def __call__(self, losses):
        """Maps losses [T, B] to outputs [T, B, features]."""
        size = self.features

        def parameters(layer, inputs):
            return (
                self.param(f"kernel_{layer}", nn.initializers.lecun_normal(), (inputs, 4 * size)),
                self.param(f"recurrent_{layer}", _orthogonal_gates, size),
                self.param(f"bias_{layer}", nn.initializers.zeros, (1, 4 * size)),
            )

        kernel, recurrent, bias = parameters(0, 1)
        kernel_2, recurrent_2, bias_2 = parameters(1, size)
        of_output = jnp.concatenate([recurrent, kernel_2], axis=1)

        def first(loss, before, from_output):
            return _cell(before[0], loss[:, None] * kernel + from_output + bias)

        def second(before, from_first):
            return _cell(before[0], from_first + before[1] @ recurrent_2 + bias_2)

        def step(carry, loss):
            lower, upper = carry
            to_lower, to_upper = jnp.split(lower[1] @ of_output, 2, axis=1)
            lower, upper = first(loss, lower, to_lower), second(upper, to_upper)
            return (lower, upper), upper[1]

        zeros = jnp.zeros((losses.shape[1], size))
        lower = first(losses[0], (zeros, zeros), 0.0)
        unroll = losses.shape[1] >= UNROLL_FROM or jax.default_backend() != "cpu"
        (lower, upper), outputs = jax.lax.scan(
            step, (lower, (zeros, zeros)), losses[1:], unroll=True if unroll else 1
        )
        _, last = second(upper, lower[1] @ kernel_2)
        return jnp.concatenate([outputs, last[None]])


def _cell(cell: Array, gates: Array) -> tuple[Array, Array]:
    """A step of an LSTM: the new cell and output [B, size], of gates [B, 4 size]."""
    i, f, g, o = jnp.split(gates, 4, axis=1)
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    return cell, nn.sigmoid(o) * jnp.tanh(cell)


def _orthogonal_gates(key: Array, size: int) -> Array:
    """Four random orthogonal matrices [size, size], side by side."""
    orthogonal = lambda key: nn.initializers.orthogonal()(key, (size, size))  # noqa: E731
    return jnp.concatenate(jax.vmap(orthogonal)(jax.random.split(key, 4)), axis=1)


def history_lstm(
    history: int = 10, num_classes: int | None = None, label_fn: LabelFn | None = None
) -> Network:
    """The paper's network, `HistoryLSTM`, for `learned` (arXiv 1706.00043).

    Args:
        history: H, the past losses that it reads.
        num_classes: classes, numbered from 0; None = it reads no class.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.

    Returns:
        A `Network`.
    """
    return _of_module(
        HistoryLSTM(num_classes),
        lambda rows: (rows.history, rows.count),
        (jnp.zeros((1, history), jnp.float32), jnp.zeros((1,), jnp.int32)),
        num_classes,
        label_fn,
    )


class HistoryMLP(nn.Module):
    """Predicts an example's next loss from its last losses, its count, its age and its class.

    The inputs are log(loss + 0.01) of each past loss, whether it was observed, the logarithms of
    count and age, and an embedding of the class. One hidden layer follows.

    Attributes:
        num_classes: classes of the embedding; None = the class is not read.
        features: units of the hidden layer.
        embedding: size of a class's embedding.
    """

    num_classes: int | None = None
    features: int = 16
    embedding: int = 4

    @nn.compact
    def __call__(self, history, count, age, label=None):
        """Predicts a real number for each example.

        Args:
            history: [B, H] float32 past losses, newest first.
            count: [B] int32 times observed.
            age: [B] int32 draws since last observed.
            label: [B] int classes; read if `num_classes` is given.

        Returns:
            [B] float32.
        """
        seen = jnp.arange(history.shape[1])[None, :] < count[:, None]
        past = jnp.where(seen, jnp.log(jnp.maximum(history, 0.0) + 0.01), 0.0)
        visits = jnp.stack([jnp.log1p(count), jnp.log1p(age)], axis=1) / 4
        x = jnp.concatenate([past, seen.astype(past.dtype), visits], axis=1)
        if self.num_classes is not None:
            x = jnp.concatenate([x, nn.Embed(self.num_classes, self.embedding)(label)], axis=1)
        x = nn.relu(nn.Dense(self.features)(x))
        return nn.Dense(1)(x)[:, 0]


def history_mlp(
    history: int = 3, num_classes: int | None = None, label_fn: LabelFn | None = None
) -> Network:
    """A cheaper network, `HistoryMLP`, for `learned`.

    It takes far fewer operations than `history_lstm` (benchmarks/step_cost.py).

    Args:
        history: H, the past losses that it reads.
        num_classes: classes, numbered from 0; None = it reads no class.
        label_fn: `(batch) -> classes [B] int`; by default `batch["label"]`.

    Returns:
        A `Network`.
    """
    none = jnp.zeros((1,), jnp.int32)
    return _of_module(
        HistoryMLP(num_classes),
        lambda rows: (rows.history, rows.count, rows.age),
        (jnp.zeros((1, history), jnp.float32), none, none),
        num_classes,
        label_fn,
    )


def _of_module(
    module: nn.Module,
    inputs: Callable[[Rows], tuple],
    example: tuple,
    num_classes: int | None,
    label_fn: LabelFn | None,
) -> Network:
    """A `Network` of a Flax module that reads `inputs` and, with `num_classes`, the class."""

    def labels(rows: Rows) -> Array | None:
        return None if num_classes is None else labels_of(rows, label_fn, "scorers.learned")

    return Network(
        init=lambda key: module.init(key, *example, jnp.zeros((1,), jnp.int32)),
        apply=lambda params, rows: jnp.asarray(module.apply(params, *inputs(rows), labels(rows))),
    )


def labels_of(rows: Rows, label_fn: LabelFn | None, name: str) -> Array:
    """Classes of the examples.

    Args:
        rows: with a batch.
        label_fn: `(batch) -> classes [B] int`; None = `batch["label"]`.
        name: of the scorer, for the message.

    Returns:
        [B] int.

    Raises:
        ValueError: if the batch or its classes are missing, or not one integer per example.
    """
    if rows.batch is None:
        raise ValueError(
            f"{name} reads classes from the batch, but got none; "
            "pass batch= to sampler.sample and sampler.update"
        )
    try:
        labels = rows.batch["label"] if label_fn is None else label_fn(rows.batch)
    except (KeyError, TypeError, IndexError):
        if label_fn is not None:
            raise
        raise ValueError(
            f'{name} reads classes from batch["label"], but this batch has no "label"; '
            "pass label_fn=, a function of the batch"
        ) from None
    if labels.shape != rows.count.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} got labels of shape {labels.shape} and type {labels.dtype}; "
            f"it needs one integer per example, shape {rows.count.shape}"
        )
    return labels
