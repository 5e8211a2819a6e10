"""Who is who: tables of volumes, tables of participants, and which scan is whose."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.evaluation.measurements import parse_number, read_table
from synthseg.evaluation.writing import listed

SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+")


@dataclass(frozen=True)
class Subject:
    """A participant's scan."""

    scan: str
    case: bool
    participant: Mapping[str, str]  # cells by column


def read_volumes(path: str | Path) -> dict[str, dict[str, float]]:
    """subject -> structure -> mm3, of a table by ``synthseg segment --volumes`` or ``mri_synthseg --vol``.

    Read are the CSV (a line a subject, its name first, a column a structure) and the TSV (a line a subject and
    structure: ``subject``, ``structure``, ``volume_mm3``).

    Raises: UsageError for another table, a subject or structure that occurs twice, a volume that is no number.
    """
    path = Path(path)
    header, lines = read_table(path)
    volumes: dict[str, dict[str, float]] = {}
    if {"subject", "structure", "volume_mm3"} <= set(header):
        for number, line in lines:
            of_subject = volumes.setdefault(line["subject"], {})
            if line["structure"] in of_subject:
                found = f"{line['structure']} of {line['subject']} twice (line {number})"
                raise UsageError(path, found=found, fix="keep one line")
            of_subject[line["structure"]] = parse_number(path, number, "volume_mm3", line["volume_mm3"])
        return volumes
    if header[0] not in ("subject", "subjects", ""):
        fix = "give what `synthseg segment --volumes` writes: a column subject, then a column a structure"
        raise UsageError(path, found=f"the first column {header[0]!r}", fix=fix)
    for number, line in lines:
        subject = line[header[0]]
        if subject in volumes:
            raise UsageError(path, found=f"the subject {subject} twice (line {number})", fix="keep one line")
        volumes[subject] = {name: parse_number(path, number, name, line[name]) for name in header[1:]}
    return volumes


def read_participants(path: str | Path) -> dict[str, dict[str, str]]:
    """participant -> cells by column, of a BIDS ``participants.tsv`` (or .csv): ``participant_id`` and any columns.

    Raises: UsageError without that column, or for a participant who occurs twice.
    """
    path = Path(path)
    header, lines = read_table(path)
    if "participant_id" not in header:
        raise UsageError(path, found=f"the columns {', '.join(header)}", fix="name the subjects' column participant_id")
    people: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for number, line in lines:
        name = line["participant_id"]
        if bare_id(name) in seen:
            raise UsageError(path, found=f"the participant {name} twice (line {number})", fix="keep one line")
        seen.add(bare_id(name))
        people[name] = line
    return people


def bare_id(name: str) -> str:
    """A participant's id without BIDS' ``sub-``: with and without it, it is the same person."""
    return name.removeprefix("sub-")


def require_columns(participants: Mapping[str, Mapping[str, str]], columns: Sequence[str]) -> None:
    """Raise UsageError unless the participants' table has these columns."""
    known = list(next(iter(participants.values())))
    for column in columns:
        if column not in known:
            raise UsageError("the participants", found=f"no column {column!r}", fix=f"use one of {listed(known, 40)}")


def match_subjects(
    volumes: Mapping[str, Mapping[str, float]],
    participants: Mapping[str, Mapping[str, str]],
    column: str,
    wanted: Mapping[str, bool],
    scans: str = "*",
) -> tuple[list[Subject], list[str]]:
    """Scans of the participants whose ``column`` holds a value of ``wanted`` (True: a case), and who was left out.

    A scan belongs to the participant of the same name, or of its ``sub-...``; ids are the same with and without
    ``sub-``.

    Args:
        scans: use only scans named so.
    Raises: UsageError when no scan is named so, a participant has two scans, nobody has one of the wanted values.
    """
    owners, strangers = _owners(volumes, participants, scans)
    groups = {name: participants[name][column] for name in owners}
    for value in wanted:
        if value not in groups.values():
            found = f"nobody with volumes is {value!r}; there are {listed(sorted(set(groups.values()))) or 'none'}"
            raise UsageError(f"column {column!r}", found=found, fix="name values of the column")
    others = [name for name, group in groups.items() if group not in wanted]
    absent = [name for name, cells in participants.items() if name not in owners and cells[column] in wanted]
    notes = [
        f"{len(who)} {what}, left out: {listed(who)}"
        for who, what in (
            (strangers, "not among the participants"),
            (others, "of neither group"),
            (absent, "without a scan"),
        )
        if who
    ]
    members = [(name, scan) for name, scan in owners.items() if groups[name] in wanted]
    return [Subject(scan, wanted[groups[name]], participants[name]) for name, scan in members], notes


def _owners(
    volumes: Mapping[str, Mapping[str, float]], participants: Mapping[str, Mapping[str, str]], scans: str
) -> tuple[dict[str, str], list[str]]:
    """participant -> scan, and the scans of nobody."""
    ids = {bare_id(name): name for name in participants}
    chosen = [scan for scan in volumes if fnmatch.fnmatchcase(scan, scans)]
    if not chosen:
        raise UsageError("the volumes", found=f"no subject named {scans}", fix="widen --scans")
    owners: dict[str, str] = {}
    strangers = []
    for scan in chosen:
        prefix = SUBJECT.match(scan)
        owner = ids.get(bare_id(scan)) or (ids.get(prefix.group()[4:]) if prefix else None)
        if owner is None:
            strangers.append(scan)
        elif owner in owners:
            fix = "choose one scan of each, e.g. --scans '*T1w*'"
            raise UsageError(f"participant {owner}", found=f"two scans, {owners[owner]} and {scan}", fix=fix)
        else:
            owners[owner] = scan
    return owners, strangers
