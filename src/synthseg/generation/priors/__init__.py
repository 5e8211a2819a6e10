"""Intensity priors of one contrast: a table of normal distributions per class.

Standard library only, as all of a recipe's configs.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import cast

from synthseg.errors import ConfigError
from synthseg.reading import read_text

COLUMNS = ("class", "mean_of_means", "std_of_means", "mean_of_stds", "std_of_stds")
BUILTIN = ("t1",)

ClassPriors = tuple[tuple[float, float], ...]


def prior_blocks(given: tuple[ClassPriors, ...] | ClassPriors) -> tuple[ClassPriors, ...]:
    """Lists of pairs, of which each draw takes one: the one list there is, or several."""
    if given and len(given[0]) == 2 and not isinstance(given[0][0], tuple):
        return (given,)
    return cast("tuple[ClassPriors, ...]", given)


def load_priors(name_or_path: str | Path) -> tuple[ClassPriors, ClassPriors]:
    """Read a table of intensity priors.

    Args:
        name_or_path: ``"t1"``, or a tab-separated file with the columns ``class``, ``mean_of_means``, ``std_of_means``,
            ``mean_of_stds`` and ``std_of_stds``, in intensity units of 0 to 255. Classes are those of the label
            protocol's ``contrast_class`` column, 0 to G - 1 in order. Lines that begin with ``#`` are comments.
    Returns: (class_means, class_stds) for ``MixturePrior(kind="normal", classes="contrast")``: G pairs of the mean and
        standard deviation of a class's mean, and G of its standard deviation's.
    Raises: ConfigError naming the file, the line and the fix.
    Source: reference section 1.8. The original's own .npy files are read by a recipe: ``priors/arrays.py``.
    """
    subject = str(name_or_path)
    if subject in BUILTIN:
        text = resources.files(__name__).joinpath(f"{subject}.tsv").read_text(encoding="utf-8")
    else:
        fix = f"give one of {', '.join(BUILTIN)}, or the path of a tab-separated table"
        text = read_text(name_or_path, error=ConfigError, fix=fix, most=2**20)
    lines = [(number, line.split("\t")) for number, line in enumerate(text.splitlines(), start=1) if _counts(line)]
    if len(lines) < 2 or tuple(cell.strip() for cell in lines[0][1]) != COLUMNS:
        fix = f"write the columns {', '.join(COLUMNS)}, separated by tabs, then one row per class"
        raise ConfigError(subject, found="no header row, or no rows below it", fix=fix)
    rows = [_read_row(cells, expected, f"{subject}: line {n}") for expected, (n, cells) in enumerate(lines[1:])]
    return tuple(row[0] for row in rows), tuple(row[1] for row in rows)


def _counts(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _read_row(cells: list[str], expected: int, where: str) -> tuple[tuple[float, float], tuple[float, float]]:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError as error:
        raise ConfigError(where, found=str(error), fix="write a number in every cell") from error
    if len(numbers) != len(COLUMNS) or not all(0 <= number < math.inf for number in numbers):
        raise ConfigError(where, found=f"{cells}", fix=f"give {len(COLUMNS)} finite numbers of at least 0")
    if numbers[0] != expected:
        raise ConfigError(where, found=f"class {cells[0]}", fix=f"list the classes in order; {expected} comes here")
    return (numbers[1], numbers[2]), (numbers[3], numbers[4])
