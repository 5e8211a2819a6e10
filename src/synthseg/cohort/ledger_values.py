"""The ledger's tables, and what they hold, read with errors that name the ledger: any byte of it may be changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from synthseg.errors import UsageError
from synthseg.reading import as_text

SCHEMA = """
CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS setting (digest TEXT PRIMARY KEY, content TEXT NOT NULL, first_used TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scan (
  subject TEXT PRIMARY KEY, place INTEGER NOT NULL, source TEXT NOT NULL, entities TEXT NOT NULL, files TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'done', 'failed')), why TEXT NOT NULL DEFAULT '',
  attempts INTEGER NOT NULL DEFAULT 0, losses INTEGER NOT NULL DEFAULT 0,
  error_kind TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
  settings TEXT NOT NULL DEFAULT '', bytes INTEGER, mtime_ns INTEGER, sha256 TEXT,
  worker TEXT NOT NULL DEFAULT '', started TEXT, finished TEXT, seconds REAL, result TEXT);
CREATE INDEX IF NOT EXISTS scan_state ON scan (state, place);
CREATE TABLE IF NOT EXISTS attempt (
  subject TEXT NOT NULL, number INTEGER NOT NULL, status TEXT NOT NULL, error_kind TEXT NOT NULL, error TEXT NOT NULL,
  worker TEXT NOT NULL, finished TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (subject, number));
"""

_FIX = "delete it and run the same command again: finished scans are found by their records"


def parse(text: Any, ledger: Path) -> Any:
    """What was written as JSON. Raises: UsageError where that is no longer what is there."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(ledger, str(error)) from error


def parse_texts(text: Any, ledger: Path) -> dict[str, str]:
    """Texts by name. Raises: UsageError."""
    found = parse(text, ledger)
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise damaged(ledger, "something else than texts by name")
    return found


def parse_result(text: Any, ledger: Path) -> dict[str, Any]:
    """What became of a scan, with tables where readers expect some. Raises: UsageError."""
    found = parse(text or "{}", ledger)
    told = found if isinstance(found, dict) else {"quality": None}
    quality, volumes, notes = told.get("quality", {}), told.get("volumes_mm3", {}), told.get("notes", [])
    scores = quality.get("scores", {}) if isinstance(quality, dict) else None
    texts = isinstance(notes, list) and all(isinstance(note, str) for note in notes)
    warnings = told.get("warnings", [])
    texts = texts and isinstance(warnings, list) and all(isinstance(one, dict) and "code" in one for one in warnings)
    if not (texts and _numbers(volumes) and _numbers(scores)):
        raise damaged(ledger, "a result that is none")
    return told


def _numbers(table: Any) -> bool:
    return isinstance(table, dict) and all(isinstance(one, int | float) for one in table.values())


def path_value(path: Path) -> str | bytes:
    """A path as SQLite holds it: text, or bytes where its bytes are no text."""
    whole = path.absolute()
    return str(whole) if as_text(whole) == str(whole) else os.fsencode(whole)


def parse_path(value: Any, ledger: Path) -> Path:
    """The path that :func:`path_value` gave. Raises: UsageError."""
    if not isinstance(value, str | bytes):
        raise damaged(ledger, "a scan without a path")
    return Path(os.fsdecode(value))


def damaged(ledger: Path, what: str) -> UsageError:
    """The error for a ledger that holds something else than what was written."""
    return UsageError(ledger, found=f"a damaged ledger ({what})", fix=_FIX)
