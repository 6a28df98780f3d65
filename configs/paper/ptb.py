"""The authors' code, July 2017: the Penn Treebank by word with their LSTM of 2 x 256 units.

python -m isjax.main --config=configs/paper/ptb.py --config.data_dir=DATA --workdir=DIR

That draws by the LSTM, `learned_loss`. Write configs/paper/ptb.py:biased_loss to score by the
model's own loss, :uniform for the baseline; with :uniform, any method of isjax can be set. Their
second language model has --config.network_options.features=384 and
--config.network_options.embedding=128, their third --config.network_options.features=650 and the
same embedding.

Cost: not measured; it wants a GPU.
Result: not measured; the Penn Treebank is not free.

`isjax.experiment.presets.paper` has what all three experiments share. An example is up to 20 words
of a sentence and the next one. There is no clipping, and dropout acts on the outputs of the LSTMs.
One thing differs from theirs: the LSTM that predicts losses reads no class, where they gave it the
next word. DATA is a folder of your own with ptb.train.txt, ptb.valid.txt and ptb.test.txt.
"""

from isjax.experiment import presets


def get_config(method="learned_loss"):
    config = presets.paper(method)
    config.task = "language"
    config.dataset = "ptb"
    config.network = "LSTM"
    config.network_options = {
        "features": 256,
        "layers": 2,
        "embedding": 64,
        "dropout": 0.5,
        "drop_embedding": False,
    }
    config.num_steps = 50_000
    config.eval_batch_size, config.eval_examples = 250, 10_000
    return config
