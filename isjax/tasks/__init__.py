"""Tasks: a data set, a network, a loss and metrics, put together as pure functions.

`classification`, `language` and `regression` make a `Task` from a `Dataset` and a Flax network. For
any other loss or kind of batch, make a `Task` of your own. `isjax.tasks.augmentations` has random
augmentations of images.
"""

from isjax.tasks._classification import classification
from isjax.tasks._language import excess_loss as excess_loss
from isjax.tasks._language import language
from isjax.tasks._language import predicts_every_token as predicts_every_token
from isjax.tasks._regression import regression
from isjax.tasks._supervised import PIXELS as PIXELS
from isjax.tasks._task import Augmentation as Augmentation
from isjax.tasks._task import Network as Network
from isjax.tasks._task import Task as Task
from isjax.tasks._task import num_outputs as num_outputs

# Names that `config.task` can have; the others are for writing a task.
__all__ = ["classification", "language", "regression"]
