"""Text of your own, by byte, with a transformer of 0.9 million parameters: 10,000 steps.

python -m isjax.main --config=configs/text_files.py --config.data_dir=DATA --workdir=DIR

DATA is a folder of text files; the folders within count, too. The last tenth of each file is held
out. An example is a window of 128 bytes, a batch has 32 of them. To go on from an earlier run, add
--config.init_from=WORKDIR
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.task = "language"
    config.dataset = "text_files"
    config.network = "Transformer"
    config.network_options = {"features": 128, "layers": 4, "heads": 4}
    config.pool_size = 512
    config.batch_size = 32
    config.optimizer = "adamw"
    config.learning_rate = 2e-3
    config.weight_decay = 0.1
    config.schedule_options = {"warmup": 0.02}
    config.clip_norm = 1.0
    config.num_steps = 10_000
    config.eval_batch_size, config.eval_examples = 250, 2_000
    return config
