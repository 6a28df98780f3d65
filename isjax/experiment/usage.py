"""The text of `--help`: a command, its flags, and the names that each setting takes."""

import inspect
import textwrap
from collections.abc import Mapping

from isjax import data
from isjax.experiment import config

__all__ = ["usage"]

_INDENT = " " * 6


def usage(command: str, about: str, flags: Mapping[str, str]) -> str:
    """The help of a command that runs a config.

    Args:
        command: as typed, such as "python -m isjax.main".
        about: the docstring of its module, with examples.
        flags: the help of each, by name.

    Returns:
        Lines of at most 100 characters, except for the path of the defaults.
    """
    choices = {setting: sorted(filter(None, names)) for setting, names in config.names().items()}
    choices["dataset"] = [
        *data.SETS,
        "or an image data set of TFDS, such as cifar10",
    ]
    return f"""\
usage: {command} --config=FILE --workdir=DIR [--config.SETTING=VALUE ...]

{inspect.cleandoc(about)}

Flags:
{_listed("--", flags)}

Every setting of the config has a flag, as in --config.learning_rate=0.1, and so has every option,
as in --config.method_options.k=0.25. All settings, with their defaults and meanings, are in
default_config of {inspect.getsourcefile(config)}

Names:
{_listed("--config.", {name: ", ".join(choices[name]) for name in sorted(choices)})}"""


def _listed(prefix: str, texts: Mapping[str, str]) -> str:
    """Each name on a line, its text below it, wrapped."""
    wrapper = textwrap.TextWrapper(
        88, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )
    return "\n".join(f"  {prefix}{name}\n{wrapper.fill(text)}" for name, text in texts.items())
