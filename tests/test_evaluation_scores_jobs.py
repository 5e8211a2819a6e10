"""Pairs scored in several processes: the same result, nobody lost with another, a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synthseg.evaluation import Evaluation, EvaluationConfig, evaluate_pairs, gather_pairs
from synthseg.evaluation.processes import _die_silently, work_through

PROGRAM = "from synthseg.cli import main; main()"


def save(path: Path, shift: int) -> None:
    labels = np.zeros((12, 8, 8), dtype=np.int32)
    labels[1 + shift : 5 + shift, 2:6, 2:6] = 2
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)


def fatal(item: int) -> int:
    """Ends its process as a lack of memory does; other items come out squared."""
    if item == 2:
        os._exit(9)
    return item**2


def lost(item: int) -> int:
    return -item


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "p" / f"s{i}.nii", i)
        save(tmp_path / "t" / f"s{i}.nii", 0)
    (tmp_path / "p" / "s1.nii").write_bytes(b"broken")
    pairing = gather_pairs(tmp_path / "p", tmp_path / "t")
    told: dict[int, list[str]] = {}
    results: list[Evaluation] = []
    for jobs in (1, 2):
        names = told.setdefault(jobs, [])
        config = EvaluationConfig(metrics=("dice", "hausdorff"))
        # A lambda could not be sent to a process: progress is told in this one.
        results.append(
            evaluate_pairs(
                pairing, config, jobs=jobs, on_done=lambda o, n=names: n.append(getattr(o, "scan", "FAILED"))
            )  # type: ignore[misc]
        )
    assert results[0].long == results[1].long
    assert results[0].failures == results[1].failures
    assert len(results[1].failures) == 1
    assert "s1.nii" in results[1].failures[0].reason
    assert told[1] == told[2] == ["s0", "FAILED", "s2", "s3"]
    assert [score.scan for score in results[1].scores] == ["s0", "s2", "s3"]


@pytest.mark.slow
def test_an_item_whose_process_dies_does_not_take_the_others_with_it() -> None:
    assert list(work_through(fatal, [1, 2, 3], 2, lost=lost)) == [1, -2, 9]


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_ends_all_processes_without_a_traceback_and_leaves_no_table(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", 0)
    table = tmp_path / "pairs.csv"
    table.write_text("predicted,truth,scan\n" + "".join(f"a.nii,a.nii,s{i}\n" for i in range(20000)))
    arguments = ["evaluate", table, "--jobs", "2", "--long", tmp_path / "long.tsv", "-o", tmp_path / "wide.tsv"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a shell gives it: Ctrl-C reaches every process of it
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("[1/20000] s0: mean Dice 1.000")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)  # returns once nobody holds the pipes: all processes have ended
    assert process.returncode == 130
    assert errors in ("", "synthseg: interrupted\n")  # whoever of typer and us sees it first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "pairs.csv"]


def test_workers_of_a_background_job_do_not_hear_what_it_ignores() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        for ignored in (True, False):
            signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
            _die_silently()
            assert signal.getsignal(signal.SIGINT) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGINT, before)
