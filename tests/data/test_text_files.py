"""Text of one's own, by byte, from a folder of files."""

import numpy as np
import pytest

from isjax import data
from isjax.data.text import BYTES


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return folder


def joined(part):
    """The text of consecutive windows."""
    return bytes(np.append(part["x"], part["y"][-1, -1]).astype(np.uint8))


def test_files_are_joined_and_the_end_of_each_is_held_out(tmp_path):
    long, short = bytes(range(65, 125)) * 5, "Käse, naïve\n".encode() * 3
    write(tmp_path, b__long=long, b__a=short, other=b"x" * 100)
    made = data.text_files(tmp_path, length=4, held_out=0.2)
    size = len(short)
    ends = [(0, round(0.8 * n), round(0.9 * n), n) for n in (size, 300)]
    for index, part in enumerate((made.train, made.valid, made.test)):
        pieces = [t[e[index] : e[index + 1]] for t, e in zip((short, long), ends, strict=True)]
        text = b"\0".join(pieces) + b"\0"
        rows = (len(text) - 1) // 4
        of_b = {name: values[part["source"] == 1] for name, values in part.items()}
        assert of_b["x"].shape == of_b["y"].shape == (rows, 4) and of_b["x"].dtype == np.int32
        assert joined(of_b) == text[: 4 * rows + 1]
        np.testing.assert_array_equal(of_b["x"].ravel()[1:], of_b["y"].ravel()[:-1])
        assert set(part["x"][part["source"] == 0].ravel()) <= {ord("x"), 0}
    assert made.vocabulary == BYTES and len(BYTES) == 256
    assert made.source_names == (".", "b") and set(made.train["source"]) == {0, 1}


def test_hidden_files_are_left_out(tmp_path):
    write(tmp_path, seen=b"x" * 99, **{".hidden": b"y" * 99, ".git__config": b"z" * 99})
    made = data.text_files(tmp_path, length=2)
    assert set(joined(made.train)) <= {ord("x"), 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0; choose at least 1"),
        ({"held_out": 0}, "held_out is 0; choose a share above 0, below 1"),
        ({"held_out": 1.0}, "held_out is 1.0; choose"),
        ({"length": 50}, "valid of .: 6 tokens make no window of length 50"),
    ],
)
def test_impossible_options_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.text_files(write(tmp_path, text=b"x" * 100), **options)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no data_dir given; pass the folder of your text files"):
        data.text_files()
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/none; pass"):
        data.text_files(tmp_path / "none")
    with pytest.raises(ValueError, match=f"no files in {tmp_path}; put your text there"):
        data.text_files(tmp_path)
