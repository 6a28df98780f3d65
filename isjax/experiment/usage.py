"""What `--help` prints: a command, its flags, and every name that a setting can have."""

import inspect
import textwrap
from collections.abc import Mapping

from isjax import data
from isjax.experiment import config

__all__ = ["usage"]

_WIDTH = 88


def usage(command: str, about: str, flags: Mapping[str, str]) -> str:
    """The help of a command that runs a config.

    Args:
        command: as typed, such as "python -m isjax.main".
        about: what it does, with examples; the docstring of its module.
        flags: what each is for.
    """
    choices = {setting: sorted(filter(None, names)) for setting, names in config.names().items()}
    choices["dataset"] = [*data.SETS, "or what tensorflow-datasets has of images, such as cifar10"]
    return "\n".join(
        [
            f"usage: {command} --config=FILE --workdir=DIR [--config.SETTING=VALUE ...]",
            "",
            inspect.cleandoc(about).replace("::\n", ":\n"),
            "",
            "Flags:",
            *(_item(f"--{name}", text) for name, text in flags.items()),
            "",
            "Any setting can be given on the command line, as in --config.learning_rate=0.1, or,",
            "of what a name stands for, --config.method_options.k=0.25. All, with their defaults",
            f"and what each means, are in default_config of {inspect.getsourcefile(config)}",
            "",
            "Names:",
            *(_item(f"--config.{name}", ", ".join(choices[name])) for name in sorted(choices)),
        ]
    )


def _item(name: str, text: str) -> str:
    indent = " " * 6
    return f"  {name}\n" + textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
