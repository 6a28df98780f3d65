"""Trains a network as a config says, or goes on with a run that was interrupted.

    python -m isjax.main --config=configs/mnist1d.py --workdir=runs/uniform
    python -m isjax.main --config=configs/mnist1d.py --config.method=last_loss --workdir=runs/last

The same command on the same folder resumes. The folder then holds the metrics, for people and for
TensorBoard, and checkpoints; `python -m isjax.report runs` compares what is below a folder.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import app, flags, logging

try:
    from ml_collections import ConfigDict, config_flags
except ImportError:
    sys.exit("isjax: runs from a config need ml_collections: pip install 'isjax[run]'")

from isjax import experiment
from isjax.experiment.config import ConfigError, check_name, default_config
from isjax.experiment.usage import usage
from isjax.parallel.processes import PeerLostError, leave

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

_NO_CONFIG = "--config is missing; name a file, such as configs/mnist1d.py"
_KINDS = {bool: "True or False", float: "a number", int: "an int"}  # of settings


def command(
    name: str,
    about: str,
    run: Callable[[ConfigDict, str], Any],
    *further: flags.FlagHolder,
) -> None:
    """Runs `run(config, workdir)` by the flags, or says in one line why not.

    Args:
        name: of the module.
        about: its docstring, for `--help`.
        run: what it does.
        *further: its flags beside `--config` and `--workdir`.
    """
    names = ("config", "workdir", *(holder.name for holder in further))
    shown = {flag: flags.FLAGS[flag].help for flag in names}
    text = usage(f"python -m isjax.{name}", about, shown)
    if not sys.argv[1:]:
        print(text, file=sys.stderr)
        sys.exit(2)
    if {"-h", "-help", "--help", "--helpshort"} & set(sys.argv[1:]):
        print(text)
        sys.exit(0)

    def parse(argv: list[str]) -> list[str]:
        try:
            return _parse(argv, shown)
        except (ConfigError, SyntaxError, flags.Error) as error:
            sys.exit(f"isjax: {error}")

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # JAX's notes on the backends it tries
        if len(argv) > 1:
            sys.exit(f"isjax: unexpected argument {argv[1]}; settings look like --config.seed=1")
        if not flags.FLAGS["config"].present:
            sys.exit(f"isjax: {_NO_CONFIG}")
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        if not os.path.isfile(path.partition(":")[0]):
            near = f"configs/{path.removesuffix('.py')}.py"
            hint = (
                f"did you mean {near}?" if os.path.isfile(near) else "the configs/ folder has some"
            )
            sys.exit(f"isjax: there is no config file {path}; {hint}")
        if not _WORKDIR.value:
            sys.exit("isjax: --workdir is missing; name a folder for the files of this run")
        try:
            run(_CONFIG.value, _WORKDIR.value)
        except (ConfigError, FloatingPointError, ImportError, OSError, PeerLostError) as error:
            leave(f"isjax: {error}")
        except KeyboardInterrupt:
            leave(130)

    app.run(main, flags_parser=parse)


def _parse(argv: list[str], known: Iterable[str]) -> list[str]:
    """What is left of the arguments once flags and settings are read."""
    settings = default_config()
    for argument in argv[1:]:
        flag, _, setting = argument.lstrip("-").partition("=")[0].partition(".")
        if flag == "config" and setting:
            check_name(setting.partition(".")[0], settings, "a setting", "--config.")
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        _refuse_value(str(error), settings)
        raise
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):  # there is no setting before there is a file
            raise ConfigError(_NO_CONFIG) from error
        near = difflib.get_close_matches(error.flagname, settings, n=1)
        check_name(error.flagname, [*known, *(f"config.{name}" for name in near)], "a flag", "--")
        raise


def _refuse_value(message: str, settings: ConfigDict) -> None:
    """Says what the setting that absl complains of needs, where absl quotes Python."""
    found = re.match(r"flag --config\.(\w+)=(.*?): ", message)
    kind = found and _KINDS.get(type(settings.get(found[1])))
    if kind:
        raise ConfigError(f"config.{found[1]} is {found[2]}; {kind} is needed")


if __name__ == "__main__":
    command(
        "main",
        __doc__,
        lambda config, workdir: experiment.run(config, workdir, allow_config_changes=_ALLOW.value),
        _ALLOW,
    )
