"""MNIST-1D, generated, with a small 1-D CNN: 6,000 steps of 128 examples, 19 epochs.

python -m isjax.main --config=configs/mnist1d.py --config.method=learned_loss --workdir=DIR

After half of the steps uniform draws reach a test accuracy of 0.988
(3 seeds, see benchmarks/results/2026-11-24-cpu-methods.md).
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.dataset = "mnist1d"
    config.network = "CNN"
    config.num_steps = 6_000
    return config
