"""Bundled Flax networks: `MLP`, `CNN`, `VGG`, `WideResNet`; for language `LSTM`, `Transformer`.

All take `(x, train=False)`. Only dropout and batch norm read `train`; networks without either
accept it, so that callers can treat all networks alike.
"""

from isjax.networks._images import CNN, MLP, VGG, WideResNet
from isjax.networks._images import max_pool as max_pool
from isjax.networks._lstm import LSTM
from isjax.networks._transformer import Transformer
from isjax.networks._transformer import rotate as rotate

__all__ = ["CNN", "LSTM", "MLP", "VGG", "Transformer", "WideResNet"]
