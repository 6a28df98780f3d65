"""Data sets as arrays, by name."""

import functools
from collections.abc import Callable

from isjax.data.dataset import SETS, Dataset, from_arrays
from isjax.data.images import load_images
from isjax.data.synthetic import friedman, mnist1d
from isjax.data.text import ptb, tiny_shakespeare

__all__ = [
    "SETS",
    "Dataset",
    "builder",
    "friedman",
    "from_arrays",
    "load_images",
    "mnist1d",
    "ptb",
    "tiny_shakespeare",
]


def builder(name: str) -> Callable[..., Dataset]:
    """The function that makes a data set; its parameters are the options there are.

    Args:
        name: one of `SETS`, or else the name of an image classification data set of
            tensorflow-datasets, such as "cifar10"; whether there is one is found when the function
            is called.

    Returns:
        `(data_dir=None, **options) -> Dataset`; for what is generated anew, without `data_dir`.
    """
    own = {function.__name__: function for function in (friedman, mnist1d, ptb, tiny_shakespeare)}
    return own.get(name) or functools.partial(load_images, name)
