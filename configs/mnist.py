"""MNIST with a small CNN.

python -m isjax.main --config=configs/mnist.py --config.data_dir=DATA --workdir=DIR

DATA is where tensorflow-datasets keeps what it has prepared; left out, its own default.
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.dataset = "mnist"
    config.network = "CNN"
    config.network_options = {"channels": (16, 32), "kernel": 3, "hidden": 128}
    config.num_steps = 10_000
    config.weight_decay = 1e-4
    return config
