"""Examples whose loss was not finite at the last evaluation, in `failures.json` of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from isjax.data.files import write_whole

__all__ = ["Failures", "describe_failures", "load_failures", "save_failures"]

_FILE = "failures.json"
_NAMED = 10  # ids in a message


class Failures(NamedTuple):
    """Examples of a part of the data whose loss is not finite.

    Attributes:
        data: ids of those whose own data are not finite either.
        loss: ids of the others: the model has diverged, or the loss is not defined for them.
    """

    data: list[int]
    loss: list[int]


def save_failures(folder: Path, found: Mapping[str, Failures]) -> None:
    """Writes the failures of an evaluation; removes the file if there are none.

    Args:
        folder: Folder of the run.
        found: Failures of each part of the data that has some.
    """
    if not found:
        (folder / _FILE).unlink(missing_ok=True)
        return
    with write_whole(folder / _FILE) as file:
        file.write(
            json.dumps({part: of_part._asdict() for part, of_part in found.items()}).encode()
        )


def load_failures(folder: Path) -> dict[str, Failures]:
    """Reads the failures of the last evaluation of a run.

    Args:
        folder: Folder of the run.

    Returns:
        Failures of each part of the data that has some; none if the file is missing or damaged.
    """
    try:
        found = json.loads((folder / _FILE).read_bytes())
        parts = {part: (of_part["data"], of_part["loss"]) for part, of_part in found.items()}
        return {
            str(part): Failures(*([int(i) for i in ids] for ids in both))
            for part, both in parts.items()
        }
    except (
        AttributeError,
        KeyError,
        OSError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return {}


def describe_failures(found: Mapping[str, Failures]) -> list[str]:
    """Names the examples in words, up to ten of a kind.

    Args:
        found: Failures of each part of the data that has some.

    Returns:
        A sentence per part and kind, without capital and full stop.
    """
    sentences = []
    for part, (data, loss) in found.items():
        if data:
            are = "are" if len(data) > 1 else "is"
            sentences.append(
                f"{part}: {_named(data)} {are} not finite, and left out of the means; repair the "
                "data, or leave such examples out"
            )
        if loss:
            have = "have" if len(loss) > 1 else "has"
            sentences.append(f"{part}: {_named(loss)} {have} no finite loss, though the data are")
    return sentences


def _named(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:_NAMED]))
    rest = f" and {len(ids) - _NAMED} others" if len(ids) > _NAMED else ""
    return f"example{'s' * (len(ids) > 1)} {shown}{rest}"
