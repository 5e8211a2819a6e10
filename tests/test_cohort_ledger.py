"""The ledger and its coordinator: whatever workers do, every scan ends up in it once, and nothing is done in vain."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort_run_helpers import Runner, Script, make_jobs, run_script
from synthseg.cohort.lease import LEASE_NAME, Lease
from synthseg.cohort.ledger import LEDGER_NAME, Ledger
from synthseg.cohort.work import Job
from synthseg.errors import OutputError, UsageError
from synthseg.owners import place

__all__ = ["run_script"]  # a fixture


def states(out: Path) -> dict[str, str]:
    with Ledger(out) as ledger:
        return {row.job.subject: row.state for row in ledger.rows()}


@given(
    fates=st.lists(st.lists(st.sampled_from(["lost", "failed", "done"]), max_size=4), min_size=1, max_size=7),
    workers=st.integers(1, 4),
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_scan_is_done_once_or_failed_whatever_happens_to_workers(
    run_script: Runner, fates: list[list[str]], workers: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = make_jobs(folder, len(fates))
        script = Script({job.subject: fate for job, fate in zip(jobs, fates, strict=True)}, workers)
        counts = run_script(jobs, folder / "out", script)
        ended = {}
        for job, fate in zip(jobs, fates, strict=True):  # what three losses, or the first verdict, come to
            first = next((one for one in [*fate, "done"] if one != "lost"), "done")
            losses = ([*fate, "done"]).index(first)
            ended[job.subject] = "failed" if losses >= 3 else {"done": "done", "failed": "failed"}[first]
        assert states(folder / "out") == ended
        assert (counts.done, counts.failed, counts.remaining) == (
            list(ended.values()).count("done"),
            list(ended.values()).count("failed"),
            0,
        )
        again = Script()
        assert run_script(jobs, folder / "out", again).finished == counts.done
        assert again.given == []


def test_a_scan_that_takes_workers_with_it_comes_last_and_then_alone(tmp_path: Path, run_script: Runner) -> None:
    jobs = make_jobs(tmp_path, 6)
    script = Script({"s0": ["lost", "lost", "lost"]}, workers=3)
    counts = run_script(jobs, tmp_path / "out", script)
    assert script.given[-1] == "s0"
    assert script.given.count("s0") == 3
    assert script.alone["s0"]
    assert counts.failed == 1
    with Ledger(tmp_path / "out") as ledger:
        (row,) = ledger.rows("failed")
        assert (row.attempts, row.losses, row.error_kind) == (3, 3, "WorkerLost")
        assert "s0.nii.gz: found a worker that died while at work on it. Fix: use fewer --workers" in row.error
        assert [one["status"] for one in ledger.history("s0")] == ["lost"] * 3


def test_workers_that_a_scan_took_with_it_count_over_restarts_until_something_changes(
    tmp_path: Path, run_script: Runner
) -> None:
    jobs, out = make_jobs(tmp_path, 3), tmp_path / "out"

    script = Script({"s0": ["lost", "lost"]}, workers=1)

    def die(subject: str) -> None:
        if subject == "s0" and not script.fates["s0"]:
            raise RuntimeError("the coordinator")

    script.before = die
    with pytest.raises(RuntimeError, match="the coordinator"):
        run_script(jobs, out, script)
    with Ledger(out) as ledger:
        assert ledger.losses() == {"s0": 2}
        ledger.hand_out("s0")  # and the coordinator is killed
    script = Script({"s0": ["lost"]}, workers=3)
    assert run_script(jobs, out, script).failed == 1
    assert (script.given, script.alone["s0"]) == (["s0"], True)
    script = Script({"s0": ["lost", "lost"]})
    assert run_script(jobs, out, script, {"mask": True}).failed == 0  # other settings begin anew
    assert script.given.count("s0") == 3


def test_only_what_has_changed_is_done_again_and_the_reason_is_told(tmp_path: Path, run_script: Runner) -> None:
    jobs, out = make_jobs(tmp_path, 5), tmp_path / "out"
    run_script(jobs, out, Script({"s4": ["failed"]}), {"mask": False})
    jobs[1].source.write_bytes(b"another scan")
    stamp = jobs[2].source.stat().st_mtime_ns + 10**9
    os.utime(jobs[2].source, ns=(stamp, stamp))  # a copy: same content, another time
    jobs[3].files["labels"].unlink()
    script = Script()
    counts = run_script(jobs, out, script, {"mask": False})
    assert sorted(script.given) == ["s1", "s3"]
    assert (counts.done, counts.finished, counts.failed) == (2, 2, 1)
    told = " ".join(counts.explained)
    assert "1 scan(s) are done again (s1): input changed" in told
    assert "1 scan(s) are done again (s3): a file is missing" in told
    script = Script()
    counts = run_script(jobs, out, script, {"mask": True})
    assert sorted(script.given) == ["s0", "s1", "s2", "s3", "s4"]
    assert any("facts.mask: False -> True" in line for line in counts.explained)
    assert run_script(jobs, out, Script(), {"mask": True}, overwrite=True).done == 5


def test_more_scans_can_join_and_those_not_named_stay(tmp_path: Path, run_script: Runner) -> None:
    jobs = make_jobs(tmp_path, 4)
    run_script(jobs[:2], tmp_path / "out", Script())
    script = Script()
    run_script(jobs[2:], tmp_path / "out", script)
    assert sorted(script.given) == ["s2", "s3"]
    assert states(tmp_path / "out") == dict.fromkeys(["s0", "s1", "s2", "s3"], "done")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_finishes_what_is_in_hand_and_a_second_run_does_the_rest(
    tmp_path: Path, run_script: Runner
) -> None:
    jobs, script = make_jobs(tmp_path, 6), Script(workers=2)
    script.before = lambda subject: os.kill(os.getpid(), signal.SIGINT) if subject == "s1" else None
    counts = run_script(jobs, tmp_path / "out", script)
    assert counts.interrupted
    assert counts.done == len(script.given)  # whatever was begun was finished
    assert 2 <= counts.done < 6
    again = Script()
    assert run_script(jobs, tmp_path / "out", again).done == 6 - counts.done
    assert not set(again.given) & set(script.given)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_stops_at_once_and_nothing_is_lost(tmp_path: Path, run_script: Runner) -> None:
    jobs, script = make_jobs(tmp_path, 4), Script(workers=3)

    def twice(_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    script.before = twice
    counts = run_script(jobs, tmp_path / "out", script)
    assert counts.remaining == 3
    assert sorted(states(tmp_path / "out").values()) == ["done", "waiting", "waiting", "waiting"]
    with Ledger(tmp_path / "out") as ledger:
        assert "left unfinished by an interrupt" in {row.why for row in ledger.rows("waiting")}


def test_scans_in_hand_when_the_coordinator_was_killed_wait_again(tmp_path: Path, run_script: Runner) -> None:
    jobs, out = make_jobs(tmp_path, 3), tmp_path / "out"
    run_script(jobs, out, Script())
    with sqlite3.connect(out / LEDGER_NAME) as db:
        db.execute("UPDATE scan SET state = 'running' WHERE subject = 's1'")
    labels, gone = jobs[1].files["labels"], f"99999999-{place()}"
    (out / f".{labels.name}.{gone}abc.part").write_bytes(b"half")
    (out / f".other.nii.gz.{gone}abc.part").write_bytes(b"somebody else's")
    (out / f".{labels.name}.{os.getpid()}-{place()}abc.part").write_bytes(b"of a task that is at it")
    (out / f".{labels.name}.123-0a1b2c3d.part").write_bytes(b"just written by another machine")
    (out / f".{labels.name}.124-0a1b2c3d.part").write_bytes(b"left by another machine")
    os.utime(out / f".{labels.name}.124-0a1b2c3d.part", (0, 0))
    script = Script()
    counts = run_script(jobs, out, script)
    assert script.given == ["s1"]
    assert "1 scan(s) were left unfinished by a run that was killed" in counts.explained
    assert "removed 2 file(s) that a killed run had not finished writing" in counts.explained
    kept = {path.read_bytes() for path in out.glob(".*.part")}
    assert kept == {b"somebody else's", b"of a task that is at it", b"just written by another machine"}


def test_two_scans_of_one_name_are_refused_unless_the_first_was_moved(tmp_path: Path, run_script: Runner) -> None:
    jobs, out = make_jobs(tmp_path, 1), tmp_path / "out"
    run_script(jobs, out, Script())
    other = tmp_path / "elsewhere" / "s0.nii.gz"
    other.parent.mkdir()
    other.write_bytes(jobs[0].source.read_bytes())
    twin = Job(other, "s0", jobs[0].files)
    with pytest.raises(UsageError, match=r"elsewhere/s0.nii.gz: found another scan of that name in the ledger"):
        run_script([twin], out, Script())
    with pytest.raises(UsageError, match="two scans of one name"):
        run_script([jobs[0], twin], out, Script())
    jobs[0].source.unlink()
    script = Script()
    assert run_script([twin], out, script).finished == 1
    assert script.given == []


def test_the_output_folder_can_be_moved(tmp_path: Path, run_script: Runner) -> None:
    jobs = make_jobs(tmp_path, 2)
    run_script(jobs, tmp_path / "out", Script())
    (tmp_path / "out").rename(tmp_path / "moved")
    with Ledger(tmp_path / "moved") as ledger:
        assert all(path.is_file() for row in ledger.rows() for path in row.job.files.values())


def test_a_reader_sees_the_ledger_while_it_is_written(tmp_path: Path, run_script: Runner) -> None:
    jobs, seen = make_jobs(tmp_path, 3), []
    script = Script(workers=1)
    script.before = lambda _: seen.append(states(tmp_path / "out"))
    run_script(jobs, tmp_path / "out", script)
    assert [list(one.values()) for one in seen] == [
        ["running", "waiting", "waiting"],
        ["done", "running", "waiting"],
        ["done", "done", "running"],
    ]


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEDGER_NAME).write_bytes(content)
    with pytest.raises((UsageError, OutputError), match=r"cohort\.sqlite(: found no way to|\))"):
        Ledger(tmp_path)
    with pytest.raises(UsageError, match="no ledger of a cohort"):
        Ledger(tmp_path / "nowhere")


HOLD = """
import sys, time
from pathlib import Path
from synthseg.cohort.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_and_a_killed_one_gives_way(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=rf"another run at work on this cohort \(.*process {holder.pid}\)"):
            Lease(tmp_path).__enter__()
        holder.kill()
    (tmp_path / f"{LEASE_NAME}.x.part").write_text("half of a beat")
    start = time.monotonic()
    with Lease(tmp_path, dead_after_s=0.3, stale_after_s=3600):
        assert time.monotonic() - start < 1800  # its process is looked for, not its beat waited for
        assert (tmp_path / LEASE_NAME).exists()
    assert not any(tmp_path.iterdir())


def test_a_lease_of_another_machine_is_taken_over_when_it_stays_still(tmp_path: Path) -> None:
    (tmp_path / LEASE_NAME).write_text('{"host": "node-that-is-gone", "pid": 1, "token": "x", "beat": 3}')
    with Lease(tmp_path, stale_after_s=0.3) as lease:
        lease.require()
        while lease._thread.is_alive():  # it may be writing its own at this very moment
            (tmp_path / LEASE_NAME).write_text('{"host": "faster", "pid": 1, "token": "y", "beat": 0}')
            lease._thread.join(timeout=0.5)
        with pytest.raises(OutputError, match="the lease of another run"):
            lease.require()
    assert "faster" in (tmp_path / LEASE_NAME).read_text()  # theirs is left alone
