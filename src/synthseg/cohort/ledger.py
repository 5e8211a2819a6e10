"""The ledger of a cohort: one SQLite file in the output folder that knows of every scan what became of it.

Only the process that holds the folder's :class:`synthseg.cohort.lease.Lease` writes; anyone may read. Its journal is
deleted at the end of each transaction instead of a write-ahead log, whose shared memory does not work on network disks,
and every transaction is synchronised with the disk before it counts.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from synthseg.cohort.ledger_values import SCHEMA, damaged, parse, parse_path, parse_result, parse_texts, path_value
from synthseg.cohort.work import Described, Job, Report, Settings
from synthseg.errors import OutputError, UsageError

LEDGER_NAME = "cohort.sqlite"
VERSION = 1  # of the tables of SCHEMA
State = Literal["waiting", "running", "done", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed")
BUSY_S = 60.0  # a reader keeps a writer waiting for milliseconds; on a slow network disk for seconds


@dataclass(frozen=True)
class Row:
    """What the ledger knows of one scan.

    Attributes:
        why: it waits, in words.
        attempts: begun so far; ``losses`` of them ended with the worker, since it was last put in the queue.
        settings: digest of those that the state is of.
        stamp: bytes, time of change (ns) and SHA-256 of the input; None: not known.
        result: of a scan that is done: volumes, quality, notes, timings, what it ran on.
    """

    job: Job
    state: State
    why: str
    attempts: int
    losses: int
    error_kind: str
    error: str
    settings: str
    stamp: tuple[int | None, int | None, str | None]
    worker: str
    started: str | None
    finished: str | None
    seconds: float | None
    result: dict[str, Any]


class Ledger:
    """An open ledger. Close it, or use it in a ``with`` block.

    Args:
        out: the cohort's output folder.
        create: begin a new ledger where there is none.
    Raises: UsageError where there is none, or it is not one of ours; OutputError if it cannot be opened.
    """

    def __init__(self, out: Path, *, create: bool = False) -> None:
        self.path = out / LEDGER_NAME
        self.out = Path(out).absolute()
        if not create and not self.path.is_file():
            raise self._missing()
        with self._told():
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = EXTRA")  # the deleted journal is synchronised, too: power cuts
            self._begin(create)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def note(self, name: str) -> Any:
        """A value that :meth:`write_note` left, None if it did not."""
        with self._told():
            found = self._db.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
        return None if found is None else parse(found["value"], self.path)

    def write_note(self, name: str, value: Any) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (name, json.dumps(value)))

    def settings(self) -> Settings:
        """What the cohort was last run with. Raises: UsageError before the first run."""
        values = self.note("settings")
        if values is None:
            raise UsageError(self.path, found="a ledger that no run has filled", fix="use `synthseg cohort run` first")
        return Settings.from_dict(values, where=str(self.path))

    def described(self, digest: str) -> dict[str, Any] | None:
        """The settings of a digest, None for one that was never used."""
        with self._told():
            found = self._db.execute("SELECT content FROM setting WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else parse(found["content"], self.path)

    def rows(self, state: State | None = None) -> Iterator[Row]:
        """All scans, or those of one state, in the order in which they were enlisted."""
        where, given = ("", ()) if state is None else ("WHERE state = ?", (state,))
        with self._told():
            for found in self._db.execute(f"SELECT * FROM scan {where} ORDER BY place", given):
                yield self._row(found)

    def counts(self) -> dict[State, int]:
        """Number of scans in each state."""
        with self._told():
            found = dict(self._db.execute("SELECT state, COUNT(*) FROM scan GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def history(self, subject: str) -> list[dict[str, Any]]:
        """All finished attempts at a scan, in order."""
        with self._told():
            found = self._db.execute("SELECT * FROM attempt WHERE subject = ? ORDER BY number", (subject,)).fetchall()
        return [dict(one) for one in found]

    def enlist(self, entries: Sequence[tuple[Job, State, str]], settings: Settings, described: Described) -> None:
        """Write down all scans of a run and what it is run with, in one transaction.

        Args:
            entries: with each job its state from now on and, where it waits, why (:mod:`synthseg.cohort.plan`).
        """
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO note VALUES ('settings', ?)", (json.dumps(settings.to_dict()),))
            db.execute("INSERT OR REPLACE INTO note VALUES ('digest', ?)", (json.dumps(described.digest),))
            content = json.dumps(described.settings)
            db.execute("INSERT OR IGNORE INTO setting VALUES (?, ?, ?)", (described.digest, content, now()))
            place = db.execute("SELECT COALESCE(MAX(place), 0) FROM scan").fetchone()[0]
            db.executemany(
                "INSERT INTO scan (subject, place, source, entities, files, state, why) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (subject) DO UPDATE SET source = excluded.source, entities = excluded.entities, "
                "files = excluded.files, state = excluded.state, why = excluded.why, "
                # Those that still wait for the same reason keep their losses; who is put in the queue begins anew.
                "losses = CASE WHEN excluded.state <> 'waiting' OR (state = 'waiting' AND why = excluded.why) "
                "THEN losses ELSE 0 END",
                ((*self._job(job, place + i), state, why) for i, (job, state, why) in enumerate(entries, start=1)),
            )

    def put_back(self, subjects: Iterable[str] | None = None, *, why: str, forgiven: bool = False) -> int:
        """Let scans wait again: those named, or all that a run which is gone left as running. Returns: how many.

        Args:
            forgiven: workers that those named took with them count no longer.
        """
        with self._transaction() as db:
            if subjects is None:
                return db.execute("UPDATE scan SET state = 'waiting', why = ? WHERE state = 'running'", (why,)).rowcount
            sql = "UPDATE scan SET state = 'waiting', why = ?, losses = losses * ? WHERE subject = ?"
            return db.executemany(sql, [(why, not forgiven, subject) for subject in subjects]).rowcount

    def losses(self) -> dict[str, int]:
        """Of the scans that wait, those that took workers with them, and how many; also in runs that are gone."""
        with self._told():
            sql = "SELECT subject, losses FROM scan WHERE state = 'waiting' AND losses > 0"
            return dict(self._db.execute(sql).fetchall())

    def hand_out(self, subject: str) -> None:
        """A worker is about to get the scan; written down first, so that its loss is noticed."""
        sql = "UPDATE scan SET state = 'running', attempts = attempts + 1, started = ? WHERE subject = ?"
        with self._transaction() as db:
            db.execute(sql, (now(), subject))

    def settle(self, report: Report, state: State, described: Described, stamp: Mapping[str, Any]) -> None:
        """Write down what became of a scan, and the attempt.

        Args:
            state: that it is in from now on: a lost one waits again, or has failed.
            stamp: ``bytes``, ``mtime_ns`` and ``sha256`` of the input that the report is of, where they are known.
        """
        result = {k: v for k, v in report.record.items() if k not in ("input", "settings", "format", "files")}
        finished = now()
        with self._transaction() as db:
            db.execute(
                "UPDATE scan SET state = ?, why = ?, losses = losses + ?, error_kind = ?, error = ?, settings = ?, "
                "bytes = ?, mtime_ns = ?, sha256 = ?, worker = ?, finished = ?, seconds = ?, result = ? "
                "WHERE subject = ?",
                (
                    state,
                    report.message if state == "waiting" else "",
                    report.status == "lost",
                    *(("", "") if state == "done" else (report.kind, report.message)),
                    described.digest,
                    *(stamp.get(name) for name in ("bytes", "mtime_ns", "sha256")),
                    report.worker,
                    finished,
                    report.seconds,
                    json.dumps(result) if result else None,
                    report.subject,
                ),
            )
            db.execute(
                "INSERT INTO attempt SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ?, ?, ?, ? FROM attempt "
                "WHERE subject = ?",
                (
                    report.subject,
                    report.status,
                    report.kind,
                    report.message if report.kind else "",
                    report.worker,
                    finished,
                    report.seconds,
                    report.subject,
                ),
            )

    def _begin(self, create: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == VERSION:
            return
        empty = not self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if empty and not version and not create:  # a run was killed, or is, just where it begins one
            raise self._missing()
        if version or not empty:
            found = f"a database that is no ledger of this version ({version}, not {VERSION})"
            raise UsageError(self.path, found=found, fix="use the synthseg that wrote it, or another output folder")
        with self._transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def _missing(self) -> UsageError:
        fix = "give the folder that `synthseg cohort run ... -o FOLDER` wrote to"
        return UsageError(self.path.parent, found=f"no ledger of a cohort ({LEDGER_NAME})", fix=fix)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within becomes one transaction."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._db.in_transaction:
            yield self._db
            return
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # rolled back already, as by a full disk: the first error is told
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise damaged(self.path, "text that is none") from error
        except sqlite3.Error as error:
            fix = "free space, wait for whoever holds it; on a network disk without file locks, choose another folder"
            raise OutputError(self.path, found=f"no way to read or write it ({error})", fix=fix) from error

    def _job(self, job: Job, place: int) -> tuple[Any, ...]:
        """Files within the output folder are noted relative to it: the folder can be moved."""
        files = {}
        for kind, path in job.files.items():
            whole = Path(path).absolute()
            files[kind] = str(whole.relative_to(self.out) if whole.is_relative_to(self.out) else whole)
        entities = json.dumps(dict(job.entities))
        return job.subject, place, path_value(Path(job.source)), entities, json.dumps(files)

    def _row(self, found: sqlite3.Row) -> Row:
        files = {kind: self.out / path for kind, path in parse_texts(found["files"], self.path).items()}
        entities = parse_texts(found["entities"], self.path)
        job = Job(parse_path(found["source"], self.path), str(found["subject"]), files, entities)
        names = ("state", "why", "attempts", "losses", "error_kind", "error", "settings", "worker")
        same = {name: found[name] for name in names}
        times = {name: found[name] for name in ("started", "finished", "seconds")}
        stamp = (found["bytes"], found["mtime_ns"], found["sha256"])
        return Row(job=job, **same, **times, stamp=stamp, result=parse_result(found["result"], self.path))


def now() -> str:
    """The time in UTC, to the second, as the ledger holds it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
