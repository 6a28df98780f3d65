"""An image as a function of its coordinates, `camera` at 128 x 128, with an MLP; 5,000 steps.

PSNR in decibels is -10 log10(train_loss). The training objective is the goal, so that draws are by
importance to the end. configs/image_field.py:uniform and :reshuffled draw uniformly.

python -m isjax.main --config=configs/image_field.py --workdir=DIR

Needs pip install '.[images]'.
"""

from isjax.experiment import default_config


def get_config(method="default"):
    config = default_config()
    config.task = "regression"
    config.dataset = "image_field"
    config.network_options = {"hidden": (128, 128)}
    config.method = method
    if method == "default":
        config.method_options.until = 1.0
    config.batch_size = 256
    config.optimizer = "adam"
    config.learning_rate = 5e-3
    config.num_steps = 5_000
    return config
