"""Several runs on one output folder: no result is lost, none is counted twice, none is a mixture of two."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import band_model, coarse_scan, run_scans
from synthseg import locks
from synthseg.errors import TrainingError
from synthseg.files import atomic_file, sweep_parts
from synthseg.inference import Outputs, Segmenter, batch
from synthseg.locks import lock_beside, sweep_locks
from synthseg.owners import is_alive, place, signature
from synthseg.training.alone import LOCK, alone_in
from training_helpers import cut, run, tiny_recipe


def labels_of(record: Path) -> np.ndarray:
    image: Any = nib.load(record.with_suffix(".nii.gz"))
    return np.asarray(image.dataobj)


def test_two_runs_of_one_folder_end_with_one_set_of_results(tmp_path: Path) -> None:
    scans = [coarse_scan(tmp_path / "in" / f"{name}.nii.gz", 1 + index) for index, name in enumerate("abc")]
    out, table = tmp_path / "out", tmp_path / "v.csv"
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_scans, Segmenter(band_model()), scans, out, table=table) for _ in range(2)]
    for one in runs:
        assert {outcome.status for outcome in one.result().outcomes} <= {"done", "skipped"}
        assert one.result().table_error is None
    lines = table.read_text().splitlines()
    assert sorted(line.split(",")[0] for line in lines[1:]) == ["a", "b", "c"]
    assert len(list(out.glob("*.nii.gz"))) == len(list(out.glob("*.json"))) == 3
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_a_record_never_vouches_for_the_files_of_a_run_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run would write the whole scan while this one is between its files and its record."""
    scan, out = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    write, write_outputs = batch._Batch._write, batch.write_outputs
    between, other_done = threading.Event(), threading.Event()

    def in_turn(self: Any, *given: Any) -> Any:
        if not self.outputs.merge_sides:
            between.wait(60)
        try:
            return write(self, *given)
        finally:
            if not self.outputs.merge_sides:
                other_done.set()

    def slowly(segmentation: Any, whole: Any, files: Any, outputs: Outputs, overlay: Any) -> None:
        write_outputs(segmentation, whole, files, outputs, overlay)
        if outputs.merge_sides:
            between.set()
            other_done.wait(3)  # in vain: it waits for us

    monkeypatch.setattr(batch._Batch, "_write", in_turn)
    monkeypatch.setattr(batch, "write_outputs", slowly)
    with ThreadPoolExecutor(2) as pool:
        for one in [
            pool.submit(run_scans, Segmenter(band_model()), [scan], out, Outputs(merge_sides=merged))
            for merged in (False, True)
        ]:
            assert one.result().outcomes[0].status == "done"
    record = out / "a_synthseg.json"
    merged = json.loads(record.read_text())["settings"]["outputs"]["merge_sides"]
    assert bool((labels_of(record) == 41).any()) is not merged


def test_a_second_training_in_one_folder_is_refused_and_a_killed_one_gives_way(tmp_path: Path) -> None:
    recipe, out = cut(tiny_recipe(tmp_path), 1), tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as holder:
        out.mkdir()
        (out / LOCK).write_text(f"{place()} {holder.pid}")
        with pytest.raises(TrainingError, match=rf"run: found another training at work .*process {holder.pid}\)"):
            run(recipe, out)
        holder.kill()
    assert run(recipe, out).finished
    assert not (out / LOCK).exists()
    (out / LOCK).write_text("elsewhere 1")
    assert run(recipe, out, resume=True).finished


KILLED = """
import os, signal, sys
from pathlib import Path
from synthseg.errors import TrainingError
from synthseg.files import atomic_file
from synthseg.locks import lock_beside
with lock_beside(Path(sys.argv[1])), atomic_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left_behind(tmp_path: Path) -> Path:
    """A file that a process was writing, under its lock, when it was killed."""
    target = tmp_path / "scan.json"
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == -9
    assert len(list(tmp_path.glob(".scan.json.*"))) == 2
    return target


def test_the_lock_of_a_killed_process_is_taken_over_at_once(left_behind: Path) -> None:
    start = time.monotonic()
    with lock_beside(left_behind):
        assert time.monotonic() - start < locks.STALE_S / 2
    assert list(left_behind.parent.glob(".scan.json.lock*")) == []


@pytest.mark.parametrize("sweep", [sweep_parts, sweep_locks])
def test_what_killed_processes_left_is_swept_and_what_others_use_is_not(
    left_behind: Path, sweep: Callable[[list[Path]], object]
) -> None:
    folder = left_behind.parent
    with lock_beside(folder / "mine"), atomic_file(folder / "mine") as file:
        file.write(b"whole")
        before = {path.name for path in folder.iterdir()}
        sweep([left_behind, folder / "mine"])
        gone = before - {path.name for path in folder.iterdir()}
        assert len(gone) == 1
        assert all(name.startswith(".scan.json.") for name in gone)
    assert (folder / "mine").read_bytes() == b"whole"


def test_of_several_that_wait_for_a_dead_one_each_gets_the_lock_alone(tmp_path: Path) -> None:
    inside, most = [0], [0]
    for _ in range(5):
        (tmp_path / ".table.csv.lock").write_text(f"{place()} 99999999")

        def enter() -> None:
            with lock_beside(tmp_path / "table.csv"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1

        with ThreadPoolExecutor(8) as pool:
            for one in [pool.submit(enter) for _ in range(8)]:
                one.result()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_signature_says_who_lives() -> None:
    assert is_alive(signature()) is True
    assert is_alive(f"{place()} 99999999") is False
    assert [is_alive(text) for text in ("", "elsewhere 1", place(), f"{place()} x", f"{place()} -1")] == [None] * 5
    assert is_alive(f"{place()} 1") is True
    assert os.getpid() > 0


IN_TURN = """
import sys, time
from pathlib import Path
from synthseg.errors import TrainingError
from synthseg.training.alone import alone_in
while time.time() < float(sys.argv[2]):
    pass
try:
    with alone_in(Path(sys.argv[1]), leads=True):
        began = time.time()
        time.sleep(0.5)
        print(began, time.time())
except TrainingError:
    print("refused")
"""


LEFT = {"none": None, "dead": f"{place()} 99999999", "another's number": f"{place()} {os.getpid()} 1", "far": "far 1"}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_of_trainings_that_begin_at_once_one_trains(tmp_path: Path, left: str | None) -> None:
    for attempt in range(2 if left and left.endswith("9") else 1):  # the race that is hardest to win
        folder = tmp_path / f"run-{attempt}"
        folder.mkdir()
        if left is not None:
            (folder / LOCK).write_text(left)
        start = time.time() + 1.5
        began = [
            subprocess.Popen(
                [sys.executable, "-c", IN_TURN, str(folder), str(start)], stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        said = [process.communicate(timeout=60)[0].split() for process in began]
        held = sorted((float(words[0]), float(words[1])) for words in said if words != ["refused"])
        assert held
        assert all(ended <= next_began for (_, ended), (next_began, _) in itertools.pairwise(held))
        assert list(folder.iterdir()) == []


def test_a_number_that_another_process_has_got_since_is_not_the_holder() -> None:
    where, number, began = signature().split()
    assert is_alive(f"{where} {number} {began}") is True
    assert is_alive(f"{where} {number} {int(began) + 1}") is False  # as in a container that was started again
    assert is_alive(f"{where} {number}") is True  # signed by an older release


def test_a_lock_that_is_held_for_long_is_not_taken_for_one_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    monkeypatch.setattr(locks, "STALE_S", 0.4)
    monkeypatch.setattr(locks, "signature", lambda: "elsewhere 7")  # as another machine would see it
    ended = []

    def hold() -> None:
        with lock_beside(tmp_path / "scan.json", long=True):
            time.sleep(1.5)
            ended.append("first")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(hold)
        time.sleep(0.3)
        with lock_beside(tmp_path / "scan.json"):
            ended.append("second")
        first.result()
    assert ended == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_locks_are_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with (
        lock_beside(tmp_path / "scan.json"),
        pytest.raises(TrainingError, match="another training"),
        alone_in(tmp_path, leads=True),
        alone_in(tmp_path, leads=True),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    caught = tmp_path / ".scan.json.lock"
    caught.write_text(signature())
    locks._take_away(caught, (0, 0))  # somebody else's by now: put back
    assert caught.read_text() == signature()
    assert len(list(tmp_path.iterdir())) == 1
