"""Runs a config: `python -m isjax.main --config=configs/mnist1d.py --workdir=DIR`.

Any setting can be given on the command line, as in `--config.method=learned_loss
--config.method_options.k=0.25`; `isjax.config.default_config` lists them all.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from isjax import experiment
from isjax.config import ConfigError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="File with a function get_config(), such as configs/mnist1d.py.",
    lock_config=False,  # options of a method are not known beforehand; the run checks all names
    accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where the run writes its files; one that it was interrupted in is resumed."
)
_ALLOW = flags.DEFINE_bool(
    "allow_config_changes",
    False,
    "Go on with a run although its config was another.",
)


def command(run: Callable[[ConfigDict, str], Any]) -> None:
    """Runs `run(config, workdir)` by the flags, or says in one line why not."""

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # JAX's notes on the backends it tries
        if len(argv) > 1:
            sys.exit(f"isjax: unexpected argument {argv[1]}; settings look like --config.seed=1")
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        if not os.path.exists(path):
            sys.exit(f"isjax: there is no config file {path}; the configs/ folder has some")
        if not _WORKDIR.value:
            sys.exit("isjax: --workdir is missing; name a folder for the files of this run")
        try:
            run(_CONFIG.value, _WORKDIR.value)
        except (ConfigError, FloatingPointError, ImportError, OSError) as error:
            sys.exit(f"isjax: {error}")
        except KeyboardInterrupt:
            sys.exit(130)

    flags.mark_flag_as_required("config")
    app.run(main)


if __name__ == "__main__":
    command(
        lambda config, workdir: experiment.run(config, workdir, allow_config_changes=_ALLOW.value)
    )
