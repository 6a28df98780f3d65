"""Text for language models: windows of tokens, or contexts with their next token."""

import collections
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from isjax.base import Batch
from isjax.data._tokenizer import read_tokenizer
from isjax.data.dataset import Dataset, from_arrays
from isjax.data.tfds_source import open_builder, open_split

__all__ = ["BYTES", "UNKNOWN", "ptb", "text_files", "tiny_shakespeare"]

BYTES = tuple(map(chr, range(256)))  # the vocabulary of text by byte: its bytes as Latin-1
UNKNOWN = "<unk>"
_END, _PADDING = "<eos>", -1
_LENGTHS = {"windows": 64, "next_word": 20}
_LEVELS = ("char", "word")
_PARTS = ("train", "valid", "test")


def tiny_shakespeare(
    data_dir: str | os.PathLike | None = None,
    level: str = "char",
    format: str = "windows",
    length: int | None = None,
    vocabulary_size: int | None = None,
) -> Dataset:
    """Loads a megabyte of Shakespeare's plays, as tensorflow-datasets (TFDS) splits it.

    The vocabulary holds the tokens of the training part, the most frequent first, ties by code
    point. If any part has a token that is not in it, its last place is "<unk>", which stands for
    all unknown tokens.

    Args:
        data_dir: TFDS's folder of prepared data sets; by default its own. Preparing needs
            TensorFlow, reading does not.
        level: kind of token. "char": single characters, line ends included. "word": words separated
            by blanks, and "<eos>" at the end of each line; blank lines are dropped.
        format: kind of example. "windows": consecutive tokens `x` [N, length] int32, and the token
            after each of them, `y` [N, length] int32. Windows do not overlap; an incomplete one is
            dropped. "next_word": up to `length` preceding tokens of the same line, `x` [N, length]
            int32, padded at the end with -1, and the next token, `y` [N] int32; one example for
            each token except the first of its line.
        length: number of tokens of an example; None = 64 for "windows" and 20 for "next_word".
        vocabulary_size: largest size of the vocabulary, at least 2; None = all tokens.

    Returns:
        Parts `train`, `valid` and `test`, and the `vocabulary`.

    Raises:
        ImportError: if tensorflow-datasets is not installed, or TensorFlow is needed to prepare the
            data and is not installed.
        ValueError: if the level or format is unknown, a length or size is impossible, or the data
            cannot be prepared or read.
    """
    _check("tiny_shakespeare", level, format, length, vocabulary_size)
    builder = open_builder("tiny_shakespeare", data_dir)
    texts = {
        part: "".join(example["text"].decode() for example in open_split(builder, split))
        for part, split in (("train", "train"), ("valid", "validation"), ("test", "test"))
    }
    return _language(texts, level, format, length, vocabulary_size)


def ptb(
    data_dir: str | os.PathLike | None = None,
    level: str = "word",
    format: str = "next_word",
    length: int | None = None,
    vocabulary_size: int | None = None,
) -> Dataset:
    """Loads the Penn Treebank as prepared by T. Mikolov, from your own files: it is not free.

    By default the examples are those of the authors of arXiv 1706.00043 in their library
    (github.com/idiap/importance-sampling, `PennTreeBank(20)` in datasets.py): up to 20 preceding
    words of a sentence, left-aligned, and the next word, "<eos>" included. In theirs, ids are
    alphabetical, 0 stands for no word, and the validation part is the default test part.

    Args:
        data_dir: folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt, one sentence a line.
        level: as in `tiny_shakespeare`.
        format: as in `tiny_shakespeare`.
        length: as in `tiny_shakespeare`.
        vocabulary_size: as in `tiny_shakespeare`.

    Returns:
        Parts `train`, `valid` and `test`, and the `vocabulary`, as `tiny_shakespeare`.

    Raises:
        ValueError: if a file is missing, empty or not UTF-8 text, the level or format is unknown,
            or a length or size is impossible.
    """
    _check("ptb", level, format, length, vocabulary_size)
    folder = pathlib.Path(data_dir or "").expanduser()
    files = {part: folder / f"ptb.{part}.txt" for part in ("train", "valid", "test")}
    missing = [file.name for file in files.values() if not file.is_file()]
    if not data_dir or missing:
        problem = f"{', '.join(missing)} not found in {folder}" if data_dir else "no data_dir given"
        raise ValueError(
            f"ptb: {problem}; the Penn Treebank needs a licence: get T. Mikolov's files "
            "ptb.train.txt, ptb.valid.txt and ptb.test.txt and pass their folder as data_dir"
        )
    texts = {part: _read(file) for part, file in files.items()}
    return _language(texts, level, format, length, vocabulary_size)


def text_files(
    data_dir: str | os.PathLike | None = None,
    length: int = 128,
    held_out: float = 0.1,
    tokenizer: str | os.PathLike | None = None,
) -> Dataset:
    """Loads text of your own, by byte or by a tokenizer: all files in a folder and those within.

    Each folder within is a source of its own, as are the files beside them, called ".". The files
    of a source are joined in the order of their paths, a zero byte ends each, and the joined tokens
    are cut into windows, as "windows" of `tiny_shakespeare`.

    Args:
        data_dir: the folder. Files and folders whose names begin with a dot are left out.
        length: tokens of an example.
        held_out: share of each file, at its end, of which half is for validation and half for
            testing, in (0, 1).
        tokenizer: a file of the package `tokenizers`, such as tokenizer.json, for files of UTF-8;
            each is encoded on its own, without special tokens. None = each byte is a token.

    Returns:
        Parts `train`, `valid` and `test` of `{"x", "y", "source"}`, `source` [N] int32 into the
        `source_names`. The vocabulary is that of the 256 bytes, or of the tokenizer, so models of
        different texts go on from each other.

    Raises:
        ImportError: if there is a tokenizer, but not the package.
        ValueError: if there is no such folder, no file in it, or less than a window of text for a
            part of a source; if length or share is out of range; if a file is not UTF-8 or that of
            the tokenizer cannot be read.
    """
    if length < 1:
        raise ValueError(f"text_files: length is {length}; choose at least 1")
    if not 0 < held_out < 1:
        raise ValueError(f"text_files: held_out is {held_out}; choose a share above 0, below 1")
    folder = pathlib.Path(data_dir or "").expanduser()
    if not data_dir or not folder.is_dir():
        problem = f"there is no folder {folder}" if data_dir else "no data_dir given"
        raise ValueError(f"text_files: {problem}; pass the folder of your text files as data_dir")
    encode, vocabulary = (_bytes, BYTES) if tokenizer is None else read_tokenizer(tokenizer)
    tokens: dict[str, dict[str, list[np.ndarray]]] = {}  # by source, then by part
    for file in _visible_files(folder):
        path = file.relative_to(folder)
        text = file.read_bytes().decode("latin-1") if tokenizer is None else _read(file)
        ends = [round(len(text) * share) for share in (0, 1 - held_out, 1 - held_out / 2, 1)]
        source = tokens.setdefault(path.parts[0] if len(path.parts) > 1 else ".", {})
        for part, (start, end) in zip(_PARTS, itertools.pairwise(ends), strict=True):
            source.setdefault(part, []).append(encode(text[start:end] + "\0"))
    if not tokens:
        raise ValueError(f"text_files: there are no files in {folder}; put your text there")
    names = sorted(tokens)
    parts = {part: _windows_of_sources(part, names, tokens, length) for part in _PARTS}
    return from_arrays(**parts, vocabulary=vocabulary, source_names=names)


def _bytes(text: str) -> np.ndarray:
    """The bytes of a text that was read as Latin-1, [bytes] int32."""
    return np.frombuffer(text.encode("latin-1"), np.uint8).astype(np.int32)


def _windows_of_sources(
    part: str, names: Sequence[str], tokens: dict[str, dict[str, list[np.ndarray]]], length: int
) -> Batch:
    """Windows of each source, none of which crosses into the next, and the number of its source."""
    found = []
    for number, name in enumerate(names):
        windows = _windows(f"{part} of {name}", np.concatenate(tokens[name][part]), length)
        found.append(windows | {"source": np.full(len(windows["x"]), number, np.int32)})
    return {key: np.concatenate([windows[key] for windows in found]) for key in found[0]}


def _visible_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files in a folder and in those within, sorted, without those hidden by a dot."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _read(file: pathlib.Path) -> str:
    """The text of a file, without the byte order mark that some editors put first."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); convert it") from error


def _check(name: str, level: str, format: str, length: int | None, size: int | None) -> None:
    if level not in _LEVELS:
        raise ValueError(f"{name}: level is {level!r}; choose from {', '.join(_LEVELS)}")
    if format not in _LENGTHS:
        raise ValueError(f"{name}: format is {format!r}; choose from {', '.join(_LENGTHS)}")
    if length is not None and length < 1:
        raise ValueError(f"{name}: length is {length}; choose at least 1")
    if size is not None and size < 2:
        raise ValueError(f"{name}: vocabulary_size is {size}; choose at least 2")


def _language(
    texts: dict[str, str], level: str, format: str, length: int | None, size: int | None
) -> Dataset:
    lines = {part: _lines(text, level) for part, text in texts.items()}
    for part in lines:
        if not lines[part]:
            raise ValueError(f"{part}: there is no text; fill the file that it is read from")
    vocabulary = _vocabulary(lines, size)
    index = {token: number for number, token in enumerate(vocabulary)}
    unknown = index.get(UNKNOWN)  # None if every token is known
    length = length or _LENGTHS[format]
    parts = {}
    for part in lines:
        ids = [index.get(t, unknown) for line in lines[part] for t in line]
        tokens = np.array(ids, np.int32)
        if format == "windows":
            parts[part] = _windows(part, tokens, length)
        else:
            sizes = np.array([len(line) for line in lines[part]])
            parts[part] = _next_words(part, tokens, sizes, length)
    return from_arrays(**parts, vocabulary=vocabulary)


def _lines(text: str, level: str) -> list[Sequence[str]]:
    """Splits text into the tokens of each line: a string for "char", a list for "word"."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if level == "char":
        return lines
    return [[*line.split(), _END] for line in lines if not line.isspace()]


def _vocabulary(lines: dict[str, list[Sequence[str]]], size: int | None) -> tuple[str, ...]:
    counts = collections.Counter(token for line in lines["train"] for token in line)
    tokens = sorted(counts, key=lambda token: (-counts[token], token))[:size]
    if UNKNOWN not in tokens and not _all_tokens(lines.values()) <= set(tokens):
        tokens = [*(tokens[:-1] if len(tokens) == size else tokens), UNKNOWN]
    return tuple(tokens)


def _all_tokens(parts: Iterable[list[Sequence[str]]]) -> set[str]:
    return {token for lines in parts for line in lines for token in line}


def _windows(part: str, tokens: np.ndarray, length: int) -> Batch:
    """Makes windows [N, length] of all lines joined, and the same windows one token later."""
    number = (len(tokens) - 1) // length
    if not number:
        raise ValueError(
            f"{part}: {len(tokens)} tokens make no window of length {length} with a next token; "
            f"choose a length below {len(tokens)}, or more text"
        )
    stop = number * length
    x, y = tokens[:stop], tokens[1 : stop + 1]
    return {"x": x.reshape(number, length), "y": y.reshape(number, length)}


def _next_words(part: str, tokens: np.ndarray, sizes: np.ndarray, length: int) -> Batch:
    """Makes contexts [N, length] within a line, padded at the end, and the token [N] after each."""
    position = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    target = np.flatnonzero(position)
    if not len(target):
        raise ValueError(
            f"{part}: no line has two tokens, so none can be predicted; give longer lines, or "
            'choose format "windows"'
        )
    known = np.minimum(position[target], length)
    x = np.full((len(target), length), _PADDING, np.int32)
    for column in range(length):
        rows = np.flatnonzero(column < known)
        x[rows, column] = tokens[target[rows] - known[rows] + column]
    return {"x": x, "y": tokens[target]}
