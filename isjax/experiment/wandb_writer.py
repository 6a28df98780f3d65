"""A run's lines, shown by Weights & Biases: https://docs.wandb.ai."""

import json
import pathlib
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from isjax.data.files import write_whole

__all__ = ["WandbWriter"]

_KINDS = ("training", "evaluation")  # in the order in which a step's lines are written


class WandbWriter:
    """Sends lines to one run of Weights & Biases, also after the run was interrupted.

    `wandb.json` in the folder of the run keeps the run's id, and how far its lines have been sent.
    What a resumed run writes once more is not sent again: it is the same but for the times. Every
    line has a place of its own in W&B's count of steps, which must increase, 2 step, or 2 step + 1
    for an evaluation; charts are drawn over the true `step`.

    Where there is no network, set `WANDB_MODE=offline`, and send the folders that it leaves below
    `wandb/` later, by `wandb sync`.
    """

    def __init__(self, project: str, workdir: pathlib.Path, settings: Mapping[str, Any]):
        """Nothing is sent before the writer is entered.

        Args:
            project: of Weights & Biases, made there if need be.
            workdir: folder of the run, whose name is that of the run.
            settings: of the run, shown beside it.

        Raises:
            ImportError: without wandb.
        """
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f"config.wandb is {project}, but wandb is missing: pip install 'isjax[wandb]', or "
                "leave the setting out"
            ) from error
        self._wandb, self._project, self._settings = wandb, project, settings
        self._workdir, self._kept = workdir, workdir / "wandb.json"

    def __enter__(self) -> "WandbWriter":
        """Begins the run, or goes on with it.

        Raises:
            ConnectionError: if Weights & Biases cannot be reached, or does not let one in.
        """
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        self._id, known = kept.get("id", uuid.uuid4().hex[:12]), kept.get("next", 0)
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=self._workdir.name,
                config=dict(self._settings),
                dir=str(self._workdir),
                id=self._id,
                resume="allow",
                reinit="create_new",  # whatever other runs the process has begun
            )
        except self._wandb.Error as error:
            raise ConnectionError(
                f"config.wandb is {self._project}: {error}; see `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._next = self._run.step or known  # the server knows best what has arrived
        self._keep()
        return self

    def add(self, kind: str, line: Mapping[str, Any]) -> None:
        """Sends a line of kind "evaluation" or "training", unless it has been sent before."""
        place = 2 * line["step"] + _KINDS.index(kind)
        if place < self._next:
            return
        self._next = place + 1
        self._keep()  # before it is sent: after a crash a line lacks rather than being there twice
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
