import os

import numpy as np
import pytest
from helpers import file_limit

from isjax.data.dataset import save
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


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with write_whole(tmp_path / "file") as file:
            file.write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
