"""One tidy table of a whole cohort, from its ledger alone: volumes, quality, covariates, one row a scan."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synthseg.cohort.ledger import Ledger, Row
from synthseg.errors import OutputError, UsageError
from synthseg.files import atomic_file
from synthseg.reading import read_text

TABLE_NAME = "cohort"  # .tsv, .parquet, and .json, which says what the columns mean
PARTICIPANT = "participant_id"
MISSING = "n/a"  # as BIDS writes it
# Not 007, 1_2 or inf, which Python takes for numbers: codes stay text. Nor more digits than a float holds.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d{0,16})?|\.\d{1,16})(?:[eE][+-]?\d{1,2})?")
_SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)(?:_|$)")

Cell = str | float | int | None


@dataclass(frozen=True)
class CohortTable:
    """Where the table is.

    Attributes:
        tsv, parquet, dictionary: its files; no ``parquet`` where pyarrow is not installed.
        scans: rows. notes: what a reader should know, e.g. participants without covariates.
    """

    tsv: Path
    parquet: Path | None
    dictionary: Path
    scans: int
    notes: tuple[str, ...]


def cohort_table(
    out: Path, participants: Path | None = None, *, into: Path | None = None, parquet: bool | None = None
) -> CohortTable:
    """Write ``cohort.tsv``, ``cohort.parquet`` and ``cohort.json`` (what each column means).

    Every scan of the ledger has one row, in its order, also those that failed or wait: their numbers are missing
    (``n/a``; null in Parquet) and ``state`` says why. Columns: ``subject``, BIDS entities, ``participant_id`` and the
    covariates of ``participants``, state and quality, volumes in mm3 under the names that ``synthseg segment`` gives
    them. A covariate that is called like one of these columns is named ``participant_...``.

    Args:
        out: the cohort's folder, with its ledger.
        participants: a BIDS ``participants.tsv``, matched by ``participant_id`` with or without ``sub-``.
        into: another folder for the table.
        parquet: None writes it where pyarrow is installed.
    Raises: UsageError without a ledger, or for participants that cannot be used; OutputError.
    """
    into = into or out
    with Ledger(out) as ledger:
        rows = list(ledger.rows())
    covariates = {} if participants is None else read_participants(participants)
    columns, cells = tabulate(rows, covariates)
    notes = _missing_covariates(rows, covariates, participants)
    tsv = into / f"{TABLE_NAME}.tsv"
    _write(tsv, _text(list(columns), cells))
    dictionary = into / f"{TABLE_NAME}.json"
    _write(dictionary, json.dumps(columns, indent=1) + "\n")
    path = None
    if parquet or (parquet is None and find_spec("pyarrow")):
        path = into / f"{TABLE_NAME}.parquet"
        _write_parquet(path, list(columns), cells)
    else:
        notes = (*notes, "no Parquet file: install synthseg[cohort] for one")
    return CohortTable(tsv, path, dictionary, len(rows), notes)


def tabulate(
    rows: Sequence[Row], covariates: Mapping[str, Mapping[str, Cell]]
) -> tuple[dict[str, dict[str, str]], list[list[Cell]]]:
    """The table's columns with what they mean, and the cells of each row; what is missing is None.

    Args:
        covariates: by participant without ``sub-``.
    """
    covariates = _renamed(rows, covariates)
    meanings: dict[str, dict[str, str]] = {"subject": {"Description": "name of the scan, unique in this table"}}
    filled: list[dict[str, Cell]] = []
    for row in rows:
        known = {**_who(row, covariates), **covariates.get(_participant(row), {})}
        filled.append({"subject": row.job.subject, **known, **_what(row)})
    groups: list[Mapping[str, dict[str, str]]] = [
        {key: {"Description": f"BIDS entity {key}"} for key in _names(row.job.entities for row in rows)},
        {PARTICIPANT: {"Description": "the participant that the scan is of"}},
        {name: {"Description": f"{name}, from the participants' table"} for name in _names(covariates.values())},
        _STATE_COLUMNS,
        {f"dice_{name}": _score(name) for name in _names(map(_scores, rows))},
        {name: _volume(name) for name in _names(row.result.get("volumes_mm3", {}) for row in rows)},
    ]
    used = _names(filled)
    for group in groups:
        meanings |= {name: meaning for name, meaning in group.items() if name in used and name not in meanings}
    return meanings, [[row.get(name) for name in meanings] for row in filled]


def _renamed(rows: Sequence[Row], covariates: Mapping[str, Mapping[str, Cell]]) -> Mapping[str, Mapping[str, Cell]]:
    """Covariates that are called like another column with ``participant_`` in front."""
    taken = {"subject", *_STATE_COLUMNS, *_names(row.job.entities for row in rows)}
    taken |= {f"dice_{name}" for name in _names(map(_scores, rows))}
    taken |= _names(row.result.get("volumes_mm3", {}) for row in rows).keys()
    if taken.isdisjoint(_names(covariates.values())):
        return covariates
    return {
        who: {f"participant_{name}" if name in taken else name: cell for name, cell in cells.items()}
        for who, cells in covariates.items()
    }


def _names(tables: Iterable[Mapping[str, object]]) -> dict[str, None]:
    """All keys, in the order in which they appear."""
    names: dict[str, None] = {}
    for table in tables:
        if not table.keys() <= names.keys():
            names |= dict.fromkeys(table)
    return names


def read_participants(path: Path) -> dict[str, dict[str, Cell]]:
    """Covariates by participant without ``sub-``; numbers as numbers, ``n/a`` and empty cells as None.

    Raises: UsageError for a table that cannot be read, has no ``participant_id``, or names a participant twice.
    """
    fix = "give a participants.tsv: tab-separated UTF-8 text"
    text = io.StringIO(read_text(path, error=UsageError, fix=fix))
    try:
        # BIDS tables know no quotes: a quotation mark is one.
        lines = [line for line in csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if any(line)]
    except csv.Error as error:  # a cell of more than 128 KiB
        raise UsageError(path, found=f"no readable table ({error})", fix=fix) from error
    if not lines or PARTICIPANT not in lines[0]:
        found = f"the columns {', '.join(lines[0]) if lines else 'none'}"
        raise UsageError(path, found=found, fix=f"give a tab-separated table with a column {PARTICIPANT}")
    header, found_by = [name.strip() for name in lines[0]], {}
    if len(set(header)) < len(header):
        twice = ", ".join(sorted(name for name, times in Counter(header).items() if times > 1))
        raise UsageError(path, found=f"two columns called {twice}", fix="rename one of them")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            found = f"{len(line)} cells in line {number}, {len(header)} in the header"
            raise UsageError(path, found=found, fix="complete the line with n/a")
        cells = dict(zip(header, line, strict=True))
        who = cells.pop(PARTICIPANT).strip().removeprefix("sub-")
        if who in found_by:
            raise UsageError(path, found=f"two lines of participant {who}", fix="keep one line a participant")
        found_by[who] = cells
    numeric = {name for name in header if name != PARTICIPANT and all(_is_number(c[name]) for c in found_by.values())}
    return {
        who: {name: _value(cell, numeric=name in numeric) for name, cell in c.items()} for who, c in found_by.items()
    }


_STATE_COLUMNS = {
    "state": {"Description": "done, failed, waiting or running"},
    "error": {"Description": "why a failed scan failed"},
    "attempts": {"Description": "attempts at this scan"},
    "seconds": {"Description": "time spent on the last attempt", "Units": "s"},
    "qc": {"Description": "verdict on the worst group of structures: pass, warn or fail (predicted Dice)"},
    "warnings": {"Description": "codes of what may be wrong with the scan or its result, separated by spaces"},
    "notes": {"Description": "what was noticed on the way"},
    "settings": {"Description": "digest of settings, weights and version; equal digests give equal results"},
    "input_sha256": {"Description": "SHA-256 of the scan's file"},
}


def _who(row: Row, covariates: Mapping[str, object]) -> dict[str, Cell]:
    named = _named(row)
    if named is None and _participant(row) not in covariates:
        return {**row.job.entities}
    return {**row.job.entities, PARTICIPANT: row.job.subject if named is None else f"sub-{named}"}


def _participant(row: Row) -> str:
    """Whom the scan is of, as far as its name tells: without BIDS entities, somebody of the scan's name."""
    return _named(row) or row.job.subject


def _named(row: Row) -> str | None:
    named = row.job.entities.get("sub")
    found = _SUBJECT.match(row.job.subject)
    return named.removeprefix("sub-") if named else found and found.group(1).removeprefix("sub-")


def _what(row: Row) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"state": row.state, "error": row.error or None, "attempts": row.attempts}
    if row.state != "done":  # what an earlier attempt gave holds no longer
        return cells
    cells |= {"seconds": row.seconds, "settings": row.settings, "input_sha256": row.stamp[2]}
    cells |= {"qc": row.result.get("quality", {}).get("verdict")} if "quality" in row.result else {}
    cells |= {"warnings": " ".join(_codes(row)) or "none"} if "warnings" in row.result else {}
    cells |= {"notes": "; ".join(row.result["notes"])} if row.result.get("notes") else {}
    return cells | {f"dice_{name}": score for name, score in _scores(row).items()} | row.result.get("volumes_mm3", {})


def _codes(row: Row) -> list[str]:
    return [str(warning["code"]) for warning in row.result["warnings"]]


def _scores(row: Row) -> dict[str, float]:
    scores: dict[str, float] = row.result.get("quality", {}).get("scores", {})
    return scores


def _score(name: str) -> dict[str, str]:
    return {"Description": f"predicted Dice of {name}", "Units": "1"}


def _volume(name: str) -> dict[str, str]:
    return {"Description": f"volume of {name}: sum of its posteriors at 1 mm", "Units": "mm^3"}


def _missing_covariates(
    rows: Sequence[Row], covariates: Mapping[str, object], participants: Path | None
) -> tuple[str, ...]:
    without = {_participant(row) for row in rows} - set(covariates)
    if participants is None or not without:
        return ()
    some = ", ".join(sorted(without)[:5]) + (", ..." if len(without) > 5 else "")
    return (f"{participants} has no line for {len(without)} participant(s): {some}",)


def _is_number(cell: str) -> bool:
    text = cell.strip()
    return text in ("", MISSING) or text.lower() == "nan" or bool(_NUMBER.fullmatch(text))


def _value(cell: str, *, numeric: bool) -> Cell:
    text = cell.strip()
    if text in ("", MISSING) or (numeric and text.lower() == "nan"):
        return None
    return float(text) if numeric else text


def _text(names: Sequence[str], cells: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(names)
    for row in cells:
        writer.writerow([MISSING if cell is None else _said(cell) for cell in row])
    return text.getvalue()


def _said(cell: str | float | int) -> str:
    if isinstance(cell, float):
        return f"{cell:.10g}" if not cell.is_integer() or abs(cell) >= 1e15 else f"{cell:.0f}"
    return str(cell).replace("\t", " ").replace("\n", " ")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def _write_parquet(path: Path, names: Sequence[str], cells: Sequence[Sequence[Cell]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OutputError(path, found="no pyarrow", fix="pip install 'synthseg[cohort]'") from error
    columns: dict[str, list[Any]] = {name: [row[i] for row in cells] for i, name in enumerate(names)}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with atomic_file(path) as file:
        pq.write_table(table, file)
