import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_tfds
from helpers import damage

from isjax.data import images

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def without_tensorflow():
    yield
    assert "tensorflow" not in sys.modules


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "isjax" / "tfds"


def examples(size, shape=(4, 3, 3), seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, shape, np.uint8), i % 3) for i in range(size)]


def write(data_dir, seed=0, shape=(4, 3, 3), **options):
    """A data set that TFDS has no code for: it reads what lies in the folder."""
    splits = {"train": examples(10, shape, seed), "test": examples(2, shape, seed + 1)}
    tiny_tfds.write_images(data_dir, "tiny_images", splits, shape, 3, **options)
    return splits


@pytest.mark.parametrize("shape", [(4, 3, 3), (5, 5, 1)])
def test_images_and_labels_are_those_written(shape, tmp_path, cache):
    splits = write(tmp_path, shape=shape)
    made = images.load_images("tiny_images", tmp_path)
    assert made.num_classes == 3 and made.class_names == ("0", "1", "2")
    for name, part in (("train", made.train), ("test", made.test)):
        assert part["x"].dtype == np.uint8 and part["label"].dtype == np.int32
        np.testing.assert_array_equal(part["x"], np.stack([x for x, _ in splits[name]]))
        np.testing.assert_array_equal(part["label"], [label for _, label in splits[name]])


def test_images_to_train_on_are_read_when_they_are_asked_for(tmp_path, cache):
    splits = write(tmp_path)
    made = images.load_images("tiny_images", tmp_path, in_memory=False)
    ids = np.array([9, 0, 3, 9])
    batch = made.train[ids]
    np.testing.assert_array_equal(batch["x"], np.stack([splits["train"][i][0] for i in ids]))
    np.testing.assert_array_equal(batch["label"], ids % 3)
    assert batch["x"].dtype == np.uint8 and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(made.test["x"], np.stack([x for x, _ in splits["test"]]))
    assert len(list(cache.iterdir())) == 1  # the test part alone is decoded at once


def test_parts_of_splits_are_read(tmp_path, cache):
    splits = write(tmp_path)
    made = images.load_images("tiny_images", tmp_path, train="train[:80%]", test="train[80%:]")
    np.testing.assert_array_equal(made.train["x"], np.stack([x for x, _ in splits["train"][:8]]))
    np.testing.assert_array_equal(made.test["x"], np.stack([x for x, _ in splits["train"][8:]]))


def test_images_are_decoded_once(tmp_path, cache, monkeypatch):
    write(tmp_path)
    first = images.load_images("tiny_images", tmp_path)
    assert sorted(path.name[:18] for path in cache.iterdir()) == ["tiny_images-1.0.0-"] * 2
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded again"))
    again = images.load_images("tiny_images", tmp_path)
    np.testing.assert_array_equal(again.train["x"], first.train["x"])
    np.testing.assert_array_equal(again.test["label"], first.test["label"])


@pytest.mark.parametrize(
    ("name", "how"), [("x", "cut"), ("x", "pickle"), ("label", "empty"), ("label", "flipped")]
)
def test_a_damaged_cache_is_made_anew(tmp_path, cache, capfd, name, how):
    write(tmp_path)
    made = images.load_images("tiny_images", tmp_path).train
    first = {part: np.array(array) for part, array in made.items()}  # not of the file
    for folder in cache.iterdir():
        damage(folder / f"{name}.npy", how)
    again = images.load_images("tiny_images", tmp_path)
    for part in ("x", "label"):
        np.testing.assert_array_equal(again.train[part], first[part])
    notes = [line for line in capfd.readouterr().err.splitlines() if "note" in line]
    assert len(notes) == 2 and all(x.endswith("; it is made anew") for x in notes)
    assert all(" is damaged (" in x and "pickle" not in x for x in notes)
    images.load_images("tiny_images", tmp_path)
    assert "note" not in capfd.readouterr().err


def test_two_copies_of_a_data_set_do_not_share_a_cache(tmp_path, cache):
    for seed, folder in enumerate("ab"):
        write(tmp_path / folder, seed)
    first, second = (images.load_images("tiny_images", tmp_path / folder) for folder in "ab")
    assert not np.array_equal(first.train["x"], second.train["x"])
    assert len(list(cache.iterdir())) == 4


def test_nothing_is_left_of_a_decoding_that_failed(tmp_path, cache, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        images.load_images("tiny_images", tmp_path)
    assert not cache.exists()


@pytest.mark.parametrize("where", ["train", "test"])
def test_images_of_different_sizes_are_refused(where, tmp_path, cache):
    splits = {"train": examples(2), "test": examples(2)}
    splits[where] = [*examples(2 * (where == "train")), *examples(1, (5, 3, 3))]
    tiny_tfds.write_images(tmp_path, "ragged", splits, (None, None, 3), 3)
    with pytest.raises(ValueError, match=r"different sizes, such as \(4, 3, 3\) and \(5, 3, 3\)"):
        images.load_images("ragged", tmp_path)


def test_what_is_not_image_classification_is_refused_before_it_is_prepared(tmp_path, cache):
    with pytest.raises(ValueError, match=r"imdb_reviews is not image classification.*text: Text"):
        images.load_images("imdb_reviews", tmp_path)


def test_what_has_no_labels_is_refused(tmp_path, cache):
    features = {"image": tfds.features.Image(shape=(4, 3, 3))}
    tiny_tfds.write(tmp_path, "unlabelled", features, {"train": []})
    with pytest.raises(ValueError, match=r"not image classification.*has image: Image"):
        images.load_images("unlabelled", tmp_path)


def test_deeper_pixels_are_refused(tmp_path, cache):
    features = {
        "image": tfds.features.Image(shape=(4, 3, 1), dtype=np.uint16),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    tiny_tfds.write(tmp_path, "deep", features, {"train": []}, ("image", "label"))
    with pytest.raises(ValueError, match="images of uint16, but only 8-bit"):
        images.load_images("deep", tmp_path)


def test_our_own_names_are_suggested_too(tmp_path, cache):
    with pytest.raises(ValueError, match="no data set mnist1b; did you mean mnist1d"):
        images.load_images("mnist1b", tmp_path)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def prepared(name, shared_cache, monkeypatch):
    assert "ISJAX_DATA_DIR" in os.environ, "ISJAX_DATA_DIR must name what .ci/run prepares"
    monkeypatch.setenv("XDG_CACHE_HOME", shared_cache)
    return images.load_images(name, os.environ["ISJAX_DATA_DIR"])


def idx(name, header):
    return np.frombuffer(gzip.decompress((FASHION / name).read_bytes()), np.uint8, offset=header)


@pytest.mark.data
def test_fashion_mnist_has_the_originals(shared_cache, monkeypatch):
    """Every image with its label, in whatever order; TFDS shuffles."""
    made = prepared("fashion_mnist", shared_cache, monkeypatch)
    assert made.num_classes == 10
    for part, file, size in ((made.train, "train", 60_000), (made.test, "t10k", 10_000)):
        assert part["x"].shape == (size, 28, 28, 1)
        pixels = idx(f"{file}-images-idx3-ubyte.gz", 16).reshape(size, 784)
        rows = np.column_stack([idx(f"{file}-labels-idx1-ubyte.gz", 8), pixels])
        ours = np.column_stack([part["label"].astype(np.uint8), part["x"].reshape(size, 784)])
        assert sorted(map(bytes, ours)) == sorted(map(bytes, rows))
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded again"))
    again = prepared("fashion_mnist", shared_cache, monkeypatch)
    np.testing.assert_array_equal(again.train["x"], made.train["x"])


@pytest.mark.slow
@pytest.mark.data
def test_cifar10_is_balanced_and_has_the_published_colours(shared_cache, monkeypatch):
    made = prepared("cifar10", shared_cache, monkeypatch)
    assert made.num_classes == 10
    for part, size in ((made.train, 50_000), (made.test, 10_000)):
        assert part["x"].shape == (size, 32, 32, 3) and part["x"].dtype == np.uint8
        assert np.bincount(part["label"]).tolist() == [size // 10] * 10
    means = made.train["x"].mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-3)


@pytest.mark.slow
@pytest.mark.data
def test_cifar10_has_the_images_of_the_raw_file(shared_cache, monkeypatch):
    from PIL import Image

    raw = Path(os.environ.get("ISJAX_RAW_DIR", "")) / "cifar10_jpeg.npz"
    if not raw.is_file():
        pytest.skip("no cifar10_jpeg.npz in ISJAX_RAW_DIR")
    made = prepared("cifar10", shared_cache, monkeypatch)
    with np.load(raw) as file:
        stream, offsets = file["test_jpeg"].tobytes(), file["test_offsets"]
        labels = file["test_labels"].tolist()
    theirs = [
        (label, np.asarray(Image.open(io.BytesIO(stream[a:b])).convert("RGB")).tobytes())
        for label, a, b in zip(labels, offsets, offsets[1:], strict=False)
    ]
    ours = zip(made.test["label"].tolist(), map(bytes, made.test["x"]), strict=True)
    assert sorted(ours) == sorted(theirs)
