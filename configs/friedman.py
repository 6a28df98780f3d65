"""Regression without classes: Friedman's problem #1, generated, with an MLP; 5,000 steps.

python -m isjax.main --config=configs/friedman.py --workdir=DIR
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.task = "regression"
    config.dataset = "friedman"
    config.network_options = {"hidden": (64, 64)}
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.num_steps = 5_000
    return config
