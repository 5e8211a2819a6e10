"""Folders and names as they may be: links in circles, pipes, names of any bytes, lists that name themselves."""

from __future__ import annotations

import csv
import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_helpers import COARSE, phantom, phantom_affine, save_random_weights, save_scan
from synthseg.cohort.bids import find_scans
from synthseg.cohort.inputs import gather
from synthseg.cohort.naming import plan_cohort
from synthseg.cohort.patterns import fitting
from synthseg.errors import OutputError, UsageError
from synthseg.evaluation.sources import gather_pairs
from synthseg.files import require_writable
from synthseg.inference.discovery import discover, plan_jobs
from synthseg.inference.outputs import Outputs
from synthseg.inference.tables import write_text

Command = Callable[..., tuple[int, str, str]]


def circles(folder: Path) -> Path:
    """A folder with links to itself, to its parent, to each other and to nothing, and a pipe."""
    folder.mkdir(parents=True)
    (folder / "a").symlink_to(folder)
    (folder / "b").symlink_to(".")
    (folder / "up").symlink_to("..")
    (folder / "x.nii.gz").symlink_to("y.nii.gz")
    (folder / "y.nii.gz").symlink_to("x.nii.gz")
    (folder / "self.nii.gz").symlink_to("self.nii.gz")
    (folder / "gone.nii.gz").symlink_to("nowhere.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    os.mkfifo(folder / "pipe.dcm")
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """The circles, and two true scans under odd names."""
    folder = circles(tmp_path / "in")
    for name in ("good one", "line\nbreak"):
        save_scan(folder / f"{name}.nii.gz", phantom(spacing_mm=COARSE), phantom_affine(COARSE))
    return folder


@pytest.fixture
def fixed(tmp_path: Path) -> tuple[object, ...]:
    """Options of a small network."""
    weights = save_random_weights(tmp_path / "weights.safetensors")
    return ("--weights", weights, "--device", "cpu", "--backend", "plain", "--threads", 1)


def test_of_a_folder_with_circles_and_pipes_the_true_scans_are_found(scans: Path, tmp_path: Path) -> None:
    found, _ = discover([scans])
    assert [path.name for path in found] == ["good one.nii.gz", "line\nbreak.nii.gz"]
    assert [scan.path for scan in gather([scans], tmp_path / "work").scans] == found


def test_a_pattern_of_any_depth_does_not_follow_links_in_circles(scans: Path, tmp_path: Path) -> None:
    # Two links to their own folder: followed to the system's limit of 40, there are 2^40 paths.
    found = gather([f"{scans}/**/*.nii.gz"], tmp_path / "work").scans
    assert {path.path.name for path in found} >= {"good one.nii.gz", "line\nbreak.nii.gz"}
    deep = scans / "sub" / "deeper" / ".hidden"
    deep.mkdir(parents=True)
    for place in (deep.parent / "s.nii.gz", deep / "h.nii.gz"):
        place.touch()
    names = [scan.path.name for scan in gather([f"{scans}/**/?.nii.gz"], tmp_path / "work").scans]
    assert "s.nii.gz" in names
    assert "h.nii.gz" not in names  # as a shell has it


def test_segment_does_the_true_scans_and_tells_of_the_others(
    scans: Path, tmp_path: Path, fixed: tuple[object, ...], command: Command
) -> None:
    out, table = tmp_path / "out", tmp_path / "volumes.csv"
    odd = (scans / "self.nii.gz", scans / "pipe.nii.gz", "n" * 300 + ".nii.gz", scans / "gone.nii.gz")
    code, told, complaints = command("segment", scans / "good one.nii.gz", *odd, "-o", out, "--volumes", table, *fixed)
    assert code == 1
    assert (out / "good one_synthseg.nii.gz").is_file()
    assert [row[0] for row in csv.reader(table.open(newline=""))] == ["subject", "good one"]
    for name in ("self.nii.gz", "pipe.nii.gz", "n" * 200, "gone.nii.gz"):
        assert name in told + complaints


@pytest.mark.parametrize("name", [os.fsdecode(b"bytes \xff\xfe"), '-rf line\nbreak\t"quoted"'])
def test_a_scan_of_any_name_is_segmented_and_stays_done(
    tmp_path: Path, fixed: tuple[object, ...], command: Command, name: str
) -> None:
    scan, out = tmp_path / "in" / f"{name}.nii.gz", tmp_path / "out"
    save_scan(scan, phantom(spacing_mm=COARSE), phantom_affine(COARSE))
    for status in ("done", "skipped"):
        code, told, complaints = command("segment", scan, "-o", out, "--volumes", out / "v.tsv", *fixed)
        assert code == 0, complaints
        assert f"1 {status}" in told
    assert (out / f"{name}_synthseg.nii.gz").is_file()
    rows = list(csv.reader((out / "v.tsv").open(newline="", encoding="utf-8"), delimiter="\t"))
    assert len({row[0] for row in rows[1:]}) == 1  # the second run replaced the rows of the first


def test_a_link_to_itself_is_one_failed_scan_and_no_end(tmp_path: Path) -> None:
    loop = circles(tmp_path / "in") / "self.nii.gz"
    assert len(plan_jobs([loop], tmp_path / "out", Outputs())) == 1
    assert len(plan_cohort([(loop, {})], tmp_path / "out", Outputs())) == 1


def test_what_of_a_list_cannot_be_used_does_not_stop_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "s.nii.gz").touch()
    (tmp_path / "empty").mkdir()
    inner, outer = tmp_path / "inner.txt", tmp_path / "outer.txt"
    inner.write_text(f"{folder}\n{tmp_path}/*.mgz\n{outer}\n{tmp_path / 'empty'}\n{tmp_path / ('n' * 300)}\n")
    outer.write_text(f"{inner}\n")
    found = gather([outer], tmp_path / "work")
    assert [scan.path.name for scan in found.scans] == ["s.nii.gz", "n" * 300]
    told = " ".join(one.why for one in found.failed)
    assert told.count("inner.txt") >= 3
    for what in ("a pattern that no file or folder fits", "a list that names itself", "a folder with no scans"):
        assert what in told


@pytest.mark.parametrize("reader", ["evaluate", "bank", "bids", "inspect"])
def test_folders_with_circles_end_in_one_clear_error_or_in_their_true_files(
    tmp_path: Path, reader: str, command: Command
) -> None:
    folder = circles(tmp_path / "in")
    asked = {
        "evaluate": ("evaluate", folder, folder),
        "bank": ("bank", folder, "-o", tmp_path / "bank.safetensors"),
        "bids": ("bids", folder, tmp_path / "out", "participant", "--skip-bids-validation"),
        "inspect": ("labels", "inspect", folder),
    }[reader]
    code, _, told = command(*asked)
    assert code in (1, 2)
    assert told.startswith("synthseg: ")
    assert "Fix:" in told
    assert str(folder) in told


def test_a_dataset_with_circles_and_odd_names_gives_its_true_scans(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    (root / "sub-01" / "anat").mkdir(parents=True)
    (root / "sub-loop").symlink_to("sub-loop")
    (root / "sub-01" / "ses-loop").symlink_to("..")
    (root / "dataset_description.json").write_text("{}")
    for name in ("sub-01_T1w", "sub-01_acq-a\nb_T1w", os.fsdecode(b"sub-01_acq-\xff_T1w"), "sub-01_acq-\x1b[2J_T1w"):
        (root / "sub-01" / "anat" / f"{name}.nii.gz").touch()
    (root / "sub-01" / "anat" / "sub-01_run-1_T1w.nii.gz").symlink_to("sub-01_run-1_T1w.nii.gz")
    found = find_scans(root)
    assert [scan.path.name for scan in found.scans] == ["sub-01_T1w.nii.gz"]
    assert len(found.left_out) == 4


def test_pairs_of_odd_names_are_found_and_named_in_print(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / os.fsdecode(b"s\xff.nii.gz")).touch()
        (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    pairs = gather_pairs(ours, theirs).pairs
    assert len(pairs) == 1
    pairs[0].name.encode("utf-8")
    pairs[0].scan.encode("utf-8")


def test_json_of_a_run_holds_names_of_any_bytes(tmp_path: Path, fixed: tuple[object, ...], command: Command) -> None:
    scan = tmp_path / os.fsdecode(b"s\xff.nii.gz")
    save_scan(scan, phantom(spacing_mm=COARSE), phantom_affine(COARSE))
    code, _, told = command("segment", scan, "-o", tmp_path / "out", *fixed)
    assert code == 0, told
    record = next((tmp_path / "out").glob("*.json"))
    assert Path(json.loads(record.read_text(encoding="utf-8"))["input"]["path"]) == scan


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of one's own, and no rights beyond: root, whom nothing is denied, is nobody for a while."""
    with tempfile.TemporaryDirectory() as place:
        root = os.geteuid() == 0
        if root:
            os.chown(place, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(place)
        finally:
            if root:
                os.seteuid(0)
            for folder, _, _ in os.walk(place):
                Path(folder).chmod(0o700)


def test_folders_and_files_that_may_not_be_read_are_told_of(nobody: Path) -> None:
    locked = nobody / "locked"
    (locked / "inside").mkdir(parents=True)
    (locked / "s.nii.gz").touch()
    secret = nobody / "list.txt"
    secret.write_text("a.nii\n")
    secret.chmod(0)
    locked.chmod(0)
    for read in (
        lambda: discover([locked]),
        lambda: gather([locked], nobody / "w"),
        lambda: gather_pairs(locked, locked),
    ):
        with pytest.raises(UsageError, match=r"locked: found a folder that cannot be read \(Permission denied\)"):
            read()
    assert [scan.path for scan in gather([locked / "inside"], nobody / "w").scans] == [locked / "inside"]
    with pytest.raises(UsageError, match=r"list\.txt: found no readable file \(Permission denied\)"):
        gather([secret], nobody / "w")
    with pytest.raises(UsageError, match="locked: found no folder of a subject"):
        find_scans(locked)
    locked.chmod(0o700)


def test_results_that_may_not_be_written_are_told_before_any_work(nobody: Path) -> None:
    closed = nobody / "closed"
    closed.mkdir(mode=0o500)
    for place in (closed, closed / "out"):
        with pytest.raises(
            OutputError, match=r"closed.*: found a folder that cannot be written to \(Permission denied\)"
        ):
            require_writable(place)
    with pytest.raises(OutputError, match=r"closed/t\.tsv: found no way to write it"):
        write_text(closed / "t.tsv", "x")
    assert not list(closed.iterdir())


@given(
    st.lists(st.sampled_from(["a", "b/c.nii", "b/d/e.nii", ".h/x.nii", "b/.y.nii", "B/[z].nii"]), max_size=6),
    st.lists(st.sampled_from(["*", "**", "?", "a*", "b", "*.nii", "[a-z]", ".*", "[!b]*"]), min_size=1, max_size=4),
)
def test_without_links_patterns_fit_what_the_standard_librarys_fit(files: list[str], parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name in files:
            Path(place, name).parent.mkdir(parents=True, exist_ok=True)
            Path(place, name).touch()
        pattern = Path(place, *parts, "*.nii")
        wanted = sorted(set(map(Path, glob.glob(str(pattern), recursive=True))))  # noqa: PTH207 - the reference
        assert fitting(pattern) == wanted


def test_patterns_end_whatever_is_in_them(tmp_path: Path) -> None:
    folder = circles(tmp_path / "in")
    (folder / "s.nii.gz").touch()
    for pattern in ("*/" * 60 + "*", "**/*/" * 30 + "*", "a**/***", "[" * 500, "*a" * 500, "[!]*", "**", "[z-a]*"):
        found = fitting(folder / pattern)
        assert len(found) < 20
    with pytest.raises(UsageError, match="a pattern of"):
        fitting(folder / ("*/" * 4000))
