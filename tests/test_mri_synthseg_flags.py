"""The flags of mri_synthseg: what they default to, what is refused and how, and that each is documented."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from synthseg.cli.mri_synthseg import main
from synthseg.cli.original.parser import Options, build_parser, notes_on, parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mri_synthseg.md"
# As `mri_synthseg -h` of FreeSurfer lists them.
FREESURFER = {"i", "o", "parc", "robust", "fast", "ct", "vol", "qc", "post", "resample", "crop", "autocrop", "threads"}
FREESURFER |= {"cpu", "v1", "keepgeom", "addctab", "noaddctab", "photo", "model"}
NEEDED = ("--i", "a.nii", "--o", "b.nii")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mri_synthseg(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `mri_synthseg ARGUMENTS`: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(stop.value.code or 0), out, err

    return run


def flags() -> set[str]:
    actions = build_parser()._actions
    return {option.removeprefix("--") for action in actions for option in action.option_strings} - {"-h"}


def test_every_flag_of_freesurfer_is_there():
    assert flags() > FREESURFER


def test_the_page_documents_every_flag_and_no_other():
    rows = re.findall(r"^\| `--([a-z0-9-]+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == flags()


def test_defaults_are_the_originals():
    assert parse(NEEDED) == Options(i="a.nii", o="b.nii", threads=1, crop=None, device="auto")


def test_flags_reach_the_options():
    options = parse(
        [*NEEDED, "--crop", "100", "120", "64", "--fast", "--threads", "3", "--cpu", "--v1", "--vol", "v.csv"]
    )
    assert options == Options(
        i="a.nii", o="b.nii", crop=(100, 120, 64), fast=True, threads=3, device="cpu", v1=True, vol="v.csv"
    )


@pytest.mark.parametrize("given", ["0", "-1"])
def test_zero_or_minus_one_threads_are_all_cores(given):
    assert parse([*NEEDED, "--threads", given]).threads is None


def test_flags_may_be_shortened_as_argparse_does():
    assert parse([*NEEDED, "--resam", "r.nii"]).resample == "r.nii"


@pytest.mark.parametrize(
    ("extra", "title"),
    [
        ((), "SynthSeg 2.0"),
        (("--fast",), "SynthSeg 2.0 (fast)"),
        (("--v1",), "SynthSeg 1.0"),
        (("--robust",), "SynthSeg-robust 2.0"),
        (("--robust", "--fast"), "SynthSeg-robust 2.0"),
    ],
)
def test_the_banner_calls_a_run_what_the_original_does(extra, title):
    assert parse([*NEEDED, *extra]).title == title


@pytest.mark.parametrize(
    ("arguments", "subject", "found"),
    [
        (("--o", "b.nii"), "--i", "nothing"),
        (("--i", "a.nii"), "--o", "nothing"),
        ((*NEEDED, "--robust", "--v1"), "--robust", "together with --v1"),
        ((*NEEDED, "--addctab", "--noaddctab"), "--addctab", "together with --noaddctab"),
        ((*NEEDED, "--cpu", "--device", "cuda"), "--cpu", "together with --device cuda"),
        ((*NEEDED, "--model", "m.h5", "--weights", "default"), "--model", "together with --weights"),
        ((*NEEDED, "--model", "m.h5", "--v1"), "--v1", "together with --model"),
        ((*NEEDED, "--strict-original", "--autocrop"), "--strict-original", "together with --autocrop"),
        ((*NEEDED, "--strict-original", "--memory", "4G"), "--strict-original", "together with --memory"),
        ((*NEEDED, "--photo", "both"), "--photo", "photographs"),
        ((*NEEDED, "--threads", "-2"), "--threads", "-2"),
        ((*NEEDED, "--crop", "64", "64"), "--crop", "64 64"),
        ((*NEEDED, "--crop", "0"), "--crop", "0"),
        ((*NEEDED, "--crop", "9999", "--strict-original"), "--crop", "9999 together with --strict-original"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(mri_synthseg: Run, arguments, subject, found):
    code, out, err = mri_synthseg(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"mri_synthseg: {subject}: found {found}")
    assert err.count("\n") == 1
    assert "Fix: " in err


def test_cpu_and_the_same_device_agree():
    assert parse([*NEEDED, "--cpu", "--device", "cpu"]).device == "cpu"


@pytest.mark.parametrize(
    ("extra", "flag"),
    [("--autocrop", "--autocrop"), ("--robust --fast", "--fast"), ("--strict-original --keepgeom", "--keepgeom")],
)
def test_flags_that_change_nothing_or_less_are_noted_once(extra, flag):
    (note,) = notes_on(parse([*NEEDED, *extra.split()]))
    assert note.startswith(flag)


def test_plain_runs_have_no_notes():
    assert notes_on(parse([*NEEDED, "--robust", "--keepgeom", "--cpu"])) == []


def test_no_argument_at_all_prints_help_and_ends_with_1(mri_synthseg: Run):
    code, out, err = mri_synthseg()
    assert (code, err) == (1, "")
    assert out.startswith("usage: mri_synthseg")


@pytest.mark.parametrize("arguments", [("--what",), (*NEEDED, "--photo", "top"), (*NEEDED, "--crop", "big")])
def test_what_argparse_refuses_ends_with_2(mri_synthseg: Run, arguments):
    code, _, err = mri_synthseg(*arguments)
    assert code == 2
    assert "usage: mri_synthseg" in err


def test_version_is_that_of_the_package(mri_synthseg: Run):
    assert mri_synthseg("--version")[:2] == (0, "synthseg 0.1.0\n")


@pytest.mark.parametrize("arguments", [["-h"], []])
def test_help_loads_nothing_heavy(arguments):
    code = (
        f"import sys\nfrom synthseg.cli.mri_synthseg import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nibabel', 'scipy', 'numpy', 'cc3d', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--keepgeom" in done.stdout


def test_wrong_usage_is_told_without_loading_torch(tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["--i", str(tmp_path / "empty"), "--o", str(tmp_path / "out")]
    code = (
        f"import sys\nfrom synthseg.cli.mri_synthseg import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a folder without scans" in done.stderr


def test_the_console_script_is_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'mri_synthseg = "synthseg.cli.mri_synthseg:main"' in text
