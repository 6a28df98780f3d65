"""Random augmentations of images, on the device and within the jitted step.

An augmentation is a pure function `(key, images [b, H, W, C]) -> images`, of the same shape and
dtype. Every image of a batch gets its own randomness. Any function of that form will do. One that
mixes images, such as `mixup` and `ricap`, returns `Mixed`, which tells what each image is made of.
"""

from isjax.tasks.augmentations._geometric import crop, flip
from isjax.tasks.augmentations._mixing import Mixed as Mixed
from isjax.tasks.augmentations._mixing import mixup, ricap
from isjax.tasks.augmentations._mixing import per_source as per_source
from isjax.tasks.augmentations._randaugment import rand_augment

# Names that `config.augment` can hold.
__all__ = ["crop", "flip", "mixup", "rand_augment", "ricap"]
