"""A recurrent language model."""

import flax.linen as nn
import jax.numpy as jnp

from isjax.networks._layers import at_last_token, dropout

__all__ = ["LSTM"]


class LSTM(nn.Module):
    """Language model of an embedding, stacked LSTMs and a dense layer.

    Dropout acts on the connections that are not recurrent: before each LSTM and before the dense
    layer (arXiv 1409.2329). Without `drop_embedding` it spares the input of the first LSTM.

    Attributes:
        outputs: size of the last layer.
        features: units of each LSTM.
        layers: number of LSTMs.
        embedding: size of a token's embedding.
        dropout: share of the activations dropped if `train`, by the rng "dropout".
        drop_embedding: whether dropout acts on the embeddings, too.
        every_position: True = logits after each token; False = after the last token alone.
        vocabulary: number of different tokens in the input; None = `outputs`, for a model that
            predicts the next token.
    """

    outputs: int
    features: int = 200
    layers: int = 2
    embedding: int = 200
    dropout: float = 0.0
    drop_embedding: bool = True
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
            ValueError: if dropout is not in [0, 1).
        """
        drop = dropout(self.dropout, train)
        tokens = x
        x = nn.Embed(self.vocabulary or self.outputs, self.embedding)(jnp.maximum(x, 0))
        for layer in range(self.layers):
            x = drop(x) if layer or self.drop_embedding else x
            x = jnp.asarray(nn.RNN(nn.OptimizedLSTMCell(self.features))(x))
        if not self.every_position:
            x = at_last_token(x, tokens)
        return nn.Dense(self.outputs)(drop(x))
