"""The authors' code, July 2017: MNIST with their `small_cnn`, 3,000 steps of 128 examples.

python -m isjax.main --config=configs/paper/mnist.py --config.data_dir=DATA --workdir=DIR

That draws by the LSTM, `learned_loss`. Write configs/paper/mnist.py:biased_loss to score by the
model's own loss, :uniform for the baseline; with :uniform, any method of isjax can be set. For
Fashion-MNIST, which has images of the same size, add --config.dataset=fashion_mnist

Cost: not measured as a whole. At --config.network_options.width=8, a quarter, a uniform step took
92 ms of one CPU core; at full width take a GPU.
Result: not measured on MNIST.

`isjax.experiment.presets.paper` has what all three experiments share. Here are 3,000 steps as for
uniform draws in the authors' examples. DATA is a folder of tensorflow-datasets; without it their
default is used.
"""

from isjax.experiment import presets


def get_config(method="learned_loss"):
    config = presets.paper(method)
    config.dataset = "mnist"
    config.network = "VGG"
    config.network_options = {"width": 32, "groups": 2, "hidden": (16, 16), "norm": "none"}
    config.num_steps = 3_000
    return config
