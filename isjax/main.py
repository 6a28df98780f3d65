"""Trains a network as a config says, or resumes a run that was interrupted.

    python -m isjax.main --config=configs/mnist1d.py --workdir=runs/uniform
    python -m isjax.main --config=configs/mnist1d.py --config.method=last_loss --workdir=runs/last

The same command on the same folder resumes. The folder holds the metrics, as JSON lines and for
TensorBoard, and checkpoints. `python -m isjax.report runs` compares the runs below a folder.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import jax
from absl import app, flags, logging

try:
    from ml_collections import ConfigDict, config_flags
except ImportError:
    sys.exit(
        "isjax: runs from a config need ml_collections: pip install '.[run]' in a checkout of isjax"
    )

from isjax import experiment
from isjax.experiment.config import ConfigError, check_name, default_config
from isjax.experiment.usage import usage
from isjax.parallel.processes import PeerLostError, leave

_NO_CONFIG = "--config is missing; name a file, such as configs/mnist1d.py"


class _ConfigFile(config_flags.config_flags.ConfigFileFlagParser):
    """Reads a config file; names the one probably meant if there is no such file."""

    def parse(self, path: str) -> ConfigDict:
        file = path.partition(":")[0]  # after the colon: an argument of get_config
        if not os.path.isfile(file):
            near = f"configs/{file.removesuffix('.py')}.py"
            hint = f"did you mean {near}?" if os.path.isfile(near) else "configs/ has some"
            raise ValueError(f"there is no such file; {hint}")
        try:
            config = super().parse(path)
        except Exception as error:  # of the user's own code
            lines = [
                x.lineno for x in traceback.extract_tb(error.__traceback__) if x.filename == file
            ]
            where = f", line {lines[-1]}" if lines else ""
            raise ValueError(f"{file}{where}: {type(error).__name__}: {error}") from error
        if not isinstance(config, ConfigDict):
            raise ValueError(
                f"get_config() of {file} returns {type(config).__name__}; begin with "
                "isjax.experiment.default_config(), change its settings and return it"
            )
        return config


class _Setting(flags.ArgumentParser):
    """Reads a setting; its error names the type that is needed."""

    def __init__(self, parser: flags.ArgumentParser, needed: str):
        self._parser, self._needed = parser, needed

    def parse(self, argument: Any) -> Any:
        try:
            return self._parser.parse(argument)
        except (TypeError, ValueError):
            raise ValueError(f"{self._needed} is needed") from None


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="File with a function get_config(), such as configs/mnist1d.py.",
    lock_config=False,  # options of a method are not known beforehand; the run checks all names
    accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder that the run writes to; a run interrupted there is resumed."
)
_ALLOW = flags.DEFINE_bool(
    "allow_config_changes", False, "Resume a run although its config was another."
)


def command(
    name: str,
    about: str,
    run: Callable[[ConfigDict, str], Any],
    *further: flags.FlagHolder,
) -> None:
    """Parses the command line and calls `run(config, workdir)`; a mistake is one line of error.

    Args:
        name: of the module.
        about: its docstring, for `--help`.
        run: the work of the command.
        *further: flags of the command besides `--config` and `--workdir`.
    """
    known = {flag: flags.FLAGS[flag].help for flag in ("config", "workdir")}
    known |= {holder.name: flags.FLAGS[holder.name].help for holder in further}
    # absl's own help exits with status 1, and has no place for the names that a setting takes.
    text = usage(f"python -m isjax.{name}", about, known)
    if not sys.argv[1:]:
        print(text, file=sys.stderr)
        sys.exit(2)
    if {"-h", "-help", "--help", "--helpshort"} & set(sys.argv[1:]):
        print(text)
        sys.exit(0)

    def parse(argv: list[str]) -> list[str]:
        logging.set_verbosity(logging.ERROR)  # hides what config_flags warns of
        try:
            return _parse(argv, known)
        except (ConfigError, KeyError, SyntaxError, flags.Error) as error:
            sys.exit(f"isjax: {error}")

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # hides JAX's notes on the backends it tries
        if argv[1:]:
            sys.exit(f"isjax: unexpected argument {argv[1]}; settings look like --config.seed=1")
        if not flags.FLAGS["config"].present:
            sys.exit(f"isjax: {_NO_CONFIG}")
        if not _WORKDIR.value:
            sys.exit("isjax: --workdir is missing; name a folder for the files of this run")
        try:
            run(_CONFIG.value, _WORKDIR.value)
        except (FloatingPointError, ImportError, OSError, PeerLostError, ValueError) as error:
            leave(f"isjax: {error}")
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            leave(
                "isjax: out of memory; lower config.batch_size, config.pool_size or "
                "config.eval_batch_size, or set config.in_memory to False"
            )
        except KeyboardInterrupt:
            leave(130)

    app.run(main, flags_parser=parse)


def _parse(argv: list[str], known: Iterable[str]) -> list[str]:
    """Reads flags and settings; returns the other arguments."""
    flags.FLAGS["config"].parser = _ConfigFile("config", lock_config=False)
    for kind, parser, needed in (
        (bool, flags.BooleanParser(), "True or False"),
        (float, flags.FloatParser(), "a number"),
        (int, flags.IntegerParser(), "an int"),
    ):
        config_flags.register_flag_parser_for_type(kind, _Setting(parser, needed))
    settings = default_config()
    for argument in argv[1:]:  # config_flags would accept an unknown setting as a new one
        flag, _, setting = argument.lstrip("-").partition("=")[0].partition(".")
        if flag == "config" and setting:
            check_name(setting.partition(".")[0], settings, "a setting", "--config.")
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):  # without a file config_flags knows no setting
            raise ConfigError(_NO_CONFIG) from error
        near = difflib.get_close_matches(error.flagname, settings, n=1)
        check_name(error.flagname, [*known, *(f"config.{name}" for name in near)], "a flag", "--")
        raise


if __name__ == "__main__":
    command(
        "main",
        __doc__,
        lambda config, workdir: experiment.run(config, workdir, allow_config_changes=_ALLOW.value),
        _ALLOW,
    )
