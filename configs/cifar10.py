"""CIFAR-10 with a small CNN, flips and crops.

python -m isjax.main --config=configs/cifar10.py --config.data_dir=DATA --workdir=DIR

DATA is where tensorflow-datasets keeps what it has prepared; left out, its own default. For a wide
ResNet 28-2, which wants a GPU: --config.network=WideResNet --config.network_options={}
--config.learning_rate=0.1 --config.weight_decay=5e-4 --config.num_steps=78_000
(200 epochs of batches of 128).
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.dataset = "cifar10"
    config.network = "CNN"
    config.network_options = {"channels": (16, 32, 64), "kernel": 3, "hidden": 128}
    config.augment = ("flip", "crop")
    config.num_steps = 20_000
    config.weight_decay = 1e-4
    return config
