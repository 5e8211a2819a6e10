"""Which scans of a BIDS dataset are taken, and why the others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.cli.bids import repeated
from synthseg.cohort.bids import Choice, find_scans, is_bids
from synthseg.cohort.bids_filter import read_queries
from synthseg.cohort.derivatives import plan
from synthseg.errors import UsageError
from synthseg.inference.outputs import Outputs


def dataset(root: Path, *names: str) -> Path:
    """Empty files by their names; folders follow from subject and session. ``NAME@ct`` lies in ``ct``."""
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}))
    for name in names:
        name, _, folder = name.partition("@")
        words = name.split("_")
        session = [word for word in words if word.startswith("ses-")]
        path = root.joinpath(words[0], *session, folder or "anat", f"{name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def taken(root: Path, **choice: object) -> list[str]:
    found = find_scans(root, Choice(**choice))  # type: ignore[arg-type]
    return [scan.path.name.removesuffix(".nii.gz") for scan in found.scans]


def test_of_every_session_one_kind_is_taken_with_all_its_runs(tmp_path: Path) -> None:
    root = dataset(
        tmp_path,
        *("sub-01_ses-1_run-1_T1w", "sub-01_ses-1_run-2_T1w", "sub-01_ses-1_T2w"),
        *("sub-01_ses-2_FLAIR", "sub-01_ses-2_T2w", "sub-02_PDw", "sub-03_ct@ct"),
    )
    assert taken(root) == [
        "sub-01_ses-1_run-1_T1w",
        "sub-01_ses-1_run-2_T1w",
        "sub-01_ses-2_T2w",
        "sub-02_PDw",
        "sub-03_ct",
    ]
    left_out = {one.path.name: one.why for one in find_scans(root).left_out}
    assert set(left_out) == {"sub-01_ses-1_T2w.nii.gz", "sub-01_ses-2_FLAIR.nii.gz"}
    assert left_out["sub-01_ses-1_T2w.nii.gz"].startswith("this session has a T1w")


def test_every_image_of_the_dataset_is_taken_or_accounted_for(tmp_path: Path) -> None:
    names = ("sub-1_T1w", "sub-1_T2w", "sub-1_angio", "sub-1_T1map", "sub-1_part-phase_T2starw", "sub-2_FLAIR")
    root = dataset(tmp_path, *names)
    found = find_scans(root)
    told = {scan.path.name for scan in found.scans} | {one.path.name for one in found.left_out}
    assert told == {f"{name}.nii.gz" for name in names}


def test_kinds_that_are_asked_for_are_all_taken(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-1_T1w", "sub-1_T2w", "sub-1_angio", "sub-1_part-phase_T2w", "sub-1_part-mag_T2w")
    assert taken(root, suffixes=("T2w", "angio")) == ["sub-1_T2w", "sub-1_angio", "sub-1_part-mag_T2w"]
    assert taken(root, suffixes=("all",)) == ["sub-1_T1w", "sub-1_T2w", "sub-1_part-mag_T2w"]


def test_participants_and_sessions_go_by_label_with_or_without_prefix(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01_ses-a_T1w", "sub-01_ses-b_T1w", "sub-02_ses-a_T1w", "sub-03_ses-a_T1w")
    assert taken(root, participants=("01", "sub-03"), sessions=("ses-a",)) == ["sub-01_ses-a_T1w", "sub-03_ses-a_T1w"]
    with pytest.raises(UsageError, match=r"found no participant sub-1\. Fix: use a label that is there: sub-01"):
        taken(root, participants=("1",))
    with pytest.raises(UsageError, match=r"no session ses-c"):
        taken(root, sessions=("c",))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"suffix": "T1w", "acquisition": None}, ["sub-1_run-01_T1w", "sub-1_run-2_T1w"]),
        ({"acq": "*", "suffix": ["T1w", "T2w"]}, ["sub-1_acq-hi_T1w", "sub-1_acq-lo_T2w"]),
        ({"run": 1}, ["sub-1_run-01_T1w"]),
        ({"run": "02"}, ["sub-1_run-2_T1w"]),
        (
            {"acquisition": ["hi", "lo"], "extension": ".nii.gz", "datatype": "anat"},
            ["sub-1_acq-hi_T1w", "sub-1_acq-lo_T2w"],
        ),
        ({"part": "phase"}, ["sub-1_part-phase_T2w"]),
        ({"suffix": "T2w", "part": ["mag", None]}, ["sub-1_acq-lo_T2w"]),
        (
            {"run": "Query.ANY", "acq": "Query.NONE", "session": "Query.OPTIONAL"},
            ["sub-1_run-01_T1w", "sub-1_run-2_T1w"],
        ),
    ],
)
def test_a_filter_file_picks_by_entities(tmp_path: Path, query: dict[str, object], expected: list[str]) -> None:
    names = ("sub-1_acq-hi_T1w", "sub-1_run-01_T1w", "sub-1_run-2_T1w", "sub-1_acq-lo_T2w", "sub-1_part-phase_T2w")
    root = dataset(tmp_path / "ds", *names)
    file = tmp_path / "filter.json"
    file.write_text(json.dumps({"t1w": query, "bold": {"datatype": "func", "tracer": "rest"}}))
    assert taken(root, queries=read_queries(file)) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no readable JSON"),
        ("[1]", "something else than an object"),
        ('{"t1w": {"sufix": "T1w"}}', r"unknown key 'sufix'. Fix: did you mean 'suffix'"),
        ('{"t1w": {"suffix": true}}', r"filter.json: t1w.suffix: found True"),
        ('{"bold": {"datatype": "func"}}', "no query for anatomical images"),
    ],
)
def test_a_damaged_filter_file_is_told_of(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "filter.json").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_queries(tmp_path / "filter.json")


def test_a_scan_that_is_only_a_link_says_how_to_get_it(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-1_T1w", "sub-2_T1w")
    gone = root / "sub-2" / "anat" / "sub-2_T1w.nii.gz"
    gone.unlink()
    gone.symlink_to(tmp_path / "annex" / "object")
    assert taken(root) == ["sub-1_T1w"]
    assert [one.why for one in find_scans(root).left_out] == [
        "a link to a file that is not here (with DataLad: datalad get)"
    ]


def test_a_dataset_without_a_scan_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"only of the kinds angio"):
        find_scans(dataset(tmp_path / "a", "sub-1_angio"))
    (tmp_path / "b" / "anat").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no folder of a subject"):
        find_scans(tmp_path / "b")
    assert is_bids(tmp_path / "a")
    assert not is_bids(tmp_path / "b")


def test_names_that_are_not_built_as_the_standard_has_them_are_no_scans(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-1_T1w", "sub-1_acq-a_acq-b_T1w", "sub-1_acq-_T1w", "sub-1_T1w_brain")
    odd = root / "sub-1" / "ses-2" / "anat"
    odd.mkdir(parents=True)
    for name in ("sub-2_ses-2_T1w", "sub-1_T1w", "brain"):
        (odd / f"{name}.nii.gz").touch()
    assert taken(root) == ["sub-1_T1w"]
    reasons = {one.path.name: one.why for one in find_scans(root).left_out}
    assert sorted(reasons) == sorted(
        f"{name}.nii.gz"
        for name in (
            "sub-1_acq-a_acq-b_T1w",
            "sub-1_acq-_T1w",
            "sub-2_ses-2_T1w",
            "sub-1_T1w",
            "sub-1_T1w_brain",
            "brain",
        )
    )
    assert "another subject or session" in reasons["sub-2_ses-2_T1w.nii.gz"]
    assert "not built as BIDS has it" in reasons["brain.nii.gz"]


def test_a_scan_that_is_a_derivative_itself_gets_a_name_with_each_entity_once(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-1_space-MNI_res-2_desc-preproc_T1w", "sub-1_T1w")
    names = {job.files["labels"].name for job in plan(find_scans(root).scans, tmp_path, Outputs(color_table=True))}
    assert names == {
        "sub-1_space-MNI_desc-synthsegRes2Descpreproc_dseg.nii.gz",
        "sub-1_desc-synthseg_dseg.nii.gz",
    }


@given(st.lists(st.text(alphabet="abc0", min_size=1), min_size=1), st.lists(st.text(alphabet="xyz", min_size=1)))
def test_labels_after_an_option_are_the_option_repeated(labels: list[str], places: list[str]) -> None:
    given_ = [*places, "--participant-label", *labels, "--mode", "fast", "--session-label=1", "-w", "work"]
    each = [word for label in labels for word in ("--participant-label", label)]
    assert repeated(given_) == [*places, *each, "--mode", "fast", "--session-label=1", "-w", "work"]
