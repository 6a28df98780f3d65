"""A decoder-only transformer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from isjax.networks._layers import at_last_token, dropout

__all__ = ["Transformer", "rotate"]

norm = nn.RMSNorm
dense = functools.partial(nn.Dense, use_bias=False)


class Transformer(nn.Module):
    """Decoder-only language model with causal attention.

    A layer is norm, attention, added to its input; then norm, dense, GELU, dense, added. Norms
    come before and not after (pre-norm), and one more before the logits. No layer has biases. With
    d features, L layers and a vocabulary of V, as many as outputs, there are
    V d + L (12 d^2 + 2 d) + d parameters, and d V more unless `tied`, at `expansion=4`.

    For bfloat16 wrap it as `config.precision` does. Softmax and norms then sum in float32.

    Attributes:
        outputs: size of the last layer.
        features: size d of a token's activations.
        layers: number of layers.
        heads: attention heads; each has features / heads entries, an even number if rotary.
        expansion: units between the two dense layers, in multiples of `features`.
        positions: "rotary", which turns queries and keys and sets no limit to the length; or
            "learned", an embedding of each position added to that of the token.
        max_length: longest sequence with learned positions.
        tied: whether the last layer is the embedding, transposed; needs `outputs` as vocabulary.
        dropout: share dropped if `train` of the embeddings and of what each half of a layer adds,
            by the rng "dropout".
        every_position: True = logits after each token; False = after the last token alone.
        vocabulary: number of different tokens in the input; None = `outputs`.
    """

    outputs: int
    features: int = 128
    layers: int = 4
    heads: int = 4
    expansion: int = 4
    positions: str = "rotary"
    max_length: int = 1024
    tied: bool = False
    dropout: float = 0.0
    every_position: bool = True
    vocabulary: int | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Applies the model.

        Args:
            x: [b, T] int tokens; negative ones are padding at the end of a sequence.
            train: whether dropout acts.

        Returns:
            Logits [b, T, outputs] or, without `every_position`, [b, outputs]. Those at padding, and
            those of a sequence of padding alone, are finite but meaningless.

        Raises:
            ValueError: if heads do not divide the features, there are no such positions, the
                sequence is too long for them, a tied vocabulary differs from the outputs, or
                dropout is not in [0, 1).
        """
        self._check(x.shape[1])
        drop = dropout(self.dropout, train)
        tokens = x
        embed = nn.Embed(self.vocabulary or self.outputs, self.features)
        x = embed(jnp.maximum(x, 0))
        if self.positions == "learned":
            table = nn.Embed(self.max_length, self.features, name="positions_table")
            x = x + table(jnp.arange(x.shape[1]))[None]
        x = drop(x)
        for _ in range(self.layers):
            x = x + drop(self._attend(norm()(x)))
            hidden = nn.gelu(dense(self.expansion * self.features)(norm()(x)))
            x = x + drop(dense(self.features)(hidden))
        if not self.every_position:
            x = at_last_token(x, tokens)
        x = norm()(x)
        return embed.attend(x) if self.tied else dense(self.outputs)(x)

    def _attend(self, x):
        """Causal attention, [b, T, features]."""
        shape = (*x.shape[:2], 3, self.heads, self.features // self.heads)
        queries, keys, values = jnp.unstack(dense(3 * self.features)(x).reshape(shape), axis=2)
        if self.positions == "rotary":
            queries, keys = rotate(queries), rotate(keys)
        mixed = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
        return dense(self.features)(mixed.reshape(x.shape))

    def _check(self, length):
        if self.features % self.heads:
            raise ValueError(
                f"Transformer: {self.heads} heads cannot share {self.features} features; choose a "
                "divisor"
            )
        if self.positions not in ("rotary", "learned"):
            raise ValueError(
                f'Transformer: positions is {self.positions!r}; choose "rotary" or "learned"'
            )
        if self.positions == "rotary" and self.features // self.heads % 2:
            raise ValueError(
                f"Transformer: a head has {self.features // self.heads} features, but rotary "
                "positions turn pairs; choose an even number"
            )
        if self.positions == "learned" and length > self.max_length:
            raise ValueError(
                f"Transformer: a sequence has {length} tokens, but max_length is "
                f'{self.max_length}; raise it, or choose positions "rotary"'
            )
        if self.tied and self.vocabulary not in (None, self.outputs):
            raise ValueError(
                f"Transformer: tied, with a vocabulary of {self.vocabulary} and {self.outputs} "
                "outputs; both must be the same number"
            )


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions: turns pairs of entries by angles that grow with the position.

    Entries i and i + D/2 at position t are turned by t 10000^(-2 i / D), so that the product of a
    query and a key depends on the distance between them alone.

    Args:
        x: [b, T, heads, D] float, D even.

    Returns:
        [b, T, heads, D], of the same type.
    """
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequency[None, :]
    sin, cos = (f(angle)[None, :, None, :].astype(x.dtype) for f in (jnp.sin, jnp.cos))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
