"""Settings of a published experiment that several configs share."""

from isjax.experiment.config import ConfigDict, ConfigError, default_config

__all__ = ["METHODS", "paper"]

METHODS = ("uniform", "biased_loss", "learned_loss")


def paper(method: str = "learned_loss") -> ConfigDict:
    """The authors' code, July 2017: what its experiments have in common (arXiv 1706.00043).

    These are the settings of the first commit of github.com/idiap/importance-sampling, 53ea5c8 of
    13 July 2017: Adam at 1e-3, divided by 10 at given steps, batches of 128, pixels in [0, 1],
    independent draws with replacement, k = 0.5, no smoothing, and weights rescaled to keep the
    mean score. `learned_loss` predicts by a linear output clamped at 0, counts log(classes) as the
    first loss observed, and draws 100 batches uniformly first. `configs/paper/` adds data sets and
    networks. `docs/methods.md` says where the defaults of isjax differ, and why.

    The steps at which the rate drops were an argument of each run there. Here they are one half and
    four fifths of the run. k, too: its default was 1.

    Args:
        method: "learned_loss", the LSTM, on a pool of 2,048; "biased_loss", the model's own loss,
            on a pool of 1,024; or "uniform".

    Returns:
        A new config, which lacks a data set and a network.

    Raises:
        ConfigError: if the method is none of these.
    """
    if method not in METHODS:
        raise ConfigError(f"presets.paper: method is {method}; choose one of {', '.join(METHODS)}")
    config = default_config()
    config.method = method
    config.batch_size = 128
    config.pixels = "unit"
    config.optimizer, config.learning_rate = "adam", 1e-3
    config.schedule = "step"
    config.schedule_options = {"boundaries": (0.5, 0.8), "factor": 0.1}
    if method == "uniform":
        return config
    config.pool_size = 1024
    config.method_options = {"k": 0.5, "smoothing": 0.0, "resample": "categorical"}
    config.weighting = "biased"  # rescales the weights to keep the mean score
    config.weighting_options = {"k": 0.5}
    if method == "learned_loss":
        config.pool_size = 2048
        config.method_options.update({"history": 10, "linear": True, "initial_observed": True})
        config.gate = "after"
        config.gate_options = {"steps": 100}
    return config
