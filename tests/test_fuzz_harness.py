"""The fuzzing harness tells defects apart, keeps what reaches new code, and goes on where it stopped."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from fuzz.__main__ import write_table
from fuzz.harness import Session, Target
from fuzz.minimise import smaller
from fuzz.mutate import Example, any_bytes, mutant
from fuzz.reader import crowd
from fuzz.targets import all_targets
from fuzz.worker import Arcs, judge

from synthseg.errors import ConfigError, SynthsegError, VolumeError
from synthseg.reading import read_text, require_file

SECONDS = 60.0  # a file, here: machines that run tests are busy
KINDS = {b"E": "error", b"H": "hang", b"C": "crash", b"M": "memory", b"U": "unclear", b"L": "unclear", b"R": "refused"}


def _seeds(folder: Path) -> list[Path]:
    (folder / "seed.txt").write_bytes(b"fine")
    return [folder / "seed.txt"]


def _faulty(path: Path) -> object:
    """A reader with every kind of defect, by the file's first byte."""
    require_file(path, error=VolumeError, fix="give another")
    first = path.read_bytes()[:1]
    if first == b"E":
        raise ValueError("unexpected")
    if first == b"H":
        time.sleep(1000)
    if first == b"C":
        os.abort()
    if first == b"M":
        return bytearray(4 << 30)
    if first == b"U":
        raise SynthsegError("something", found="that", fix="this")
    if first == b"L":
        raise VolumeError(path, found="a" * 700, fix="b" * 700).__class__("x" * 100, found="b", fix=path.parent.name)
    if first == b"R":
        raise VolumeError(path, found="a\nline", fix="none")
    return None


def _letter(letter: bytes) -> Target:
    return Target("faulty", _seeds, _faulty, lambda _rng, content: letter + content[1:])


@pytest.mark.parametrize(("letter", "kind"), KINDS.items())
def test_each_kind_of_defect_is_told_and_kept(tmp_path: Path, letter: bytes, kind: str) -> None:
    session = Session(_letter(letter), tmp_path, seconds=1.0 if kind == "hang" else SECONDS)
    start = session.tally
    session.run(1 + 14 + (1 if kind == "hang" else 12))  # the seed, the odd places, mutants
    assert getattr(start, kind) > 0
    assert start.defects == (getattr(start, kind) if kind != "refused" else 0)
    found = list((tmp_path / "faulty" / "findings").glob("*/input/seed.txt"))
    assert bool(found) == (kind != "refused")
    if kind not in ("refused", "hang"):
        assert found[0].read_bytes() == letter + b"ine"  # made as small as it can be


def test_odd_places_are_read_before_any_mutant(tmp_path: Path) -> None:
    tally = Session(_letter(b"f"), tmp_path, seconds=SECONDS).run(15)
    assert (tally.files, tally.accepted, tally.refused) == (15, 9, 6)


def test_a_reader_that_waits_for_a_pipe_hangs(tmp_path: Path) -> None:
    target = Target("waits", _seeds, lambda path: path.open("rb").read(1) if not path.is_dir() else None)
    session = Session(target, tmp_path, seconds=1.0)
    with pytest.raises(ValueError, match="refuses its own seed"):
        Session(Target("no", _seeds, lambda path: judge(None, path)[5]), tmp_path).run(1)
    tally = session.run(5)
    assert (tally.hang, tally.error) == (1, 2)  # the pipe; a link to itself and one to nothing


def test_mutants_that_reach_new_lines_become_parents(tmp_path: Path) -> None:
    def run(path: Path) -> object:
        return read_text(path, error=VolumeError, fix="none") if path.stat().st_size > 4 else None

    target = Target("grows", _seeds, run, lambda _rng, content: content + b"x")
    session = Session(target, tmp_path, seconds=SECONDS)
    session.tally.files = 1  # no seeds, no odd places
    session.run(20)
    assert 1 < len(session.parents) < 6
    assert all(parent.size > 4 for parent in session.parents[1:])


def test_a_run_goes_on_where_it_stopped_and_another_seed_starts_afresh(tmp_path: Path) -> None:
    whole = Session(_letter(b"R"), tmp_path / "a", seed=3, seconds=SECONDS).run(60)
    Session(_letter(b"R"), tmp_path / "b", seed=3, seconds=SECONDS).run(35)
    rest = Session(_letter(b"R"), tmp_path / "b", seed=3, seconds=SECONDS).run(60)
    assert (rest.files, rest.accepted, rest.refused) == (whole.files, whole.accepted, whole.refused)
    assert Session(_letter(b"R"), tmp_path / "b", seed=4, seconds=SECONDS).tally.files == 0


def test_mutants_depend_on_the_seed_alone() -> None:
    parent = Example("folder", {"a": bytes(range(200)), "b/c": b"1,2\n3,4\n"})
    one, same, other = (
        [mutant(random.Random(f"{s}/{i}"), parent, [parent], None) for i in range(50)] for s in (1, 1, 2)
    )
    assert one == same
    assert one != other
    assert sum(child != parent for child in one) > 40


def test_findings_are_made_smaller_only_while_they_hold() -> None:
    parent = Example("f", {"": bytes(100)})
    changed = bytearray(parent.files[""])
    changed[7], changed[50], changed[51] = 1, 2, 3
    least = smaller(Example("f", {"": bytes(changed)}), parent, lambda tried: tried.files[""][50:51] == b"\2")
    assert [i for i, value in enumerate(least.files[""]) if value] == [50]
    cut = smaller(Example("f", {"": b"x" * 90}), parent, lambda tried: 33 <= len(tried.files[""]) < 100)
    assert len(cut.files[""]) == 33


def test_messages_must_name_the_file_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "sub\n1" / "scan.nii"
    for error, kind in (
        (VolumeError(path, found="x", fix="y"), "refused"),
        (VolumeError("other.nii", found="x", fix="y"), "unclear"),
        (SynthsegError("other", found="x", fix="y"), "unclear"),
        (ConfigError("a", found="b", fix=f"look at {path.name}"), "refused"),
        (MemoryError(), "memory"),
        (KeyError("scan.nii"), "error"),
    ):
        assert judge(error, path)[0] == kind


def test_arcs_are_told_once() -> None:
    import sys

    arcs = Arcs()
    for expected in (True, False):
        sys.settrace(arcs.trace)
        try:
            require_file(__file__, error=SynthsegError, fix="")
        finally:
            sys.settrace(None)
        assert bool(arcs.take()) == expected


def test_any_bytes_can_be_changed() -> None:
    for seed in range(300):
        assert isinstance(any_bytes(random.Random(seed), b"", b""), bytes)
        assert isinstance(any_bytes(random.Random(seed), b"\0", b"ab"), bytes)


@pytest.mark.parametrize("name", list(all_targets()))
def test_a_few_damaged_files_of_each_kind_are_accepted_or_refused_clearly(tmp_path: Path, name: str) -> None:
    tally = Session(all_targets()[name], tmp_path, seed=7, seconds=SECONDS).run(30)
    told = "\n".join(path.read_text() for path in tmp_path.glob("*/findings/*/note.txt"))
    assert tally.defects == 0, told
    assert tally.files == 30
    write_table([tally], tmp_path / "summary.tsv")
    assert (tmp_path / "summary.tsv").read_text().splitlines()[1].split("\t")[:2] == [name, "30"]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", list(all_targets()))
def test_many_damaged_files_of_each_kind_are_accepted_or_refused_clearly(tmp_path: Path, name: str) -> None:
    tally = Session(all_targets()[name], tmp_path, seed=8, seconds=SECONDS).run(400)
    told = "\n".join(path.read_text() for path in tmp_path.glob("*/findings/*/note.txt"))
    assert tally.defects == 0, told


@pytest.mark.parametrize(("load", "cores", "times"), [(0.3, 2, 1.0), (6.0, 2, 3.0), (6.0, None, 6.0)])
def test_the_time_a_file_has_is_that_of_an_idle_machine(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: int | None, times: float
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert crowd() == times
