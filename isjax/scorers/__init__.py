"""Scorers: how important is each example?

- By the main model on the pool: `loss`, `grad_norm_bound`, `grad_norm`, `reducible_loss`. They cost
  forward passes, and read the pool's `batch` and `params`. `isjax.scorers.views` has cheaper views
  of the model.
- By past losses: `last_loss`, `second_moment`, `cached`, `difficulty`, `uncertainty`,
  `loss_change`, and by those of the class `class_gaussian`. They cost nothing, and are as stale as
  the last visit.
- By a small model that predicts the loss: `learned`, with one of the networks `history_lstm`,
  `history_mlp` and `features_mlp`.
- By a small model of the same task, by its own loss: `companion`.
- By what is known beforehand: `given`, `sources`, `uniform`; by the losses of each source:
  `learned_sources`.
- By several scorers together: `product`, `mixture`; by the power of one: `power`.
"""

from isjax.scorers import views
from isjax.scorers._by_class import class_gaussian
from isjax.scorers._by_history import (
    cached,
    difficulty,
    last_loss,
    loss_change,
    second_moment,
    uncertainty,
)
from isjax.scorers._by_model import grad_norm, grad_norm_bound, loss, reducible_loss
from isjax.scorers._combined import learned_sources, mixture, power, product, sources
from isjax.scorers._common import LabelFn, LogitsFn, LossFn
from isjax.scorers._companion import Companion, companion
from isjax.scorers._features import coarse_features, features_mlp
from isjax.scorers._given import given, uniform
from isjax.scorers._learned import (
    HistoryLSTM,
    HistoryMLP,
    Network,
    history_lstm,
    history_mlp,
    learned,
)

__all__ = [
    "Companion",
    "HistoryLSTM",
    "HistoryMLP",
    "LabelFn",
    "LogitsFn",
    "LossFn",
    "Network",
    "cached",
    "class_gaussian",
    "coarse_features",
    "companion",
    "difficulty",
    "features_mlp",
    "given",
    "grad_norm",
    "grad_norm_bound",
    "history_lstm",
    "history_mlp",
    "last_loss",
    "learned",
    "learned_sources",
    "loss",
    "loss_change",
    "mixture",
    "power",
    "product",
    "reducible_loss",
    "second_moment",
    "sources",
    "uncertainty",
    "uniform",
    "views",
]
