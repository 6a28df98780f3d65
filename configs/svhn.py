"""SVHN, cropped digits, with a small CNN and crops: a digit turned round is another, or none.

python -m isjax.main --config=configs/svhn.py --config.data_dir=DATA --workdir=DIR

DATA is where tensorflow-datasets keeps what it has prepared; left out, its own default. For a wide
ResNet 28-2, which wants a GPU: --config.network=WideResNet --config.network_options={}
--config.learning_rate=0.1 --config.weight_decay=5e-4 --config.num_steps=92_000
(160 epochs of batches of 128).
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.dataset = "svhn_cropped"
    config.network = "CNN"
    config.network_options = {"channels": (16, 32, 64), "kernel": 3, "hidden": 128}
    config.augment = ("crop",)
    config.num_steps = 20_000
    config.weight_decay = 1e-4
    return config
