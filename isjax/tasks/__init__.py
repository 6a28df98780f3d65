"""Tasks: data, network, loss and metrics put together."""

from isjax.tasks._tasks import *  # noqa: F403
from isjax.tasks._tasks import (  # noqa: F401
    Augmentation,
    Network,
    Task,
    __all__,
    num_outputs,
    predicts_every_token,
)
