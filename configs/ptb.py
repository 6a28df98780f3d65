"""The Penn Treebank by word, with an LSTM of 2 x 200 units: 50,000 steps of 128 examples.

python -m isjax.main --config=configs/ptb.py --config.data_dir=DATA --workdir=DIR

DATA is a folder of your own with ptb.train.txt, ptb.valid.txt and ptb.test.txt. An example is up
to 20 words of a sentence and the next one. To train on windows of text instead, add
--config.dataset_options.format=windows --config.dataset_options.length=35
"""

from isjax.experiment import default_config


def get_config():
    config = default_config()
    config.task = "language"
    config.dataset = "ptb"
    config.network = "LSTM"
    config.network_options = {"dropout": 0.2}
    config.optimizer = "adam"
    config.learning_rate = 1e-3
    config.clip_norm = 5.0
    config.num_steps = 50_000
    config.eval_batch_size, config.eval_examples = 250, 10_000
    return config
