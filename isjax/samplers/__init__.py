"""Samplers choose what to train on next, and learn from the losses that follow."""

from isjax.samplers import sum_tree
from isjax.samplers._checked import checked
from isjax.samplers._edit import exclude, grow, set_losses
from isjax.samplers._epochs import epochs
from isjax.samplers._gate import break_even, gate
from isjax.samplers._importance import SamplerState, importance_sampler, make_draw
from isjax.samplers._lagged import lagged, pending
from isjax.samplers._reweight import reweight
from isjax.samplers._stratified import stratified
from isjax.samplers._tree_sampler import tree_sampler

__all__ = [
    "SamplerState",
    "break_even",
    "checked",
    "epochs",
    "exclude",
    "gate",
    "grow",
    "importance_sampler",
    "lagged",
    "make_draw",
    "pending",
    "reweight",
    "set_losses",
    "stratified",
    "sum_tree",
    "tree_sampler",
]
