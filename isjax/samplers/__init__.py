"""Samplers choose what to train on next, and learn from the losses they then see."""

from isjax.samplers import sum_tree
from isjax.samplers._combinators import break_even, epochs, gate, reweight
from isjax.samplers._importance import importance_sampler
from isjax.samplers._lagged import lagged, pending
from isjax.samplers._stratified import stratified
from isjax.samplers._tree_sampler import tree_sampler

__all__ = [
    "break_even",
    "epochs",
    "gate",
    "importance_sampler",
    "lagged",
    "pending",
    "reweight",
    "stratified",
    "sum_tree",
    "tree_sampler",
]
