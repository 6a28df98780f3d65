"""CIFAR-100 with a small CNN, flips and crops: 20,000 steps of 128 examples, 51 epochs.

python -m isjax.main --config=configs/cifar100.py --config.data_dir=DATA --workdir=DIR

DATA is a folder of tensorflow-datasets; without it their default is used. A wide ResNet 28-2 needs
a GPU and 78,000 steps, 200 epochs: --config.network=WideResNet --config.network_options={}
--config.learning_rate=0.1 --config.weight_decay=5e-4 --config.num_steps=78_000
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.dataset = "cifar100"
    config.network = "CNN"
    config.network_options = {"channels": (16, 32, 64), "kernel": 3, "hidden": 128}
    config.augment = ("flip", "crop")
    config.num_steps = 20_000
    config.weight_decay = 1e-4
    return config
