"""Opens data sets of tensorflow-datasets (TFDS), and prepares them if TensorFlow is installed.

Data are prepared as array_record files, which are read without TensorFlow. Preparing needs it.
"""

import contextlib
import difflib
import importlib.util
import os
import re
import textwrap
from collections.abc import Collection, Generator, Sequence
from typing import Any

__all__ = ["open_builder", "open_split", "quiet"]

_FORMAT = "array_record"


def open_builder(
    name: str, data_dir: str | os.PathLike | None = None, others: Collection[str] = ()
) -> Any:
    """Opens a data set, prepared or not.

    Args:
        name: name in TFDS, such as "cifar10", "cifar10:3.0.2" or "cifar10_corrupted/fog_1".
        data_dir: TFDS's folder; None or "" = its default, `~/tensorflow_datasets`.
        others: further names that the user may have meant, for messages.

    Returns:
        The `tfds.core.DatasetBuilder`.

    Raises:
        ImportError: if tensorflow-datasets is not installed.
        ValueError: if TFDS has no such data set, or cannot open it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        known = f"is none of {', '.join(others)}; other data sets need" if others else "needs"
        raise ImportError(
            f"{name} {known} tensorflow-datasets: pip install '.[run]' in a checkout of isjax"
        ) from error
    folder = os.path.expanduser(data_dir) if data_dir else None
    try:
        with quiet():
            return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        names = sorted({*tfds.list_builders(with_community_datasets=False), *others})
        close = difflib.get_close_matches(re.split("[/:]", name)[0], names)
        hint = f"did you mean {' or '.join(close)}?" if close else "see tfds.list_builders()"
        raise ValueError(f"there is no data set {name}; {hint}") from None
    except Exception as error:  # an unknown version, or any error of the data set's own code
        raise ValueError(f"{name} cannot be opened: {_brief(error)}") from None


def open_split(builder: Any, split: str) -> Sequence[dict[str, Any]]:
    """Opens a split of a data set; examples are decoded when they are read.

    Args:
        builder: from `open_builder`. It is prepared first if necessary.
        split: split in TFDS, such as "train" or "train[:90%]".

    Returns:
        The examples, each a dict by feature.

    Raises:
        ImportError: if the data set is not prepared and TensorFlow is not installed.
        ValueError: if there is no such split, the data set cannot be prepared, or it is prepared in
            a format that only TensorFlow reads.
    """
    with quiet():
        prepared = builder.is_prepared()
    if not prepared:
        _prepare(builder)
    formats = {form.value for form in builder.info.available_file_formats()}
    if _FORMAT not in formats:
        raise ValueError(
            f"{builder.name} is prepared in {builder.data_path} as {', '.join(sorted(formats))}, "
            f"but only {_FORMAT} is read; delete that folder or choose another data_dir, and "
            f"prepare it with file_format='{_FORMAT}'"
        )
    try:
        with quiet():
            return builder.as_data_source(split, file_format=_FORMAT)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{builder.name} has no split {split!r} ({_brief(error)}); choose from "
            f"{', '.join(builder.info.splits)}, or a part of one, such as 'train[:90%]'"
        ) from None


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silences messages of TFDS through absl, such as that OpenCV would decode faster."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _prepare(builder: Any) -> None:
    what = f"{builder.name} is not prepared in {builder.data_path}"
    elsewhere = f"prepare it elsewhere with file_format='{_FORMAT}' and give that data_dir"
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"{what}, and preparing needs TensorFlow: pip install '.[tfds]' in a checkout of "
            f"isjax, or {elsewhere}"
        )
    try:
        with quiet():
            builder.download_and_prepare(file_format=_FORMAT)
    except Exception as error:  # of the network, of the disk, of TFDS
        raise ValueError(
            f"{what}, and preparing it failed ({type(error).__name__}: {_brief(error)}); fix "
            f"that, or {elsewhere}"
        ) from None


def _brief(error: BaseException) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...")
