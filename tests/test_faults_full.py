"""No space left, at every operation of a command: one sentence that names the file and what to do, exit code 1, nothing
half-written, no temporary file left. Once there is space again, the same command ends as if nothing had happened.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_cases import CASES, SEGMENT, TRAIN, Case, assert_nothing_half_written, assert_same_results
from fault_helpers import Commands, Ended, commands, leftovers, sample, shim
from test_faults_kill import undisturbed

pytestmark = pytest.mark.skipif(shim() is None, reason="no C compiler, or no Linux")
# As the system says it, and SQLite, whose fix begins with "free space".
REASONS = ("No space left on device", "database or disk is full", "disk I/O error", "unable to open database file")
SAMPLED = [
    case if case in (SEGMENT, TRAIN) else pytest.param(case, marks=pytest.mark.slow, id=case.name) for case in CASES
]


@pytest.fixture(scope="module")
def run() -> Iterator[Commands]:
    with commands() as running:
        yield running


def fill_and_go_on(run: Commands, case: Case, given: Path, out: Path, at: int, wanted: dict[str, bytes]) -> None:
    """The disk is full from an operation on; ended in order or, where that needed no space, finished."""
    ended = run.run(case.arguments(given, out), out, mode="full", at=at, before=case.before)
    if ended.code:
        assert_told(ended, out)
    if out.exists():
        left = leftovers(out)
        # From SQLite's journal, which it could not play back on a full disk, the next run does.
        assert [name for name in left if name != "cohort.sqlite-journal"] == [], (at, ended.operations[at - 1])
        assert_nothing_half_written(out, wanted, case)
    again = run.run((case.again or case.arguments)(given, out), out, before=case.before)
    assert again.code == 0, (at, again.err)
    assert_same_results(out, wanted)
    shutil.rmtree(out)


def assert_told(ended: Ended, out: Path) -> None:
    """What a user reads: the file, what was found, the fix; no traceback."""
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err + ended.out
    said = ended.message + " ".join(ended.out.split())
    assert str(out) in said
    assert any(reason in said for reason in REASONS), said
    assert "Fix: " in said


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_disk_that_is_full_from_any_operation_on_is_told_and_nothing_is_left(
    tmp_path: Path, run: Commands, case: Case
) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    operations, wanted = undisturbed(run, case, given, out)
    for at in range(1, len(operations) + 1):
        fill_and_go_on(run, case, given, out, at, wanted)


@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: case.name)
def test_a_disk_that_is_full_from_some_operation_on_is_told(tmp_path: Path, run: Commands, case: Case) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    operations, wanted = undisturbed(run, case, given, out)
    for at in sample(len(operations), most=4 if case in (SEGMENT, TRAIN) else 3)[:-1]:
        fill_and_go_on(run, case, given, out, at, wanted)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_told_as_a_full_disk_is(tmp_path: Path, run: Commands) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    SEGMENT.make(given)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    ended = run.run(SEGMENT.arguments(given, out), out, before=limit)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "a_synthseg_posteriors.nii.gz: found no way to write it (File too large). Fix: " in ended.message
    assert leftovers(out) == []


def test_standard_output_on_a_full_disk_is_told(run: Commands, tmp_path: Path) -> None:
    ended = run.run(("labels", "list"), tmp_path, before="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "the standard output: found no way to write it (No space left on device). Fix: " in ended.message
