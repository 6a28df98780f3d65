"""A run from a config, on arrays of one's own: python examples/config_run.py.

The run writes metrics, checkpoints and statistics of its draws into a folder, which
`python -m isjax.report` reads. It needs `pip install '.[run]'` in a checkout.
"""

import tempfile

import numpy as np

import isjax.data
import isjax.experiment

generator = np.random.default_rng(0)


def examples(size):
    """Returns `size` examples of two classes."""
    x = generator.normal(size=(size, 8)).astype(np.float32)
    return {"x": x, "label": (x[:, 0] * x[:, 1] > 0).astype(np.int32)}


dataset = isjax.data.from_arrays(examples(5000), examples(1000), num_classes=2)

config = isjax.experiment.default_config()
config.dataset = "products"  # its name in reports
config.network_options = {"hidden": (64,)}
config.num_steps = 300
config.num_evals = 1

for method in ("uniform", "default"):
    config.method = method
    with tempfile.TemporaryDirectory() as workdir:  # keep a folder of your own to resume a run
        last = isjax.experiment.run(config, workdir, dataset)
    print(f"{method}: train loss {last['train_loss']:.3f}, accuracy {last['test_accuracy']:.1%}")
