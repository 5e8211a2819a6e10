"""Files are paired by name or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.errors import UsageError
from synthseg.evaluation.pairing import Pairing, core_of, pair_files


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def paired(tmp_path: Path, ours: list[str], theirs: list[str], pattern: str = "*") -> Pairing:
    return pair_files(fill(tmp_path / "p", *ours), fill(tmp_path / "t", *theirs), truth_pattern=pattern)


def names_of(pairing: Pairing) -> dict[str, str]:
    return {pair.predicted.name: pair.truth.name for pair in pairing.pairs}


@pytest.mark.parametrize(
    ("stem", "core"),
    [
        ("sub-01_T1w_synthseg", "sub-01"),
        ("oasis_1000_aseg", "oasis_1000"),
        ("swm_t1_head_synthseg", "swm"),
        ("oasis_1000_braincolor", "oasis_1000_braincolor"),
        ("seg", "seg"),
        ("t1_seg", "t1"),
        ("sub-01_t1_run-2", "sub-01_t1_run-2"),
        ("my.scan_seg", "my_scan"),
    ],
)
def test_the_core_of_a_name_says_whose_it_is(stem: str, core: str) -> None:
    assert core_of(stem) == core


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        ("a.nii.gz", "a.nii.gz"),
        ("a.nii.gz", "a.mgz"),
        ("oasis_1000_t1_synthseg.nii.gz", "oasis_1000_aseg.nii.gz"),
        ("oasis_1000_t1_synthseg.nii.gz", "oasis_1000_braincolor.nii.gz"),
        ("sub-01_run-2_T1w_synthseg.nii.gz", "sub-01_dseg.nii"),
        ("ct_older_adults_mni_1mm_synthseg.nii.gz", "ct_older_adults_mni_aseg.nii.gz"),
    ],
)
def test_names_of_one_scan_are_paired_among_others(tmp_path: Path, prediction: str, truth: str) -> None:
    pairing = paired(tmp_path, [prediction, "zz_seg.nii"], [truth, "zz_gt.nii"])
    assert names_of(pairing) == {prediction: truth, "zz_seg.nii": "zz_gt.nii"}
    assert pairing.problems == ()
    assert {pair.name for pair in pairing.pairs} == {prediction.removesuffix(".nii.gz"), "zz_seg"}


def test_the_same_stem_wins_over_the_same_core_and_that_over_a_common_beginning(tmp_path: Path) -> None:
    pairing = paired(
        tmp_path,
        ["s1_seg.nii", "s2_t1.nii", "s3_ses-2_seg.nii"],
        ["s1_seg.nii", "s2_gt.nii", "s2.extra.nii", "s3_aseg.nii", "s3_ses-2_aseg.nii"],
    )
    assert names_of(pairing) == {
        "s1_seg.nii": "s1_seg.nii",
        "s2_t1.nii": "s2_gt.nii",
        "s3_ses-2_seg.nii": "s3_ses-2_aseg.nii",
    }
    assert pairing.problems == (
        ("s2.extra.nii", "no prediction for this truth"),
        ("s3_aseg.nii", "no prediction for this truth"),
    )


def test_of_common_beginnings_the_longest_wins(tmp_path: Path) -> None:
    pairing = paired(tmp_path, ["a_b_c_d.nii"], ["a_gt.nii", "a_b_gt.nii"])
    assert names_of(pairing) == {"a_b_c_d.nii": "a_b_gt.nii"}


def test_two_truths_that_fit_are_a_problem_that_names_them_and_a_pattern_settles_it(tmp_path: Path) -> None:
    ours = ["oasis_1_t1_synthseg.nii"]
    theirs = ["oasis_1_aseg.nii", "oasis_1_t1.nii", "oasis_1_braincolor.nii"]
    pairing = paired(tmp_path, ours, theirs)
    assert pairing.pairs == ()
    name, reason = pairing.problems[0]
    assert name == ours[0]
    assert "oasis_1_aseg.nii, oasis_1_t1.nii" in reason
    settled = paired(tmp_path, ours, theirs, "*_aseg.nii")
    assert names_of(settled) == {ours[0]: "oasis_1_aseg.nii"}
    assert settled.problems == ()


def test_names_that_only_begin_alike_are_never_paired(tmp_path: Path) -> None:
    pairing = paired(tmp_path, ["study_anna_x.nii", "sub-03_seg.nii"], ["study_bob_y.nii", "sub-01_seg.nii"])
    assert pairing.pairs == ()
    assert [name for name, _ in pairing.problems] == [
        "study_anna_x.nii",
        "sub-03_seg.nii",
        "study_bob_y.nii",
        "sub-01_seg.nii",
    ]
    assert "no truth fits the name among 2 files" in pairing.problems[0][1]


def test_one_number_is_not_the_beginning_of_another(tmp_path: Path) -> None:
    pairing = paired(tmp_path, ["scan_10_seg.nii"], ["scan_1_gt.nii"])
    assert pairing.pairs == ()


def test_a_truth_wanted_twice_is_a_problem_that_names_all_three(tmp_path: Path) -> None:
    pairing = paired(tmp_path, ["s1_t1_seg.nii", "s1_t2_seg.nii"], ["s1_gt.nii"])
    assert pairing.pairs == ()
    assert pairing.problems == (("s1_gt.nii", "wanted by several predictions: s1_t1_seg.nii, s1_t2_seg.nii"),)


def test_files_may_be_given_instead_of_folders(tmp_path: Path) -> None:
    ours = fill(tmp_path / "p", "x_seg.nii", "y_seg.nii")
    theirs = fill(tmp_path / "t", "x_gt.nii", "z.nii")
    two = pair_files(ours / "y_seg.nii", theirs / "x_gt.nii")
    assert names_of(two) == {"y_seg.nii": "x_gt.nii"}
    one_truth = pair_files(ours, theirs / "z.nii")
    assert names_of(one_truth) == {"x_seg.nii": "z.nii", "y_seg.nii": "z.nii"}
    one_prediction = pair_files(ours / "x_seg.nii", theirs)
    assert names_of(one_prediction) == {"x_seg.nii": "x_gt.nii"}
    assert one_prediction.problems == ()


def test_other_files_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    pairing = paired(tmp_path, ["a.nii", "volumes.tsv", ".hidden.nii"], ["a.nii", "readme.txt"])
    assert names_of(pairing) == {"a.nii": "a.nii"}
    assert pairing.problems == ()


def test_missing_and_empty_folders_are_usage_errors(tmp_path: Path) -> None:
    ours = fill(tmp_path / "p", "a.nii")
    with pytest.raises(UsageError, match=r"nowhere: found no such file or folder"):
        pair_files(ours, tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"found no label map in this folder \(\.nii\.gz"):
        pair_files(fill(tmp_path / "e", "x.txt"), ours)
    with pytest.raises(UsageError, match=r"no label map named '\*_aseg\*'"):
        pair_files(ours, ours, truth_pattern="*_aseg*")


@given(
    cores=st.sets(st.integers(0, 99), min_size=1, max_size=8),
    ours=st.sampled_from(["_synthseg", "_T1w_synthseg", "_acq-fast_seg", ""]),
    theirs=st.sampled_from(["_aseg", "_dseg", ""]),
)
def test_regular_folders_pair_completely_and_rightly(
    cores: set[int], ours: str, theirs: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pairing = paired(
        tmp_path_factory.mktemp("pairs"),
        [f"sub-{i}{ours}.nii.gz" for i in cores],
        [f"sub-{i}{theirs}.nii.gz" for i in cores],
    )
    assert names_of(pairing) == {f"sub-{i}{ours}.nii.gz": f"sub-{i}{theirs}.nii.gz" for i in cores}
    assert pairing.problems == ()
