"""kill -9 at every write, renaming and removal of a command: nothing half-written, and the next run ends as if nothing
had happened. Writes are torn: half of the one that is struck is on the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_cases import CASES, SEGMENT, TRAIN, Case, assert_nothing_half_written, assert_same_results
from fault_helpers import KILLED, Commands, commands, sample, shim, visible

pytestmark = pytest.mark.skipif(shim() is None, reason="no C compiler, or no Linux")
SAMPLED = [
    case if case in (SEGMENT, TRAIN) else pytest.param(case, marks=pytest.mark.slow, id=case.name) for case in CASES
]


@pytest.fixture(scope="module")
def run() -> Iterator[Commands]:
    with commands() as running:
        yield running


def undisturbed(run: Commands, case: Case, given: Path, out: Path) -> tuple[list[str], dict[str, bytes]]:
    """The operations and results of a run that nothing happens to."""
    given.mkdir()
    case.make(given)
    ended = run.run(case.arguments(given, out), out, mode="count", before=case.before)
    assert ended.code == 0, ended.err
    wanted = visible(out)
    shutil.rmtree(out)
    return list(ended.operations), wanted


def kill_and_go_on(run: Commands, case: Case, given: Path, out: Path, at: int, wanted: dict[str, bytes]) -> None:
    ended = run.run(case.arguments(given, out), out, mode="kill", at=at, before=case.before)
    assert ended.code == KILLED, ended.err
    if out.exists():
        assert_nothing_half_written(out, wanted, case)
    again = run.run((case.again or case.arguments)(given, out), out, before=case.before)
    assert again.code == 0, (at, ended.operations[-1], again.err)
    assert_same_results(out, wanted)
    shutil.rmtree(out)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_killed_at_any_operation_a_command_leaves_nothing_half_written_and_goes_on(
    tmp_path: Path, run: Commands, case: Case
) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    operations, wanted = undisturbed(run, case, given, out)
    assert len(operations) > 5
    for at in range(1, len(operations) + 1):
        kill_and_go_on(run, case, given, out, at, wanted)


@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: case.name)
def test_killed_at_some_operations_it_goes_on(tmp_path: Path, run: Commands, case: Case) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    operations, wanted = undisturbed(run, case, given, out)
    for at in sample(len(operations), most=4 if case in (SEGMENT, TRAIN) else 3):
        kill_and_go_on(run, case, given, out, at, wanted)
