"""Data sets as arrays, or as a `Source` that is read batch by batch.

`from_arrays` makes a `Dataset` of your own arrays. `load_images` reads any image classification
data set of tensorflow-datasets; `ptb`, `tiny_shakespeare` and `text_files` are text, `friedman` and
`mnist1d` are generated, and `image_field` holds the pixels of an image. `builder` finds the
function for a name. `domain` draws points from a box.
"""

import functools
from collections.abc import Callable

from isjax.data import domain
from isjax.data.dataset import SETS, Dataset, from_arrays, with_label_noise
from isjax.data.fields import bundled_image, image_field
from isjax.data.images import load_images
from isjax.data.loading import Loader
from isjax.data.source import Source, num_examples
from isjax.data.synthetic import friedman, mnist1d
from isjax.data.text import ptb, text_files, tiny_shakespeare

__all__ = [
    "SETS",
    "Dataset",
    "Loader",
    "Source",
    "builder",
    "bundled_image",
    "domain",
    "friedman",
    "from_arrays",
    "image_field",
    "load_images",
    "mnist1d",
    "num_examples",
    "ptb",
    "text_files",
    "tiny_shakespeare",
    "with_label_noise",
]


def builder(name: str) -> Callable[..., Dataset]:
    """Finds the function that makes a data set; its parameters are the options of the data set.

    Args:
        name: one of `SETS`, or an image classification data set of tensorflow-datasets, such as
            "cifar10". Whether that exists is only checked when the function is called.

    Returns:
        `(data_dir=None, **options) -> Dataset`; `friedman` and `image_field` have no `data_dir`.
    """
    functions = (friedman, image_field, mnist1d, ptb, text_files, tiny_shakespeare)
    own = {function.__name__: function for function in functions}
    return own.get(name) or functools.partial(load_images, name)
