"""MNIST-1D with a small 1-D CNN: the project's main job on data that needs no download.

python -m isjax.main --config=configs/mnist1d.py --config.method=learned_loss --workdir=DIR
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.dataset = "mnist1d"
    config.network = "CNN"
    config.num_steps = 6_000
    return config
