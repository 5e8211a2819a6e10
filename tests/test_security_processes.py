"""What is started: hostile file names become no options, no commands and no code; nor do files where one stands."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dicom_files import make_series, noise
from inference_helpers import save_random_weights, save_scan
from security_helpers import synthseg
from synthseg.cohort.inputs import gather
from synthseg.cohort.slurm import ArrayOptions, array_script, write_array_script
from synthseg.errors import UsageError

Command = Callable[..., tuple[int, str, str]]
HOSTILE = (
    "$(touch mark)",
    "`touch mark`",
    "; touch mark;",
    "-o mark",
    "--help",
    "a\ntouch mark\n",
    "| touch mark",
    "'; touch mark; '",
    '"; touch mark; "',
    "*",
    "\x1b]0;mark\x07",
)
SHADOWS = ("multiprocessing", "json", "numpy", "torch", "nibabel", "encodings", "dask", "typing")


@pytest.mark.parametrize("name", HOSTILE[::2])
def test_a_dicom_folder_of_any_name_is_converted_and_nothing_else_happens(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_series(tmp_path / "source", noise(14, 8, 8))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.move(tmp_path / "source", tmp_path / name)
    (scan,) = gather([Path(name)], Path("-work")).scans  # a relative folder that looks like an option
    assert scan.path.is_file()
    assert re.fullmatch(r"[A-Za-z0-9.-]+\.nii\.gz", scan.path.name)
    assert {path.name for path in tmp_path.iterdir()} == {name, "-work"}


def test_dcm2niix_is_given_our_own_absolute_folders_and_no_name_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    real = subprocess.run

    def run(arguments: list[str], **more: object) -> object:
        assert "shell" not in more
        asked.append(arguments)
        return real(arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    make_series(tmp_path / "-rf; touch mark", noise(14, 8, 8))
    gather([Path("-rf; touch mark")], Path("work"))
    (arguments,) = asked
    *options, made, given = arguments[1:]
    assert options == ["-z", "n", "-b", "y", "-ba", "y", "-f", "scan", "-o"]
    for folder in (made, given):
        assert Path(folder).is_absolute()
        assert "touch" not in folder


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.isprintable()])
def test_the_array_script_quotes_the_folder_wherever_a_shell_reads_it(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.mkdir(parents=True)
    says = tmp_path / "says"
    says.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done >> "$SAID"\n')
    says.chmod(0o755)
    script = array_script(out, ArrayOptions(tasks=2), command=(str(says),))
    script = script.replace("sbatch --job-name", f"{says} --job-name")
    told = tmp_path / "told"
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "7", "SAID": str(told)}
    subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, check=True)
    said = told.read_text().splitlines()
    assert said.count(str(out)) == 1  # the task's own call
    wrapped = next(line.removeprefix("--wrap=") for line in said if line.startswith("--wrap="))
    told.unlink()
    subprocess.run(["bash", "-c", wrapped], env=environment, cwd=tmp_path, check=True)  # as sbatch runs it
    assert told.read_text().splitlines() == ["cohort", "collect", str(out)]
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["8G\ntouch mark", "--partition=x\rtouch mark", "a\u2028b"])
def test_an_array_script_with_another_line_in_it_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="characters that end a line"):
        ArrayOptions(memory=text)
    with pytest.raises(UsageError, match="characters that end a line"):
        ArrayOptions(more=(text,))
    with pytest.raises(UsageError, match=r"the cohort's folder: found .*characters that end a line"):
        array_script(tmp_path / text, ArrayOptions())


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o700), (0o022, 0o755), (0o027, 0o750)])
def test_the_array_script_may_be_run_by_whom_the_umask_lets_read_it(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        script = write_array_script(tmp_path, ArrayOptions())
    finally:
        os.umask(before)
    assert stat.S_IMODE(script.stat().st_mode) == mode


def test_names_that_look_like_options_are_files_after_two_dashes(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command("segment", "-o", "out", "--weights", "x", "--", "--overwrite.nii.gz")
    assert (code, "No such option" in err) == (1, False)
    code, _, err = command("labels", "inspect", "--", "-o")
    assert (code, "-o: found" in err) == (2, True)


def test_what_a_command_prints_of_a_hostile_name_moves_no_cursor_and_ends_no_line(
    tmp_path: Path, command: Command
) -> None:
    weights = save_random_weights(tmp_path / "w.safetensors")
    scan = tmp_path / "\x1b[2J\x1b]0;owned\x07\u202ea\nfailed: nothing\udcff.nii.gz"
    scan.write_bytes(b"no scan")
    for arguments in (("segment", "-o", tmp_path / "out"), ("doctor",), ("labels", "inspect")):
        _, out, err = command(*arguments, *(["--weights", weights] if arguments[0] != "labels" else []), scan)
        said = out + err
        assert not any(character in said for character in "\x1b\x07\u202e\udcff"), arguments
        assert "\\x1b" in said


def _shadow(folder: Path) -> Path:
    """A folder whose modules, named like those that workers import, leave a mark where they are run."""
    folder.mkdir()
    mark = folder.parent / "mark"
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\nraise SystemExit(3)\n")
    return mark


@pytest.mark.slow
def test_python_files_beside_the_scans_are_not_run_by_workers(tmp_path: Path) -> None:
    mark = _shadow(tmp_path / "data")
    weights = save_random_weights(tmp_path / "w.safetensors")
    scans = [save_scan(tmp_path / "data" / f"s{n}.nii.gz", np.zeros((24, 24, 24), np.float32)) for n in range(2)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"OMP_NUM_THREADS": "1"}
    here = tmp_path / "data"
    done = synthseg(["cohort", "run", ".", "-o", "../out", "--weights", weights, "--workers", 1], environment, cwd=here)
    assert "done" in done.stdout + done.stderr
    assert not mark.exists(), mark.read_text()
    scored = synthseg(["evaluate", *[scan.name for scan in scans], "--jobs", "2"], environment, cwd=here)
    assert not mark.exists(), (mark.read_text(), scored.stderr)
