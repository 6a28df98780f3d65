"""A megabyte of Shakespeare by character, with a transformer of 0.8 million parameters.

python -m isjax.main --config=configs/tiny_shakespeare_transformer.py --config.data_dir=DATA --workdir=DIR

DATA is a folder of tensorflow-datasets; without it their default is used. An example is a window of
64 characters. It takes 5,000 steps of 64 windows. On an accelerator, add
--config.precision=bfloat16
"""  # noqa: E501

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.task = "language"
    config.dataset = "tiny_shakespeare"
    config.network = "Transformer"
    config.network_options = {"features": 128, "layers": 4, "heads": 4}
    config.pool_size = 512
    config.batch_size = 64
    config.optimizer = "adamw"
    config.learning_rate = 2e-3
    config.weight_decay = 0.1
    config.schedule_options = {"warmup": 0.02}
    config.clip_norm = 1.0
    config.num_steps = 5_000
    config.eval_batch_size, config.eval_examples = 250, 2_000
    return config
