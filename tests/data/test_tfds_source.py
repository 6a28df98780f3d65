import sys
import types

import pytest
import tensorflow_datasets as tfds
import tiny_tfds
from absl import logging

from isjax.data import tfds_source


@pytest.fixture(autouse=True)
def without_tensorflow():
    yield
    assert "tensorflow" not in sys.modules


def write_text(data_dir, name="tiny_text", **options):
    features = {"text": tfds.features.Text()}
    return tiny_tfds.write(data_dir, name, features, {"train": [{"text": "héllo"}]}, **options)


def test_a_prepared_data_set_is_read_without_tensorflow(tmp_path):
    write_text(tmp_path)
    split = tfds_source.open_split(tfds_source.open_builder("tiny_text", tmp_path), "train")
    assert [example["text"].decode() for example in split] == ["héllo"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashion_mnits", "did you mean fashion_mnist"),
        ("cifar10_corruptd/fog_1", "did you mean cifar10_corrupted"),
        ("our_own_se", "did you mean our_own_set"),
        ("qqqqqqqqqq", "tfds.list_builders"),
    ],
)
def test_an_unknown_name_is_told_from_those_there_are(name, hint, tmp_path):
    with pytest.raises(ValueError, match=f"no data set {name}; .*{hint}"):
        tfds_source.open_builder(name, tmp_path, others=("our_own_set",))


@pytest.mark.parametrize("name", ["mnist:9.9.9", "cifar10_corrupted/nothing", "a/b/c"])
def test_a_name_that_cannot_be_opened_is_told(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} cannot be opened: ."):
        tfds_source.open_builder(name, tmp_path)


@pytest.mark.parametrize("split", ["test", "train[:10%", "train[:0%]"])
def test_a_split_that_there_is_not_is_told(split, tmp_path):
    write_text(tmp_path)
    builder = tfds_source.open_builder("tiny_text", tmp_path)
    with pytest.raises(ValueError, match=r"tiny_text has no split.*choose from train, or a part"):
        tfds_source.open_split(builder, split)


def test_what_is_not_prepared_needs_tensorflow(tmp_path, monkeypatch):
    builder = tfds_source.open_builder("mnist", tmp_path)
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda _: None)
    place = f"mnist is not prepared in {tmp_path}/mnist"
    with pytest.raises(ImportError, match=f"{place}.*'\\.\\[tfds\\]'.*array_record"):
        tfds_source.open_split(builder, "train")
    assert not list(tmp_path.iterdir())


def test_preparing_that_fails_is_told_in_a_line(tmp_path, monkeypatch):
    builder = tfds_source.open_builder("mnist", tmp_path)
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda _: object())
    asked = {}

    def fail(**options):
        asked.update(options)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(builder, "download_and_prepare", fail)
    with pytest.raises(ValueError, match=r"failed \(ConnectionError: no route to host\)") as info:
        tfds_source.open_split(builder, "train")
    assert asked == {"file_format": "array_record"} and "\n" not in str(info.value)
    assert info.value.__suppress_context__


def test_files_that_only_tensorflow_reads_are_told(tmp_path):
    folder = write_text(tmp_path, file_format="tfrecord")
    builder = tfds_source.open_builder("tiny_text", tmp_path)
    with pytest.raises(ValueError, match=f"prepared in {folder} as tfrecord, but only array_rec"):
        tfds_source.open_split(builder, "train")


def test_quiet_gives_the_verbosity_back():
    before = logging.get_verbosity()
    with pytest.raises(RuntimeError), tfds_source.quiet():
        assert logging.get_verbosity() == logging.ERROR
        raise RuntimeError
    assert logging.get_verbosity() == before


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch):
    given = []
    monkeypatch.setenv("HOME", "/home/me")
    fake = types.SimpleNamespace(builder=lambda name, data_dir: given.append(data_dir))
    fake.core = tfds.core
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    for data_dir in ("~/sets", "", None):
        tfds_source.open_builder("mnist", data_dir)
    assert given == ["/home/me/sets", None, None]
