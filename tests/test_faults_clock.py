"""Clocks that go backwards or leap: durations, locks and what is done again depend on none that can be set."""

from __future__ import annotations

import itertools
import json
import os
import time
from datetime import datetime as real_datetime
from datetime import timedelta, tzinfo
from pathlib import Path

import pytest

from cohort_run_helpers import Runner, Script, make_jobs, run_script
from inference_helpers import band_model, coarse_scan, run_scans
from synthseg import locks
from synthseg.cohort import ledger as ledger_module
from synthseg.cohort.lease import Lease
from synthseg.cohort.ledger import Ledger
from synthseg.errors import OutputError, UsageError
from synthseg.inference import Segmenter, record
from synthseg.locks import lock_beside
from synthseg.training import logs
from training_helpers import run, tiny_recipe

__all__ = ["run_script"]  # a fixture
YEARS = (0, -40, 30, -20, 75, -1)


class _Leaping(real_datetime):
    years = itertools.cycle(YEARS)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> real_datetime:  # type: ignore[override]
        return real_datetime.now(tz) + timedelta(days=365 * next(cls.years))


@pytest.fixture
def leaping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the wall clock is decades from the last."""
    years, real = itertools.cycle(YEARS), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3.15e7 * next(years))
    for module in (ledger_module, record):
        monkeypatch.setattr(module, "datetime", _Leaping)


@pytest.mark.usefixtures("leaping")
def test_a_batch_is_timed_and_skipped_as_ever(tmp_path: Path) -> None:
    scans = [coarse_scan(tmp_path / f"{name}.nii.gz") for name in "ab"]
    os.utime(scans[0], (-(10**9), -(10**9)))  # 1938
    os.utime(scans[1], (2**33, 2**33))  # 2242
    result = run_scans(Segmenter(band_model()), scans, tmp_path / "out", table=tmp_path / "v.csv")
    assert [outcome.status for outcome in result.outcomes] == ["done", "done"]
    for outcome in result.outcomes:
        told = json.loads(outcome.job.files["record"].read_text())
        assert 0 <= outcome.seconds < 600
        assert all(0 <= seconds < 600 for seconds in told["timings_s"].values())
    again = run_scans(Segmenter(band_model()), scans, tmp_path / "out", table=tmp_path / "v.csv")
    assert [outcome.status for outcome in again.outcomes] == ["skipped", "skipped"]


@pytest.mark.usefixtures("leaping")
def test_a_cohort_is_timed_and_finished_as_ever(tmp_path: Path, run_script: Runner) -> None:
    jobs, script = make_jobs(tmp_path, 3), Script({"s1": ["lost", "done"]})
    counts = run_script(jobs, tmp_path / "out", script)
    assert (counts.done, counts.failed, counts.remaining) == (3, 0, 0)
    assert 0 <= counts.seconds < 600
    with Ledger(tmp_path / "out") as ledger:
        assert all(row.seconds is not None and row.seconds >= 0 for row in ledger.rows())
    again = Script()
    assert run_script(jobs, tmp_path / "out", again).finished == 3
    assert again.given == []


@pytest.mark.usefixtures("leaping")
def test_a_training_run_is_timed_and_saved_as_ever(tmp_path: Path) -> None:
    assert logs.time.time is time.time
    result = run(tiny_recipe(tmp_path), tmp_path / "run", max_minutes=10)
    assert result.finished
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["step-00000006"]  # the one at the end: 1000 minutes have not gone by
    seconds = [line.split(",")[5] for line in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]]
    assert [float(s) for s in seconds] == sorted(map(float, seconds))
    assert float(seconds[0]) >= 0


@pytest.mark.usefixtures("leaping")
@pytest.mark.parametrize("age_s", [-(10**9), 10**9])
def test_locks_of_the_living_hold_however_old_their_files_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: int
) -> None:
    monkeypatch.setattr(locks, "ALIVE_STALE_S", 1e6)
    waited: list[float] = []

    def gives_up(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) > 3:
            raise TimeoutError

    with lock_beside(tmp_path / "table.csv"), monkeypatch.context() as patch:
        lock = tmp_path / ".table.csv.lock"
        held = lock.stat()
        patch.setattr(time, "sleep", gives_up)
        os.utime(lock, (time.time() - age_s, time.time() - age_s))
        with pytest.raises(OutputError, match=r"\.table\.csv\.lock"), lock_beside(tmp_path / "table.csv"):
            raise AssertionError("two at a time")
        os.utime(lock, ns=(held.st_atime_ns, held.st_mtime_ns))
    assert len(waited) == 4
    assert not lock.exists()
    with Lease(tmp_path, stale_after_s=0.5) as lease:
        os.utime(lease.path, (0, 0))
        with pytest.raises(UsageError, match="another run at work"):
            Lease(tmp_path, stale_after_s=5).__enter__()
