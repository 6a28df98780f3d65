"""isjax: importance sampling for neural network training in JAX."""

from isjax import (
    buffer,
    conditions,
    diagnostics,
    distributions,
    gradients,
    recipes,
    resampling,
    samplers,
    scorers,
    training,
    transforms,
    weights,
)
from isjax.base import Draw, Rows, Sampler, Scorer, ScoreTransform
from isjax.gradients import weighted_value_and_grad
from isjax.parallel import padding
from isjax.resampling import presample
from isjax.samplers import (
    SamplerState,
    break_even,
    checked,
    epochs,
    gate,
    importance_sampler,
    reweight,
    tree_sampler,
)
from isjax.scorers import views
from isjax.training import TrainState, init_train_state, make_eval_step, make_train_step
from isjax.transforms import (
    chain,
    clip,
    identity,
    mix_uniform,
    power,
    smooth,
    smooth_by_mean,
    warm_up,
)
from isjax.weights import importance_weights, select_tokens

__version__ = "0.1.0"

__all__ = [
    "Draw",
    "Rows",
    "Sampler",
    "SamplerState",
    "ScoreTransform",
    "Scorer",
    "TrainState",
    "break_even",
    "buffer",
    "chain",
    "checked",
    "clip",
    "conditions",
    "diagnostics",
    "distributions",
    "epochs",
    "gate",
    "gradients",
    "identity",
    "importance_sampler",
    "importance_weights",
    "init_train_state",
    "make_eval_step",
    "make_train_step",
    "mix_uniform",
    "padding",
    "power",
    "presample",
    "recipes",
    "resampling",
    "reweight",
    "samplers",
    "scorers",
    "select_tokens",
    "smooth",
    "smooth_by_mean",
    "training",
    "transforms",
    "tree_sampler",
    "views",
    "warm_up",
    "weighted_value_and_grad",
    "weights",
]
