"""The command line as a whole: help without torch, exit codes, errors in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from synthseg.cli import build_app, main

COMMANDS = ("segment", "demo", "doctor", "generate", "train", "bank", "evaluate", "labels", "weights")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["segment", "--help"], ["demo", "-h"], ["weights", "--help"], ["doctor", "--help"]]
)
def test_help_loads_no_torch(arguments):
    code = (
        "import sys\nfrom synthseg.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'nibabel', 'scipy', 'numpy', 'matplotlib', 'cc3d'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_every_command_is_there(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert "--debug" in shown


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == "synthseg 0.1.0\nFor research use only: not a medical device.\n"


def test_an_unknown_command_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["segmentt"])
    assert stop.value.code == 2
    assert "segmentt" in capsys.readouterr().err


def test_our_errors_are_one_line_and_debug_adds_where_they_came_from(tmp_path, capsys):
    arguments = ["segment", str(tmp_path), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith(f"synthseg: {tmp_path}: found a folder with no scans. Fix: ")
    assert err.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--debug"])
    assert stop.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("synthseg.cohort.inputs.gather", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["segment", "a.nii", "-o", "out"])
    assert stop.value.code == 130


def test_the_application_can_be_built_twice():
    assert build_app() is not build_app()
