"""The folder of a run: belongs to one config, and one process at a time writes there."""

import contextlib
import json
import pathlib
from collections.abc import Generator

from isjax.data.files import write_whole
from isjax.experiment.config import ConfigDict, ConfigError, differences

__all__ = ["REMEDY", "check_workdir", "locked", "write_config"]

# Settings of the hardware, which may change when a run is resumed.
_HARDWARE = ("distributed", "mesh.")
# Orbax looks for the files of a checkpoint by a pattern that contains its path.
_NOT_BY_ORBAX = set("[]*?\\")
REMEDY = "choose another --workdir, or delete it"


def check_workdir(workdir: pathlib.Path, config: ConfigDict, allow_changes: bool = False) -> None:
    """Refuses a folder that holds another run, or one that cannot be resumed.

    Args:
        workdir: folder of the run; need not exist.
        config: of the run.
        allow_changes: accept a run of another config.

    Raises:
        ConfigError: for such a folder, with the settings that differ; if `config` cannot be
            written as JSON; or if no checkpoints can be saved below a folder of that name.
    """
    settings = _as_json(config)
    if config.checkpoint_every and (found := set(str(workdir.absolute())) & _NOT_BY_ORBAX):
        raise ConfigError(
            f"--workdir is {workdir.absolute()}, but checkpoints cannot be saved in a folder whose "
            f"path has {' or '.join(sorted(found))}; choose another name, or set "
            "config.checkpoint_every to 0"
        )
    path = workdir / "config.json"
    if not path.exists():
        if any((workdir / name).exists() for name in ("metrics.jsonl", "training.jsonl")):
            raise ConfigError(f"{workdir} holds metrics, but no config.json; {REMEDY}")
        return
    try:
        changed = differences(json.loads(path.read_bytes()), json.loads(settings))
    except (AttributeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {REMEDY}") from error
    changed = {name: both for name, both in changed.items() if not name.startswith(_HARDWARE)}
    if changed and not allow_changes:
        listed = ", ".join(
            f"config.{name} was {before} and is {now}" for name, (before, now) in changed.items()
        )
        raise ConfigError(
            f"{workdir} holds a run of another config: {listed}; {REMEDY}, or resume it all "
            "the same with --allow_config_changes"
        )
    resumable = config.checkpoint_every and any((workdir / "checkpoints").glob("[0-9]*"))
    if not resumable and _has_trained(workdir):
        raise ConfigError(f"{workdir} already holds a run, without checkpoints; {REMEDY}")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Generator[None]:
    """Makes the folder, and keeps other processes out of it, on systems with file locks.

    Args:
        workdir: folder of the run.

    Raises:
        ConfigError: if it cannot be made, or another process is in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "lock").touch()
    except OSError as error:
        raise ConfigError(f"{workdir} cannot be written: {error}; {REMEDY}") from error
    with open(workdir / "lock") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on this system
            pass
        except OSError as error:
            raise ConfigError(f"another process trains in {workdir}; choose another") from error
        yield


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes `config.json`, whole or not at all.

    Args:
        workdir: folder of the run.
        config: of the run.

    Raises:
        ConfigError: if the config cannot be written as JSON.
    """
    settings = _as_json(config).encode()
    with write_whole(workdir / "config.json") as file:
        file.write(settings)


def _as_json(config: ConfigDict) -> str:
    try:
        return json.dumps(config.to_dict(), indent=2) + "\n"
    except TypeError as error:
        raise ConfigError(
            f"config cannot be written as JSON: {error}; use plain numbers, strings and tuples, or "
            "a loop of your own with isjax.make_train_step"
        ) from error


def _has_trained(workdir: pathlib.Path) -> bool:
    """Whether there are metrics of a step after the first evaluation."""
    path = workdir / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(LookupError, TypeError, ValueError):  # torn or damaged
            if json.loads(line)["step"] > 0:
                return True
    return False
