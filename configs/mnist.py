"""MNIST with a small CNN: 10,000 steps of 128 examples, 21 epochs.

python -m isjax.main --config=configs/mnist.py --config.data_dir=DATA --workdir=DIR

DATA is a folder of tensorflow-datasets; without it their default is used.
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
