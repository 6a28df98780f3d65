"""Networks for images, signals and flat inputs."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from isjax.networks._layers import dropout, one_for_each_layer

__all__ = ["CNN", "MLP", "VGG", "WideResNet", "max_pool"]


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
        """Applies the network.

        Args:
            x: [b, ...] float.
            train: has no effect.

        Returns:
            [b, outputs].

        Raises:
            TypeError: if hidden is a number and not a sequence.
        """
        x = x.reshape(x.shape[0], -1)
        for size in one_for_each_layer("MLP: hidden", self.hidden):
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.outputs)(x)


class CNN(nn.Module):
    """Convolutions with ReLU, each followed by max-pooling by 2, then two dense layers.

    It takes signals [b, length, channels] and images [b, height, width, channels].

    Attributes:
        outputs: size of the last layer.
        channels: of each convolution; 2 ** len(channels) must divide each spatial axis.
        kernel: width of the kernels.
        hidden: size of the dense layer before the last.
        pooled: whether the dense layers read the mean over all positions; one network then takes
            images of any size that divides as above.
    """

    outputs: int
    channels: Sequence[int] = (32, 64)
    kernel: int = 5
    hidden: int = 128
    pooled: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Applies the network.

        Args:
            x: [b, ..., channels] float, of one or two spatial axes.
            train: has no effect.

        Returns:
            [b, outputs].

        Raises:
            TypeError: if channels is a number and not a sequence.
            ValueError: if a spatial axis cannot be halved for each convolution.
        """
        for size in one_for_each_layer("CNN: channels", self.channels):
            x = max_pool(nn.relu(nn.Conv(size, (self.kernel,) * (x.ndim - 2))(x)))
        if self.pooled:
            x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs)(x)


def max_pool(x: jax.Array) -> jax.Array:
    """Halves each spatial axis by the maximum over windows of 2.

    It compares pairs: the gradient of that is cheaper on a CPU than the gradient of `nn.max_pool`.
    The gradient of `jnp.max` is not safe here. It divides by the number of entries equal to the
    maximum, which XLA may compute twice with different rounding, as behind batch norm: 0 / 0.

    Args:
        x: [b, ..., channels].

    Returns:
        [b, ..., channels], each spatial axis of half the length.

    Raises:
        ValueError: if a spatial axis is odd.
    """
    spatial = range(1, x.ndim - 1)
    odd = [axis for axis in spatial if x.shape[axis] % 2]
    if odd:
        raise ValueError(
            f"max_pool halves each spatial axis, but shape {x.shape} has an odd one; "
            "pad the input, or pass fewer channels"
        )
    for axis in spatial:
        shape = x.shape
        pairs = x.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
        first, second = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
        # The first of equals, and NaN if either is.
        x = jnp.where((first >= second) | jnp.isnan(first), first, second)
    return x


class VGG(nn.Module):
    """Pairs of 3 x 3 convolutions, each pair pooled and dropped, then dense layers with dropout.

    These are the convolutional networks of the authors' code of July 2017 (arXiv 1706.00043): with
    the defaults their `cnn`; with `width=32, groups=2, hidden=(16, 16), norm="none"` their
    `small_cnn`. As there, batch norm follows the ReLU, and weights begin as in Keras. Like `CNN`,
    it takes signals [b, length, channels] too.

    Attributes:
        outputs: size of the last layer.
        width: channels of the first pair; each further pair has twice as many.
        groups: pairs; 2 ** groups must divide each spatial axis.
        hidden: sizes of the dense layers before the last, in multiples of `width`.
        norm: "batch", with running averages of decay 0.99 in the collection "batch_stats", which
            change only if `train`; or "none".
        dropout: share dropped after each pair if `train`, by the rng "dropout".
        dense_dropout: share dropped after each hidden dense layer.
    """

    outputs: int
    width: int = 64
    groups: int = 3
    hidden: Sequence[int] = (16, 8)
    norm: str = "batch"
    dropout: float = 0.25
    dense_dropout: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Applies the network.

        Args:
            x: [b, height, width, channels] or [b, length, channels] float.
            train: whether dropout acts, and batch norm uses the statistics of the batch.

        Returns:
            [b, outputs].

        Raises:
            TypeError: if hidden is a number and not a sequence.
            ValueError: if norm or a dropout is none of those above, or a spatial axis cannot be
                halved for each pair.
        """
        if self.norm not in ("batch", "none"):
            raise ValueError(f'VGG: norm is {self.norm!r}; choose "batch" or "none"')
        hidden = one_for_each_layer("VGG: hidden", self.hidden)
        drop, drop_dense = dropout(self.dropout, train), dropout(self.dense_dropout, train)
        init = nn.initializers.glorot_uniform()
        kernel = (3,) * (x.ndim - 2)
        for group in range(self.groups):
            for _ in range(2):
                x = nn.relu(nn.Conv(self.width * 2**group, kernel, kernel_init=init)(x))
                if self.norm == "batch":
                    x = nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3)(x)
            x = drop(max_pool(x))
        x = x.reshape(x.shape[0], -1)
        for size in hidden:
            x = drop_dense(nn.relu(nn.Dense(size * self.width, kernel_init=init)(x)))
        return nn.Dense(self.outputs, kernel_init=init)(x)


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-width with pre-activation (arXiv 1605.07146).

    It has three groups of (depth - 4) / 6 blocks; the last two groups halve each spatial axis. A
    block is norm, ReLU, 3 x 3 convolution, norm, ReLU, dropout, 3 x 3 convolution, added to its
    input. Like `CNN`, it takes signals [b, length, channels] too.

    Attributes:
        outputs: size of the last layer.
        depth: 4 + 6 times the blocks of a group: 10, 16, 22, 28, ...
        width: factor of the 16, 32 and 64 channels of the groups.
        norm: "group", over 8 groups of channels of each example, without state; or "batch", with
            running averages in the collection "batch_stats", which change only if `train`.
        dropout: share of a block's inner activations dropped if `train`, by the rng "dropout".
    """

    outputs: int
    depth: int = 28
    width: int = 2
    norm: str = "group"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Applies the network.

        Args:
            x: [b, height, width, channels] or [b, length, channels] float.
            train: whether dropout acts, and batch norm uses the statistics of the batch.

        Returns:
            [b, outputs].

        Raises:
            ValueError: if depth, norm or dropout is none of those above.
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
                    # As in the authors' code, the projection reads the activated input.
                    x = convolve(active, channels, kernel=1, stride=stride)
                x = x + convolve(inner, channels)
        x = jnp.mean(activate(x), axis=tuple(range(1, x.ndim - 1)))
        return nn.Dense(self.outputs)(x)
