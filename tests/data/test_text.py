import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_tfds

from isjax.data import text

TRAIN = " the cat sat \n the dog \n the cat \n"


@pytest.fixture(autouse=True)
def without_tensorflow():
    yield
    assert "tensorflow" not in sys.modules


def write_ptb(folder, train=TRAIN, valid=" the cat \n", test=" the dog sat \n"):
    for part, content in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"ptb.{part}.txt").write_text(content)
    return folder


def write_shakespeare(data_dir, train, validation, test):
    splits = {"train": train, "validation": validation, "test": test}
    examples = {split: [{"text": content}] for split, content in splits.items()}
    tiny_tfds.write(data_dir, "tiny_shakespeare", {"text": tfds.features.Text()}, examples)
    return data_dir


def decode(dataset, ids):
    return [dataset.vocabulary[i] for i in np.ravel(ids)]


def test_words_predict_the_next_of_their_sentence(tmp_path):
    made = text.ptb(write_ptb(tmp_path), length=2)
    assert made.vocabulary == ("<eos>", "the", "cat", "dog", "sat") and made.num_classes is None
    x = [[1, -1], [1, 2], [2, 4], [1, -1], [1, 3], [1, -1], [1, 2]]
    assert made.train["x"].tolist() == x and made.train["y"].tolist() == [2, 4, 0, 3, 0, 2, 0]
    assert made.valid["x"].tolist() == [[1, -1], [1, 2]] and made.valid["y"].tolist() == [2, 0]
    assert made.test["y"].tolist() == [3, 4, 0]
    assert {a.dtype for a in (*made.train.values(), *made.test.values())} == {np.dtype(np.int32)}


def test_contexts_are_those_of_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 40))) for _ in range(50)]
    made = text.ptb(write_ptb(tmp_path, "\n".join(lines), "a\n", "b\n"))
    x, y = [], []
    for line in lines:
        ids = [made.vocabulary.index(word) for word in [*line.split(), "<eos>"]]
        for i in range(1, len(ids)):
            known = ids[max(0, i - 20) : i]
            x.append(known + [-1] * (20 - len(known)))
            y.append(ids[i])
    np.testing.assert_array_equal(made.train["x"], x)
    np.testing.assert_array_equal(made.train["y"], y)


def test_windows_follow_one_another(tmp_path):
    made = text.ptb(write_ptb(tmp_path), format="windows", length=2)
    assert made.train["x"].tolist() == [[1, 2], [4, 0], [1, 3], [0, 1]]
    assert made.train["y"].tolist() == [[2, 4], [0, 1], [3, 0], [1, 2]]
    assert made.test["x"].tolist() == [[1, 3]]
    assert {a.dtype for a in made.train.values()} == {np.dtype(np.int32)}


def test_a_window_may_end_before_the_last_token(tmp_path):
    write_ptb(tmp_path, valid=" the cat sat \n")
    made = text.ptb(tmp_path, format="windows", length=3)
    assert made.train["x"].shape == (3, 3) and made.train["y"][-1].tolist() == [1, 2, 0]


def test_unknown_words_share_a_place(tmp_path):
    write_ptb(tmp_path, valid=" the bird \n", test=" a dog \n")
    made = text.ptb(tmp_path, length=2)
    assert made.vocabulary == ("<eos>", "the", "cat", "dog", "sat", "<unk>")
    assert made.valid["y"].tolist() == [5, 0]
    assert made.test["x"].tolist() == [[5, -1], [5, 3]]


def test_a_capped_vocabulary_keeps_the_most_frequent(tmp_path):
    made = text.ptb(write_ptb(tmp_path), vocabulary_size=4, length=3)
    assert made.vocabulary == ("<eos>", "the", "cat", "<unk>")
    assert made.train["x"][2].tolist() == [1, 2, 3]
    assert text.ptb(tmp_path, vocabulary_size=5).vocabulary[-1] == "sat"
    assert len(text.ptb(tmp_path, vocabulary_size=100).vocabulary) == 5


def test_the_mark_for_unknown_words_in_the_files_is_taken(tmp_path):
    write_ptb(tmp_path, train=" <unk> sat \n <unk> \n", valid=" sat \n", test=" dog sat \n")
    made = text.ptb(tmp_path)
    assert made.vocabulary == ("<eos>", "<unk>", "sat")
    assert made.test["y"].tolist() == [2, 0] and made.test["x"][0, 0] == 1


def test_characters_are_kept_as_they_stand(tmp_path):
    write_shakespeare(tmp_path, "Ah!\n\nAh é\n", "A h", "Ah\n")
    made = text.tiny_shakespeare(tmp_path, length=2)
    assert made.vocabulary == ("\n", "A", "h", " ", "!", "é")
    assert "".join(decode(made, made.train["x"])) == "Ah!\n\nAh "
    assert "".join(decode(made, made.train["y"])) == "h!\n\nAh é"
    assert made.valid["x"].tolist() == [[1, 3]] and made.test["x"].tolist() == [[1, 2]]


def test_characters_predict_the_next_of_their_line(tmp_path):
    write_shakespeare(tmp_path, "abc\n\nca", "ab", "b\n")
    made = text.tiny_shakespeare(tmp_path, format="next_word", length=2)
    contexts = [[c for c in row if c >= 0] for row in made.train["x"]]
    assert ["".join(decode(made, row)) for row in contexts] == ["a", "ab", "bc", "c"]
    assert decode(made, made.train["y"]) == ["b", "c", "\n", "a"]


def test_blank_lines_hold_no_words(tmp_path):
    write_shakespeare(tmp_path, "To be,\n\n  \nor not", "be", "to")
    made = text.tiny_shakespeare(tmp_path, level="word", length=1)
    assert decode(made, made.train["x"]) == ["To", "be,", "<eos>", "or", "not"]
    assert decode(made, made.train["y"])[-1] == "<eos>"
    assert "<unk>" in made.vocabulary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "byte"}, "level is 'byte'; choose from char, word"),
        ({"format": "rows"}, "format is 'rows'; choose from windows, next_word"),
        ({"length": 0}, "length is 0; choose at least 1"),
        ({"vocabulary_size": 1}, "vocabulary_size is 1; choose at least 2"),
        ({"format": "windows", "length": 10}, "train: 10 tokens make no window .* below 10"),
        ({"format": "windows", "length": 4}, "valid: 3 tokens make no window .* below 3"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        text.ptb(write_ptb(tmp_path), **options)


def test_options_are_checked_before_anything_is_read(tmp_path):
    for function in (text.ptb, text.tiny_shakespeare):
        with pytest.raises(ValueError, match=f"{function.__name__}: level is 'byte'"):
            function(tmp_path, level="byte")


@pytest.mark.parametrize(("valid", "level"), [("", "char"), ("", "word"), ("\n \n", "word")])
def test_empty_files_are_refused(tmp_path, valid, level):
    with pytest.raises(ValueError, match="valid: there is no text"):
        text.ptb(write_ptb(tmp_path, valid=valid), level=level)


def test_lines_of_one_character_predict_nothing(tmp_path):
    with pytest.raises(ValueError, match="test: no line has two tokens"):
        text.ptb(write_ptb(tmp_path, test="\n\n"), level="char")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no data_dir given; .*Mikolov's files ptb.train.txt"):
        text.ptb()
    write_ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(ValueError, match=f"ptb: ptb.valid.txt not found in {tmp_path}; "):
        text.ptb(tmp_path)


@pytest.mark.data
def test_tiny_shakespeare_is_the_text():
    """65 characters; 1,003,854, 55,770 and 55,770 of them, as TFDS splits the file."""
    assert "ISJAX_DATA_DIR" in os.environ, "ISJAX_DATA_DIR must name what .ci/run prepares"
    made = text.tiny_shakespeare(os.environ["ISJAX_DATA_DIR"], length=1)
    assert len(made.vocabulary) == 65
    parts = (made.train, made.valid, made.test)
    assert [len(part["x"]) for part in parts] == [1_003_853, 55_769, 55_769]
    ends = [np.append(part["x"], part["y"][-1]) for part in parts]
    ours = "".join(decode(made, np.concatenate(ends)))
    assert ours.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    raw = Path(os.environ.get("ISJAX_RAW_DIR", "")) / "tinyshakespeare.txt"
    if raw.is_file():
        assert ours == raw.read_text(encoding="utf-8")


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    write_ptb(tmp_path)
    file = tmp_path / "ptb.train.txt"
    plain = text.ptb(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert text.ptb(tmp_path).vocabulary == plain.vocabulary


def test_a_file_that_is_no_text_is_named(tmp_path):
    write_ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ValueError, match=r"ptb\.valid\.txt is not UTF-8 text \(.*\); convert it"):
        text.ptb(tmp_path)
