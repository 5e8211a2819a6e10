"""How old who is on a scan was: as a BIDS dataset, a JSON sidecar or the DICOM series behind it says.

Nothing is guessed and nothing fails: an age that is not there, or cannot be read, is not known.
Source: BIDS 1.10, "Participants file" and "Sessions file" (``age``, in years unless their JSON says otherwise); DICOM
PS3.5, value representation AS ("034Y", "018M", "003W", "010D").
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from synthseg.inference.age import Age
from synthseg.volumes import strip_extension

YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # of DICOM's units
_UNITS = re.compile(r"\b(y|yrs?|years?|m|mos?|mons?|mths?|months?|w|wks?|weeks?|d|days?)\b")  # of BIDS's, in words
OLDEST = 120.0
_AS = re.compile(r"\s*(\d{1,3}(?:\.\d+)?)\s*([YMWD])?\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\s*(\d{1,5}(?:\.\d+)?)\s*\+?\s*")  # "89+": as BIDS asks for old people
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
LARGEST = 64 * 2**20  # bytes of a table or sidecar that is looked into


def age_of(scan: Path) -> Age | None:
    """The age on the day of a scan, in years; None where nobody says.

    The first of: ``age`` of its session, of its participant (BIDS), ``PatientAge`` of its JSON sidecar, of the DICOM
    files that it was converted from.
    """
    for ask in (_of_session, _of_participant, _of_sidecar, _of_dicom):
        try:
            found = ask(scan)
        except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error):
            continue
        if found is not None:
            return found
    return None


def _of_session(scan: Path) -> Age | None:
    subject = _folder_of(scan, "sub-")
    session = _folder_of(scan, "ses-")
    if subject is None or session is None:
        return None
    return _from_table(subject / f"{subject.name}_sessions.tsv", "session_id", session.name, scan)


def _of_participant(scan: Path) -> Age | None:
    subject = _folder_of(scan, "sub-")
    if subject is None:
        return None
    return _from_table(subject.parent / "participants.tsv", "participant_id", subject.name, scan)


def _folder_of(scan: Path, prefix: str) -> Path | None:
    """The innermost folder of a subject or session that a scan lies in."""
    return next((folder for folder in scan.absolute().parents if folder.name.startswith(prefix)), None)


def _from_table(table: Path, key: str, name: str, scan: Path) -> Age | None:
    if not table.is_file():
        return None
    said = _table(table, table.stat().st_mtime_ns, key).get(name.partition("-")[2], ())
    session = _folder_of(scan, "ses-")
    if session is not None and len({age for _, age in said}) > 1:  # a row for each session
        said = tuple(row for row in said if row[0] == session.name.partition("-")[2])
    ages = {age for _, age in said}
    unit = _unit_of(table.with_suffix(".json"))
    years = None if len(ages) != 1 or unit is None else _years(ages.pop(), unit)
    # Not the table's name, which may hold the subject's: what is said of an age is on pages without names.
    return None if years is None else Age(years, f"{key.partition('_')[0]}s.tsv")


@lru_cache(maxsize=64)
def _table(path: Path, _changed_ns: int, key: str) -> Mapping[str, tuple[tuple[str, str], ...]]:
    """By the label in the column ``key``, without its prefix: session and age of each of its rows; empty for a table
    without both columns.
    """
    if path.stat().st_size > LARGEST:
        return {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        column = next((name for name in rows.fieldnames or () if name and name.strip().lower() == "age"), None)
        if column is None or key not in (rows.fieldnames or ()):
            return {}
        found: dict[str, tuple[tuple[str, str], ...]] = {}
        for row in rows:
            if row.get(column):
                label, session = (_label(str(row.get(name) or "")) for name in (key, "session_id"))
                found[label] = (*found.get(label, ()), (session, str(row[column]).strip()))
        return found


def _label(text: str) -> str:
    """Without "sub-" or "ses-"."""
    return text.strip().split("-", 1)[-1]


def _unit_of(dictionary: Path) -> float | None:
    """Years in the unit that a table's JSON states for ``age``; 1 where it states none, None where it is not clear."""
    about = _json(dictionary).get("age")
    unit = str(about.get("Units") or "").strip().lower() if isinstance(about, dict) else ""
    named = {word[0].upper() for word in _UNITS.findall(unit)}
    if "gestation" in unit or "menstrual" in unit:  # not from birth on
        return None
    if not unit:
        return 1.0
    return YEARS[named.pop()] if len(named) == 1 else None


def _of_sidecar(scan: Path) -> Age | None:
    sidecar = scan.with_name(f"{strip_extension(scan)}.json")
    years = _dicom_years(str(_json(sidecar).get("PatientAge", "")))
    return None if years is None else Age(years, sidecar.name)


def _of_dicom(scan: Path) -> Age | None:
    """Of a scan that was converted from DICOM: its sidecar says nothing of the patient, the files do."""
    note = scan.with_name(f"{strip_extension(scan)}_source.json")
    files = _json(note).get("files")
    if not isinstance(files, list) or not files or not Path(str(files[0])).is_file():
        return None
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError:
        return None
    tags = ["PatientAge", "PatientBirthDate", "AcquisitionDate", "StudyDate"]
    try:
        header = dcmread(str(files[0]), stop_before_pixels=True, specific_tags=tags)
        said = {tag: str(header.get(tag) or "") for tag in tags}
    except (InvalidDicomError, AttributeError, TypeError, KeyError, NotImplementedError):
        return None
    years = _dicom_years(said["PatientAge"])
    if years is None:
        years = _between(said["PatientBirthDate"], said["AcquisitionDate"] or said["StudyDate"])
    return None if years is None else Age(years, "DICOM header")


def _between(born: str, scanned: str) -> float | None:
    """Years between two dates as DICOM writes them (YYYYMMDD)."""
    dates = [_DATE.fullmatch(text.strip()) for text in (born, scanned)]
    if any(date is None for date in dates):
        return None
    first, last = ([int(part) for part in date.groups()] for date in dates if date is not None)
    years = last[0] - first[0] + (last[1] - first[1]) / 12 + (last[2] - first[2]) / 365.25
    return years if 0 <= years <= OLDEST else None


def _dicom_years(text: str) -> float | None:
    found = _AS.fullmatch(text)
    unit = (found[2] or "Y").upper() if found else ""
    if found is None or (unit == "Y" and float(found[1]) == 0):  # what anonymisers leave of an age
        return None
    return _plausible(float(found[1]) * YEARS[unit])


def _years(text: str, unit: float) -> float | None:
    found = _NUMBER.fullmatch(text)
    return None if found is None else _plausible(float(found[1]) * unit)


def _plausible(years: float) -> float | None:
    return years if years <= OLDEST else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return {}
    values = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    return values if isinstance(values, dict) else {}
