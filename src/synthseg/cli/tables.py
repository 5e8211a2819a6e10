"""Tables and lists of names as arguments of commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def check_tables(written: Mapping[str, Path | None], *, read: Sequence[Path]) -> None:
    """What is to be checked of tables to write before the work, not after it.

    Args:
        written: by option; None: not asked for.
        read: files that the command reads.
    Raises: UsageError for another suffix than .tsv and .csv, and where one would overwrite another, or what is read;
        OutputError for a folder that cannot be written to.
    """
    from synthseg.errors import UsageError
    from synthseg.evaluation.tables import check_table_path
    from synthseg.files import require_writable

    taken = {path.resolve(): "which the command reads" for path in read}
    for option, path in written.items():
        if path is None:
            continue
        where = check_table_path(path).resolve()
        if where in taken:
            raise UsageError(f"{option} {path}", found=f"a file {taken[where]}", fix="write to another one")
        taken[where] = f"that {option} writes"
    for place in {path.parent for path in written.values() if path is not None}:
        require_writable(place)


def split_names(text: str, option: str, *, optional: bool = False) -> tuple[str, ...]:
    """The names in a list with commas.

    Args:
        optional: an empty text holds none.
    Raises: UsageError for a name that is empty or given twice.
    """
    from synthseg.errors import UsageError

    parts = tuple(part.strip() for part in text.split(",")) if text or not optional else ()
    if not all(parts) or len(set(parts)) != len(parts):
        raise UsageError(option, found=repr(text), fix="list different names with commas")
    return parts
