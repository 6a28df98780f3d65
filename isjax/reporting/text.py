"""Names and texts of users, made fit for a terminal, a table, a figure and a page."""

__all__ = ["for_figure", "for_markdown", "shown"]


def shown(text: object, limit: int = 60, newlines: bool = False) -> str:
    """Returns a text without control characters, and cut.

    Args:
        text: Any object; its `str` is shown.
        limit: Most characters.
        newlines: Whether to keep newlines; else these, like tabs, become spaces.

    Returns:
        At most `limit` characters, the last one "…" if the text was longer.
    """
    start = str(text)[: limit + 1]
    spaces = {"\t": " ", "\n": "\n" if newlines else " "}
    start = "".join(c if c.isprintable() else spaces.get(c, "\ufffd") for c in start)
    return start if len(start) <= limit else start[: limit - 1] + "…"


def for_figure(text: str) -> str:
    """Escapes dollar signs, between which Matplotlib would read mathematics."""
    return text.replace("$", r"\$")


def for_markdown(text: str) -> str:
    """Escapes bars, which would end the cell of a Markdown table."""
    return text.replace("|", r"\|")
