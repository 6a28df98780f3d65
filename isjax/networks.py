"""Bundled Flax networks, and the LSTM that predicts losses.

`MLP`, `CNN`, `WideResNet` (images) and `LSTM` (language) take `(x, train=False)`, which all share
although only dropout and batch norm read `train`. `HistoryLSTM` and `HistoryMLP` are parts of a
scorer.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

__all__ = ["CNN", "LSTM", "MLP", "HistoryLSTM", "HistoryMLP", "WideResNet"]

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
    def __call__(self, x, train: bool = False):
        """[b, ...] -> [b, outputs]; `train` is there for the common signature."""
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
        pooled: the dense layers read the mean over all places, so that one network takes images of
            any size that divides as above.
    """

    outputs: int
    channels: Sequence[int] = (32, 64)
    kernel: int = 5
    hidden: int = 128
    pooled: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[b, ..., channels] -> [b, outputs]; `train` is there for the common signature."""
        for size in self.channels:
            x = max_pool(nn.relu(nn.Conv(size, (self.kernel,) * (x.ndim - 2))(x)))
        if self.pooled:
            x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
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


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-width with pre-activation (arXiv 1605.07146).

    Three groups of (depth - 4) / 6 blocks, the last two halving each spatial axis. A block is
    norm, ReLU, 3 x 3 convolution, norm, ReLU, dropout, 3 x 3 convolution, added to its input.
    Like CNN, it also takes signals [b, length, channels].

    Attributes:
        outputs: size of the last layer.
        depth: 4 + 6 times the blocks of a group: 10, 16, 22, 28, ...
        width: factor of the 16, 32 and 64 channels of the groups.
        norm: "group", 8 groups of channels of each example, without state; or "batch", whose
            running averages are the collection "batch_stats", changed by `train` alone.
        dropout: share of a block's inner activations dropped by `train`, with rng "dropout".
    """

    outputs: int
    depth: int = 28
    width: int = 2
    norm: str = "group"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[b, height, width, channels] -> [b, outputs].

        Raises:
            ValueError: depth, norm or dropout is not one of those above.
        """
        blocks, rest = divmod(self.depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f"WideResNet: depth is {self.depth}; choose 10, 16, 22, 28, 34, ...")
        if self.norm not in ("group", "batch"):
            raise ValueError(f'WideResNet: norm is {self.norm!r}; choose "group" or "batch"')
        drop = dropout(self.dropout, train)

        def activate(x):
            if self.norm == "group":
                return nn.relu(nn.GroupNorm(num_groups=8)(x))
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

        def convolve(x, channels, kernel=3, stride=1):
            spatial = x.ndim - 2
            return nn.Conv(
                channels,
                (kernel,) * spatial,
                stride,
                padding=kernel // 2,
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
            )(x)

        x = convolve(x, 16)
        for group in range(3):
            channels = 16 * 2**group * self.width
            for block in range(blocks):
                stride = 2 if group > 0 and block == 0 else 1
                active = activate(x)
                inner = drop(activate(convolve(active, channels, stride=stride)))
                if x.shape[-1] != channels:
                    # As in the authors' code: a projection reads the activated input.
                    x = convolve(active, channels, kernel=1, stride=stride)
                x = x + convolve(inner, channels)
        x = jnp.mean(activate(x), axis=tuple(range(1, x.ndim - 1)))
        return nn.Dense(self.outputs)(x)


class LSTM(nn.Module):
    """Language model: an embedding, stacked LSTMs, a dense layer.

    Dropout acts on the connections that are not recurrent: before each LSTM and before the dense
    layer (arXiv 1409.2329).

    Attributes:
        outputs: size of the last layer.
        features: units of each LSTM.
        layers: number of LSTMs.
        embedding: size of a token's embedding.
        dropout: share of the activations dropped by `train`, with rng "dropout".
        every_position: True = logits after each token; False = after each row's last token alone.
        vocabulary: of the tokens read; None = `outputs`, as where the next token is predicted.
    """

    outputs: int
    features: int = 200
    layers: int = 2
    embedding: int = 200
    dropout: float = 0.0
    every_position: bool = True
    vocabulary: int | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Tokens [b, T] int, negative = padding at the end of a row -> [b, T or none, outputs].

        What stands at the positions of padding is finite and means nothing, as do the logits of a
        row of padding alone.

        Raises:
            ValueError: dropout is not in [0, 1).
        """
        drop = dropout(self.dropout, train)
        last = jnp.maximum(jnp.sum(x >= 0, axis=1) - 1, 0)
        x = nn.Embed(self.vocabulary or self.outputs, self.embedding)(jnp.maximum(x, 0))
        for _ in range(self.layers):
            x = jnp.asarray(nn.RNN(nn.OptimizedLSTMCell(self.features))(drop(x)))
        if not self.every_position:
            x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return nn.Dense(self.outputs)(drop(x))


def dropout(rate, train):
    """A function that applies dropout if `train`, each time with another mask."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout is {rate}; choose a share in [0, 1)")
    return lambda x: nn.Dropout(rate, deterministic=not train)(x)


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


class HistoryMLP(nn.Module):
    """Predicts an example's next loss from its last losses, how often and how long ago seen, class.

    Past losses enter as log(loss + 0.01), in which their decades are alike far apart; with them
    the logarithms of count and age, and an embedding of the class. One hidden layer.

    Attributes:
        num_classes: size of the class embedding; None = no classes.
        features: of the hidden layer.
        embedding: size of a class's embedding.
    """

    num_classes: int | None = None
    features: int = 16
    embedding: int = 4

    @nn.compact
    def __call__(self, history, count, age, label=None):
        """History [B, H] newest first, count, age [B], label [B] int -> [B], a real number each."""
        seen = jnp.arange(history.shape[1])[None, :] < count[:, None]
        past = jnp.where(seen, jnp.log(jnp.maximum(history, 0.0) + 0.01), 0.0)
        visits = jnp.stack([jnp.log1p(count), jnp.log1p(age)], axis=1) / 4
        x = jnp.concatenate([past, seen, visits], axis=1)
        if self.num_classes is not None:
            x = jnp.concatenate([x, nn.Embed(self.num_classes, self.embedding)(label)], axis=1)
        x = nn.relu(nn.Dense(self.features)(x))
        return nn.Dense(1)(x)[:, 0]
