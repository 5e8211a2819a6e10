"""From what was typed to pairs: folders, BIDS datasets, single files, lists and tables of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.evaluation.bids import is_dataset, pair_datasets
from synthseg.evaluation.measurements import read_table
from synthseg.evaluation.pairing import FilePair, Pairing, pair_files
from synthseg.files import at_home, read_list
from synthseg.reading import as_text, is_folder, list_folder, real_path
from synthseg.volumes.volume import is_volume_path, strip_extension

LIST = ".txt"
TABLES = (".tsv", ".csv")


def gather_pairs(
    predicted: str | Path,
    truth: str | Path | None = None,
    *,
    truth_pattern: str = "*",
    predicted_pattern: str = "*",
    bids: bool | None = None,
    method: str | None = None,
) -> Pairing:
    """Find out what is to be compared with what.

    - two folders or files: by name, see ``synthseg.evaluation.pairing``;
    - two BIDS datasets: by entities, see ``synthseg.evaluation.bids``;
    - two ``.txt`` lists with as many paths: line by line; paths are taken from the working directory;
    - a ``.tsv`` or ``.csv`` table alone, with the columns ``predicted`` and ``truth`` and, if wanted, ``scan`` and
      ``method``; paths are taken from the table's folder.

    Args:
        truth: None for a table.
        truth_pattern, predicted_pattern: for folders and datasets, see there.
        bids: True or False, or None: by entities if one of two folders is a dataset without volumes beside it.
        method: whose predictions these are; None: what the folder, list or table of predictions is called.
    Returns: pairs with names, scans and methods.
    Raises: UsageError for paths that do not exist or hold nothing, lists and tables that are wrong, two pairs of one
        method that would have one name.
    """
    predicted = Path(predicted)
    if truth is None:
        return _named(_from_table(predicted, method), _called(predicted), predicted)
    truth = Path(truth)
    _check_kinds(predicted, truth)
    if predicted.suffix.lower() == LIST:
        pairing = _told_apart(read_list(predicted), read_list(truth), predicted)
    elif bids or (bids is None and _by_entities(predicted, truth)):
        pairing = pair_datasets(predicted, truth, truth_pattern=truth_pattern, predicted_pattern=predicted_pattern)
    else:
        pairing = pair_files(predicted, truth, truth_pattern=truth_pattern, predicted_pattern=predicted_pattern)
    return _named(pairing, method or _called(predicted), predicted)


def _check_kinds(predicted: Path, truth: Path) -> None:
    """Raises: UsageError for a list without another one, and for a table with a truth beside it."""
    for path, other in ((predicted, truth), (truth, predicted)):
        if path.suffix.lower() in TABLES:
            raise UsageError(path, found=f"a table of pairs, and {other} beside it", fix="give the table alone")
        if path.suffix.lower() == LIST != other.suffix.lower():
            fix = "give two lists, of predictions and of truths"
            raise UsageError(path, found=f"a list, but {other} is none", fix=fix)


def _by_entities(predicted: Path, truth: Path) -> bool:
    if not (is_folder(predicted) and is_folder(truth)):
        return False
    return any(
        is_dataset(folder) and not any(is_volume_path(path) for path in list_folder(folder))
        for folder in (predicted, truth)
    )


def _called(predicted: Path) -> str:
    """The folder's name; of a file that is a volume, its folder's; of a list or table, its own."""
    where = real_path(predicted)
    if is_folder(where):
        return as_text(where.name)
    return as_text(where.parent.name if is_volume_path(where) else where.stem)


def _from_table(path: Path, method: str | None) -> Pairing:
    if path.suffix.lower() not in TABLES:
        fix = "give the true label maps as well, or a .tsv or .csv table with the columns predicted and truth"
        raise UsageError(path, found="no truth to compare with", fix=fix)
    header, lines = read_table(path)
    missing = [name for name in ("predicted", "truth") if name not in header]
    if missing:
        found = f"no column {' and '.join(missing)}, only {', '.join(header)}"
        raise UsageError(path, found=found, fix="name the columns predicted, truth and, if wanted, scan and method")
    if method is not None and "method" in header:
        raise UsageError("--method", found=f"{method!r}, but {path} has a column method", fix="leave one of them out")
    for column in ("predicted", "truth", "scan", "method"):
        empty = [number for number, line in lines if column in header and not line[column]]
        if empty:
            raise UsageError(f"{path}, line {empty[0]}", found=f"nothing in the column {column}", fix="fill it in")
    rows = [line for _, line in lines]
    ours, theirs = ([path.parent / at_home(row[name]) for row in rows] for name in ("predicted", "truth"))
    pairs = []
    methods = [row.get("method", method or path.stem) for row in rows]
    several = len(set(methods)) > 1
    for pair, whose, row in zip(_told_apart(ours, theirs, path, methods).pairs, methods, rows, strict=True):
        name = row.get("scan", pair.name)
        scan = row.get("scan", pair.scan)
        pairs.append(replace(pair, name=f"{whose}/{name}" if several else name, scan=scan, method=whose))
    return Pairing(tuple(pairs))


def _told_apart(
    ours: Sequence[Path], theirs: Sequence[Path], source: Path, methods: Sequence[str] | None = None
) -> Pairing:
    """Pairs one by one, named by as much of their paths as it takes.

    Scans are called by their truths, which several methods share; by their predictions if one method has a truth twice.
    """
    if len(ours) != len(theirs):
        found = f"{len(ours)} predictions for {len(theirs)} truths"
        raise UsageError(source, found=found, fix="list as many of both, in the same order")
    names, truths = _names(ours), _names(theirs)
    once = list(zip(methods or [""] * len(truths), truths, strict=True))
    scans = truths if len(set(once)) == len(once) else names
    rows = zip(names, ours, theirs, scans, strict=True)
    return Pairing(tuple(FilePair(name, path, target, scan) for name, path, target, scan in rows))


def _names(paths: Sequence[Path]) -> list[str]:
    """Stems, with as many folders in front as tell all different paths apart."""
    whole = [path.absolute() for path in paths]
    depth = 1
    while depth < max(len(path.parts) for path in whole):
        if len({path.parts[-depth:] for path in whole}) == len(set(whole)):
            break
        depth += 1
    return [as_text("/".join((*path.parts[-depth:-1], strip_extension(path)))) for path in whole]


def _named(pairing: Pairing, method: str, source: Path) -> Pairing:
    pairs = tuple(replace(pair, method=pair.method or method) for pair in pairing.pairs)
    counts = Counter((pair.method, pair.scan) for pair in pairs)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        found = f"two predictions of the method {twice[0]!r} for the scan {twice[1]!r}"
        raise UsageError(source, found=found, fix="compare each scan once, or name scans in a table")
    return Pairing(pairs, pairing.problems)
