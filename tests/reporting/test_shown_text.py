import pytest

from isjax.reporting.text import for_figure, for_markdown, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("größer 字 a_b", "größer 字 a_b"),
        ("bell\x07\x1b[31m", "bell\ufffd\ufffd[31m"),
        ("a\tb\nc", "a b c"),
        ("\ud800\ufffe\u202e", "\ufffd" * 3),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("", ""),
        (3.5, "3.5"),
    ],
)
def test_only_what_can_be_printed_is_shown_and_not_too_much(text, expected):
    assert shown(text) == expected


def test_newlines_may_be_kept():
    assert shown("a\nb\tc\x00", 10, newlines=True) == "a\nb c\ufffd"


def test_dollars_and_bars_are_escaped():
    assert for_figure("$a|b$") == r"\$a|b\$" and for_markdown("$a|b$") == r"$a\|b$"
