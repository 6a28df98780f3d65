"""Compares training runs: prints a table and writes an HTML page.

    python -m isjax.report runs
    python -m isjax.report runs/uniform runs/default --output report --markdown

Reads every run in or below the folders, unfinished ones as far as they have come. The table has a
row per method; methods whose runs take less than the full budget have a row per budget. The page,
`index.html` in the output folder, needs no other file; its figures lie beside it as PNG.
"""

import argparse
import datetime
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from isjax import __version__
from isjax.reporting.notes import notes
from isjax.reporting.page import write_page
from isjax.reporting.runs import load_runs
from isjax.reporting.tables import explanation, format_table, summarise

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and writes the page.

    Args:
        argv: Command line arguments; those of the process if None.

    Returns:
        Exit status: 2 after an error, which is printed to stderr in one line; 130 after Ctrl-C;
        else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m isjax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="run folder, or folder above runs")
    parser.add_argument("--output", metavar="FOLDER", help="default: report/ above the runs")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has ±, nor every name UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        page = _report(args)
        print(f"page: {page}", flush=True)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ImportError, MemoryError, OSError, RecursionError, ValueError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {words}", file=sys.stderr)
        return 2
    return 0


def _report(args: argparse.Namespace) -> Path:
    """Prints the table and writes the page; returns its path."""
    folder = args.dirs[0]
    if len(args.dirs) > 1:
        folder = os.path.commonpath([os.path.abspath(name) for name in args.dirs])
    output = Path(args.output or Path(folder, "report"))
    runs = load_runs(args.dirs)
    table = format_table(summarise(runs), markdown=args.markdown)
    print(table, explanation(runs), sep="\n")
    for note in notes(runs):
        print(f"note: {note}", flush=True)
    words = [*args.dirs, *(["--output", args.output] if args.output else [])]
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    command = shlex.join(["python", "-m", "isjax.report", *words])
    try:
        return write_page(runs, output, f"isjax {__version__}, {now}: {command}")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ValueError(f"{output}: {error}; choose another folder with --output") from error


if __name__ == "__main__":
    sys.exit(main())
