"""Sampling methods by name. A recipe takes keywords and returns a `Sampler`.

Each is a few lines of composition: a scorer, a transform and a sampler. `paper` holds the paper's
two methods, `own` isjax's, with `default`, and `baselines` those without scores. The recipes of
`by_model` score examples by a model, those of `by_history` by their past losses. `contrib` holds
methods whose paper was not seen whole.
"""

from isjax.recipes.baselines import given, reshuffled, uniform
from isjax.recipes.by_history import (
    c_sgd,
    cached,
    infobatch,
    p_sgd,
    per_class_gaussian,
    prioritized,
    small_loss,
)
from isjax.recipes.by_model import (
    companion_loss,
    el2n,
    grad_norm,
    grad_norm_bound,
    proxy_loss,
    reducible_loss,
    selective_backprop,
)
from isjax.recipes.contrib import by_source, loss_change, online_batch_selection
from isjax.recipes.own import default, last_loss, mean_error, predicted_loss
from isjax.recipes.paper import biased_loss, learned_loss

__all__ = [
    "biased_loss",
    "by_source",
    "c_sgd",
    "cached",
    "companion_loss",
    "default",
    "el2n",
    "given",
    "grad_norm",
    "grad_norm_bound",
    "infobatch",
    "last_loss",
    "learned_loss",
    "loss_change",
    "mean_error",
    "online_batch_selection",
    "p_sgd",
    "per_class_gaussian",
    "predicted_loss",
    "prioritized",
    "proxy_loss",
    "reducible_loss",
    "reshuffled",
    "selective_backprop",
    "small_loss",
    "uniform",
]
