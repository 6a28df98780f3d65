"""Text of one's own, by byte, from a folder of files."""

import sys

import numpy as np
import pytest

from isjax import data
from isjax.data import _tokenizer
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


# With a tokenizer. CI installs the package: it is in the extra `dev`.

TEXT = "the cat é the dog. " * 20
MERGES = [("t", "h"), ("th", "e"), ("\u0120", "the")]  # U+0120 is a blank


def save_tokenizer(path, byte_level):
    """A tokenizer that would cut, pad and add a token, were it not told otherwise."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "th", "the", "\u0120the"]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, MERGES))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    if not byte_level:
        made.normalizer = tokenizers.normalizers.Lowercase()
    made.add_special_tokens(["<é>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<é> $A", special_tokens=[("<é>", made.token_to_id("<é>"))]
    )
    made.enable_truncation(4)
    made.enable_padding()
    made.save(str(path))
    return tokens


def test_a_byte_level_tokenizer_reads_all_of_a_text_and_knows_the_bytes_of_its_tokens(tmp_path):
    save_tokenizer(tmp_path / ".tokenizer.json", byte_level=True)
    write(tmp_path, text=TEXT.encode())
    made = data.text_files(tmp_path, 4, 0.2, tokenizer=tmp_path / ".tokenizer.json")
    assert set(made.vocabulary) >= {*BYTES, "th", "the", " the", "<é>".encode().decode("latin-1")}
    tokens = [made.vocabulary[i] for i in np.append(made.train["x"], made.train["y"][-1, -1])]
    start = ["the", *" cat ", *"é".encode().decode("latin-1"), " the", *" dog."]
    assert tokens[: len(start)] == start
    whole = TEXT[: round(0.8 * len(TEXT))] + "\0"
    assert whole.encode().startswith("".join(tokens).encode("latin-1"))
    assert made.train["x"].dtype == np.int32 and len(tokens) > len(whole) / 2


def test_other_tokenizers_keep_their_tokens_as_they_are(tmp_path):
    tokens = save_tokenizer(tmp_path / ".tokenizer.json", byte_level=False)
    write(tmp_path, text=TEXT.encode())
    made = data.text_files(tmp_path, 4, tokenizer=tmp_path / ".tokenizer.json")
    assert made.vocabulary == (*tokens, "<é>")


def test_bytes_are_written_as_gpt_2_does():
    """The first four of those that are not printable, and the blank, which is the 33rd."""
    written = "\u0100\u0101\u0102\u0103\u0120A\u00ff"
    assert _tokenizer._as_bytes(written, plain=False) == "\0\1\2\3 A\u00ff"
    assert sorted(_tokenizer._BYTE_OF.values()) == list(range(256))
    assert _tokenizer._as_bytes("\u00e9", plain=True) == "\u00c3\u00a9"  # in UTF-8


def test_without_the_package_or_the_file_the_error_says_what_to_do(tmp_path, monkeypatch):
    write(tmp_path, text=TEXT.encode())
    with (
        monkeypatch.context() as patch,
        pytest.raises(ImportError, match=r"install '.\[tokenizers"),
    ):
        patch.setitem(sys.modules, "tokenizers", None)  # cannot be imported
        data.text_files(tmp_path, 4, tokenizer=tmp_path / "none.json")
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"tokenizer .*none.json cannot be read .*; give the path"):
        data.text_files(tmp_path, 4, tokenizer=tmp_path / "none.json")
    save_tokenizer(tmp_path / ".tokenizer.json", byte_level=True)
    write(tmp_path, latin="Käse".encode("latin-1"))
    with pytest.raises(ValueError, match="latin is not UTF-8 text"):
        data.text_files(tmp_path, 4, tokenizer=tmp_path / ".tokenizer.json")
