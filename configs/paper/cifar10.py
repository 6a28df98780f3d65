"""The authors' code, July 2017: CIFAR-10 with their `cnn`, batch norm and dropout; 20,000 steps.

python -m isjax.main --config=configs/paper/cifar10.py --config.data_dir=DATA --workdir=DIR

That draws by the LSTM, `learned_loss`. Write configs/paper/cifar10.py:biased_loss to score by the
model's own loss, :uniform for the baseline; with :uniform, any method of isjax can be set. A
narrower network for a CPU: --config.network_options.width=16

Cost: not measured as a whole. A uniform step of a sibling of this network took 3.1 ms on an H100
that three runs shared; a CPU takes hours.
Result: not measured with this config. On an H100, with a sibling of this network and 8,000 steps,
the authors' settings with the model's own loss reached a test accuracy of .857 against .848 of
uniform draws (one seed, benchmarks/results/2026-11-27-h100.md).

`isjax.experiment.presets.paper` has what all three experiments share. Images are flipped, and
shifted by up to 3 pixels, a tenth; the authors had runs without either, for which augment is ().
Two things differ from theirs: shifts are by whole pixels and fill by reflection, and each visit
augments anew, where they kept ten fixed versions of each image. DATA is a folder of
tensorflow-datasets; without it their default is used.
"""

from isjax.experiment import presets


def get_config(method="learned_loss"):
    config = presets.paper(method)
    config.dataset = "cifar10"
    config.network = "VGG"
    config.network_options = {"width": 64, "groups": 3, "hidden": (16, 8), "norm": "batch"}
    config.augment = ("flip", "crop")
    config.augment_options.crop = {"padding": 3}
    config.num_steps = 20_000
    return config
