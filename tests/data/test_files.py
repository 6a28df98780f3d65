import os

import numpy as np
import pytest
from helpers import DAMAGES, damage, file_limit

from isjax.data.dataset import load, save
from isjax.data.files import write_whole


def test_a_file_is_there_once_all_is_written(tmp_path):
    path = tmp_path / "new" / "file.json"
    for text in (b"first", b"2nd"):
        before = path.read_bytes() if path.exists() else None
        with write_whole(path) as file:
            file.write(text)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_is_as_it_was(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), write_whole(path) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_for_which_there_is_no_room_is_named(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with (
        file_limit(3),
        pytest.raises(OSError, match=r"file\.json cannot be written: File too large"),
        write_whole(path) as file,
    ):
        file.write(b"longer")
    with file_limit(3), pytest.raises(OSError, match=r"file\.npz cannot be written: "):
        save(tmp_path / "file.npz", x=np.zeros(10**5))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_arrays_are_told_and_not_read(tmp_path, capfd, how):
    path = tmp_path / "file.npz"
    assert load(path, x=(1000,), n=()) is None  # no file, no note
    save(path, x=np.arange(1000), n=np.array(3))
    found = load(path, x=(1000,), n=())
    assert found["n"] == 3 and found["x"].tolist() == list(range(1000))
    assert not capfd.readouterr().err
    damage(path, how)
    assert load(path, x=(1000,), n=()) is None
    (note,) = capfd.readouterr().err.splitlines()
    assert note.startswith(f"note: {path} is damaged (") and note.endswith("; it is made anew")
    assert "pickle" not in note


@pytest.mark.parametrize("shapes", [{"x": (2,)}, {"x": (3, 1)}, {"x": (3,), "y": ()}])
def test_arrays_of_another_shape_are_made_anew(tmp_path, capfd, shapes):
    save(tmp_path / "file.npz", x=np.arange(3))
    assert load(tmp_path / "file.npz", **shapes) is None
    assert "file.npz is damaged" in capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with write_whole(tmp_path / "file") as file:
            file.write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
