"""A megabyte of Shakespeare by character, with an LSTM of 2 x 200 units: 5,000 steps of 64 windows.

python -m isjax.main --config=configs/tiny_shakespeare.py --config.data_dir=DATA --workdir=DIR

DATA is a folder of tensorflow-datasets; without it their default is used. An example is a window of
64 characters; the network starts each with an empty memory.
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.task = "language"
    config.dataset = "tiny_shakespeare"
    config.network = "LSTM"
    config.pool_size = 512
    config.batch_size = 64
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.clip_norm = 1.0
    config.num_steps = 5_000
    config.eval_batch_size = 250
    return config
