"""Sends the metrics of a run to Weights & Biases: https://docs.wandb.ai."""

import json
import pathlib
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from isjax.data.files import read_or_none, write_whole

__all__ = ["WandbWriter"]

_KINDS = ("training", "evaluation")  # the order within a step


class WandbWriter:
    """Sends lines to one run of Weights & Biases, which a resumed run continues.

    `wandb.json` in the folder of the run keeps the id of that run, and the number of the next line.
    A line that a resumed run writes again is not sent again: only its times differ. W&B requires
    that its own count of steps increases, so a line of training has the number 2 * step, and an
    evaluation 2 * step + 1. Charts are drawn over the true `step`.

    Without a network set `WANDB_MODE=offline`; send the folders below `wandb/` later with
    `wandb sync`.
    """

    def __init__(self, project: str, workdir: pathlib.Path, settings: Mapping[str, Any]):
        """Checks that wandb is installed; sends nothing before the writer is entered.

        Args:
            project: of Weights & Biases, made there if it does not exist.
            workdir: folder of the run; its name becomes the name of the run.
            settings: of the run, shown beside it.

        Raises:
            ImportError: without wandb.
        """
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f"config.wandb is {project}, but wandb is missing: pip install '.[wandb]' in a "
                "checkout of isjax, or leave the setting out"
            ) from error
        self._wandb, self._project, self._settings = wandb, project, settings
        self._workdir, self._kept = workdir, workdir / "wandb.json"

    def __enter__(self) -> "WandbWriter":
        """Begins or resumes the run.

        Raises:
            ConnectionError: if Weights & Biases cannot be reached, or refuses the login.
        """
        new = uuid.uuid4().hex[:12], 0
        self._id, known = read_or_none(self._kept, _read) or new
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=self._workdir.name,
                config=dict(self._settings),
                dir=str(self._workdir),
                id=self._id,
                resume="allow",
                reinit="create_new",  # apart from other runs of the process
            )
        except self._wandb.Error as error:
            raise ConnectionError(
                f"config.wandb is {self._project}: {error}; see `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._next = self._run.step or known  # the server knows which lines have arrived
        self._keep()
        return self

    def write(self, kind: str, line: Mapping[str, Any]) -> None:
        """Sends a line, unless it has been sent before.

        Args:
            kind: "evaluation" or "training".
            line: numbers by name, `step` among them.
        """
        place = 2 * line["step"] + _KINDS.index(kind)
        if place < self._next:
            return
        self._next = place + 1
        self._keep()  # before it is sent: a crash then loses a line rather than sending it twice
        numbers = {f"{kind}/{name}": value for name, value in line.items() if name != "step"}
        self._run.log({"step": line["step"], **numbers}, step=place, commit=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the run, as failed if there was an error."""
        self._run.finish(exit_code=int(error is not None))

    def _keep(self) -> None:
        with write_whole(self._kept) as file:
            file.write(json.dumps({"id": self._id, "next": self._next}).encode() + b"\n")


def _read(path: pathlib.Path) -> tuple[str, int]:
    kept = json.loads(path.read_bytes())
    return str(kept["id"]), int(kept["next"])
