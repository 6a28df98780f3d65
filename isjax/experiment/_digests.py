"""Digests of the files of a checkpoint, by which damage is found before it is read."""

import hashlib
import json
import pathlib
import sys

__all__ = ["newest_sound", "set_damaged_aside", "write_digests"]

_FILE = "digests.json"


def write_digests(checkpoint: pathlib.Path) -> None:
    """Writes `digests.json`, the SHA-256 of each file in the folders of a checkpoint.

    Args:
        checkpoint: folder of one step, not yet visible as a checkpoint.
    """
    (checkpoint / _FILE).write_text(json.dumps(_digests(checkpoint), indent=2) + "\n")


def set_damaged_aside(folder: pathlib.Path) -> None:
    """Renames damaged checkpoints to `damaged-STEP`, with a note, so that the one before is used.

    Reads every file of every checkpoint.

    Args:
        folder: of the checkpoints; need not exist.

    Raises:
        ValueError: if there are checkpoints, and all are damaged; none is renamed.
    """
    damages = {path: _damage(path) for path in _checkpoints(folder)}
    damaged = {path: damage for path, damage in damages.items() if damage}
    sound = [path.name for path in damages if path not in damaged]
    if damaged and not sound:
        listed = "; ".join(f"{path.name}: {damage}" for path, damage in damaged.items())
        raise ValueError(
            f"no checkpoint in {folder} can be used, all are damaged (step {listed}); restore the "
            "files, choose another --workdir, or delete it"
        )
    for path, damage in damaged.items():
        aside = _free(path.with_name(f"damaged-{path.name}"))
        path.rename(aside)
        print(
            f"note: the checkpoint of step {path.name} is damaged ({damage}); it is now {aside}, "
            f"and the newest that can be used is that of step {sound[-1]}",
            file=sys.stderr,
            flush=True,
        )


def newest_sound(folder: pathlib.Path) -> pathlib.Path | None:
    """Finds the newest checkpoint that is not damaged; changes nothing.

    Args:
        folder: of the checkpoints; need not exist.

    Returns:
        Its folder; None if there is none.
    """
    return next((path for path in reversed(_checkpoints(folder)) if not _damage(path)), None)


def _checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of the checkpoints, from the oldest to the newest."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _digests(checkpoint: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of each file, by its path; without those beside the folders, as Orbax's own."""
    digests = {}
    for path in sorted(checkpoint.glob("*/**/*")):
        if path.is_file():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(checkpoint).as_posix()] = digest
    return digests


def _damage(checkpoint: pathlib.Path) -> str:
    """What is wrong with a checkpoint; empty if nothing is."""
    try:
        expected = dict(json.loads((checkpoint / _FILE).read_bytes()))
        found = _digests(checkpoint)
    except FileNotFoundError:
        return f"{_FILE} is missing"
    except (OSError, TypeError, ValueError) as error:
        return f"it cannot be read: {error}"
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{name} was changed" if name in found else f"{name} is missing"
    return ""


def _free(path: pathlib.Path) -> pathlib.Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
