"""Bundled Flax networks: an MLP, a small convolutional network, the LSTM that predicts losses."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

__all__ = ["CNN", "MLP", "HistoryLSTM"]

# From so many rows on the LSTM's loop over past losses is unrolled: scoring a pool then takes less
# time on a CPU (benchmarks/step_cost.py); a batch is left in its loop, which compiles sooner.
UNROLL_ROWS = 512


class MLP(nn.Module):
    """Dense layers with ReLU between them; the input is flattened.

    Attributes:
        outputs: size of the last layer.
        hidden: sizes of the layers before it.
    """

    outputs: int
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x):
        """[b, ...] -> [b, outputs]."""
        x = x.reshape(x.shape[0], -1)
        for size in self.hidden:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.outputs)(x)


class CNN(nn.Module):
    """Convolutions with ReLU, each followed by max-pooling by 2, then one dense layer.

    One network for signals [b, length, channels] and images [b, height, width, channels].

    Attributes:
        outputs: size of the last layer.
        channels: of each convolution; a spatial axis must divide by 2 ** len(channels).
        kernel: width of the kernels.
        hidden: size of the dense layer before the last.
    """

    outputs: int
    channels: Sequence[int] = (32, 64)
    kernel: int = 5
    hidden: int = 128

    @nn.compact
    def __call__(self, x):
        """[b, ..., channels] -> [b, outputs]."""
        for size in self.channels:
            x = max_pool(nn.relu(nn.Conv(size, (self.kernel,) * (x.ndim - 2))(x)))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs)(x)


def max_pool(x):
    """Maximum over windows of 2 along each spatial axis of [b, ..., channels].

    By reshape, whose gradient is cheaper on a CPU than that of `nn.max_pool`.
    """
    spatial = range(1, x.ndim - 1)
    odd = [axis for axis in spatial if x.shape[axis] % 2]
    if odd:
        raise ValueError(
            f"max_pool halves each spatial axis, but {x.shape} has an odd one; "
            "pad the input, or use fewer channels"
        )
    shape = [x.shape[0]]
    for axis in spatial:
        shape += [x.shape[axis] // 2, 2]
    return jnp.max(x.reshape(*shape, x.shape[-1]), axis=tuple(2 * axis for axis in spatial))


class HistoryLSTM(nn.Module):
    """Predicts an example's next loss from its past losses and its class (arXiv 1706.00043).

    Two stacked LSTMs read the observed losses, oldest first; what was never observed is masked.
    Their last output, concatenated with an embedding of the class, goes through one dense layer.

    Attributes:
        num_classes: size of the class embedding; None = no classes.
        features: units of each LSTM and of the embedding.
    """

    num_classes: int | None = None
    features: int = 32

    @nn.compact
    def __call__(self, history, count, label=None):
        """History [B, H] newest first, count [B], label [B] int -> [B], a real number each."""
        length = jnp.minimum(count, history.shape[1])
        # Newest first to oldest first, with what was observed at the front.
        position = length[:, None] - 1 - jnp.arange(history.shape[1])[None, :]
        outputs = jnp.take_along_axis(history, jnp.maximum(position, 0), axis=1)[:, :, None]
        unroll = history.shape[1] if history.shape[0] >= UNROLL_ROWS else 1
        for _ in range(2):
            layer = nn.RNN(nn.OptimizedLSTMCell(self.features), unroll=unroll)
            outputs = jnp.asarray(layer(outputs))
        last = jnp.maximum(length - 1, 0)[:, None, None]
        summary = jnp.take_along_axis(outputs, last, axis=1)[:, 0]
        summary = jnp.where(length[:, None] > 0, summary, 0.0)
        if self.num_classes is not None:
            label = nn.Embed(self.num_classes, self.features)(label)
            summary = jnp.concatenate([summary, label], axis=-1)
        return nn.Dense(1)(summary)[:, 0]
