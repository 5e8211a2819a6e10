"""A table of names and numbers in a terminal: the names give way, the numbers never."""

from __future__ import annotations

from collections.abc import Sequence

FILE_WIDTH = 140  # where no terminal says how wide it is: a file, another program


def print_columns(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of a name and numbers. In a narrow terminal, names go on in the next line."""
    from rich.console import Console
    from rich.markup import escape  # a name may hold brackets
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=FILE_WIDTH)
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(escape(headers[0]), overflow="fold")
    for place, header in enumerate(headers[1:], start=1):
        widest = max((len(row[place]) for row in rows), default=0)
        table.add_column(escape(header), justify="right", no_wrap=True, min_width=widest)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
