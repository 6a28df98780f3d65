"""Tokenizers of the package `tokenizers`, which is imported only where one is read."""

import json
import os
from collections.abc import Callable

import numpy as np

__all__ = ["read_tokenizer"]

# How byte-level tokenizers write a byte: printable ones as they are, the others from U+0100 on.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}


def read_tokenizer(
    path: str | os.PathLike,
) -> tuple[Callable[[str], np.ndarray], tuple[str, ...]]:
    """Reads a file such as tokenizer.json.

    Args:
        path: of the file, as `Tokenizer.save` of the package writes it.

    Returns:
        `(text) -> ids` [tokens] int32, of the whole text and without the tokens that the tokenizer
        would add around it; and the vocabulary, the token of each id. Tokens of a byte-level
        tokenizer that changes no text are their bytes as Latin-1, others are as in the file.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if the file is missing or none of a tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(
            "text_files: a tokenizer needs the package tokenizers; run pip install '.[tokenizers]' "
            "in a checkout of isjax, or leave tokenizer out to read bytes"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the package raises no narrower type
        raise ValueError(
            f"text_files: tokenizer {path} cannot be read ({error}); give the path of a "
            "tokenizer.json"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    settings = json.loads(tokenizer.to_str())
    decoder = (settings["decoder"] or {}).get("type")
    by_byte = decoder == "ByteLevel" and settings["normalizer"] is None
    added = {token["content"] for token in settings["added_tokens"]}  # plain text in any case
    ids = tokenizer.get_vocab()
    tokens = [""] * (max(ids.values()) + 1)  # an id may be missing
    for token, place in ids.items():
        tokens[place] = _as_bytes(token, token in added) if by_byte else token

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    return encode, tuple(tokens)


def _as_bytes(token: str, plain: bool) -> str:
    """The bytes of a token as Latin-1; it is plain text, or each character stands for a byte."""
    if plain or not set(token) <= _BYTE_OF.keys():
        return token.encode().decode("latin-1")
    return "".join(chr(_BYTE_OF[character]) for character in token)
