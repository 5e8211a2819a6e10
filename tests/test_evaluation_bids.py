"""Label maps of two BIDS datasets are paired by what their names say, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.errors import UsageError
from synthseg.evaluation import pair_datasets
from synthseg.evaluation.bids import is_dataset, label_maps, read_name
from synthseg.evaluation.pairing import Pairing


def dataset(root: Path, *names: str, described: bool = True) -> Path:
    """A derivative whose files lie in the folders that their names ask for."""
    root.mkdir(parents=True, exist_ok=True)
    if described:
        (root / "dataset_description.json").write_text("{}")
    for name in names:
        folder = root / name.split("_")[0]
        session = next((word for word in name.split("_") if word.startswith("ses-")), None)
        folder = folder / session / "anat" if session else folder / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return root


def paired(tmp_path: Path, ours: list[str], theirs: list[str], **patterns: str) -> Pairing:
    return pair_datasets(dataset(tmp_path / "p", *ours), dataset(tmp_path / "t", *theirs), **patterns)


def names_of(pairing: Pairing) -> dict[str, str]:
    return {pair.predicted.name: pair.truth.name for pair in pairing.pairs}


def test_a_name_says_of_which_scan_it_is_and_how_it_was_made() -> None:
    name = read_name(Path("x/sub-01_ses-pre_acq-mp2_run-02_space-MNI_res-2_desc-synthseg_dseg.nii.gz"))
    assert name is not None
    assert name.scan == {"sub": "01", "ses": "pre", "acq": "mp2", "run": "2"}
    assert name.made == {"space": "MNI", "res": "2", "desc": "synthseg"}
    assert name.suffix == "dseg"
    for other in ("scan_01.nii.gz", "sub-01_run-1_run-2_dseg.nii", "sub-01_ses-_dseg.nii", "ses-1_sub-01_dseg.nii"):
        assert read_name(Path(other)) is None


def test_space_and_description_may_differ_and_what_names_the_scan_may_not(tmp_path: Path) -> None:
    pairing = paired(
        tmp_path,
        [
            "sub-01_ses-1_run-1_desc-synthseg_dseg.nii.gz",
            "sub-01_ses-1_run-2_desc-synthseg_dseg.nii.gz",
            "sub-01_ses-2_run-1_desc-synthseg_dseg.nii.gz",
            "sub-02_acq-fast_space-T1w_dseg.nii.gz",
        ],
        [
            "sub-01_ses-1_run-01_space-orig_desc-manual_dseg.nii",
            "sub-01_ses-1_run-02_space-orig_desc-manual_dseg.nii",
            "sub-01_ses-2_run-01_space-orig_desc-manual_dseg.nii",
            "sub-02_acq-fast_desc-manual_dseg.nii",
        ],
    )
    assert pairing.problems == ()
    assert {(p.predicted.name, p.truth.name, p.scan) for p in pairing.pairs} == {
        (
            "sub-01_ses-1_run-1_desc-synthseg_dseg.nii.gz",
            "sub-01_ses-1_run-01_space-orig_desc-manual_dseg.nii",
            "sub-01_ses-1_run-1",
        ),
        (
            "sub-01_ses-1_run-2_desc-synthseg_dseg.nii.gz",
            "sub-01_ses-1_run-02_space-orig_desc-manual_dseg.nii",
            "sub-01_ses-1_run-2",
        ),
        (
            "sub-01_ses-2_run-1_desc-synthseg_dseg.nii.gz",
            "sub-01_ses-2_run-01_space-orig_desc-manual_dseg.nii",
            "sub-01_ses-2_run-1",
        ),
        ("sub-02_acq-fast_space-T1w_dseg.nii.gz", "sub-02_acq-fast_desc-manual_dseg.nii", "sub-02_acq-fast"),
    }


def test_sub_01_is_not_sub_1_and_ses_1_not_ses_2(tmp_path: Path) -> None:
    pairing = paired(tmp_path, ["sub-01_ses-1_dseg.nii"], ["sub-1_ses-1_dseg.nii", "sub-01_ses-2_dseg.nii"])
    assert pairing.pairs == ()
    name, reason = pairing.problems[0]
    assert name == "sub-01_ses-1_dseg.nii"
    assert "no truth of this scan among 2 label maps" in reason
    assert [name for name, _ in pairing.problems[1:]] == ["sub-01_ses-2_dseg.nii", "sub-1_ses-1_dseg.nii"]


def test_a_truth_that_says_less_fits_if_it_is_the_only_one(tmp_path: Path) -> None:
    one = paired(tmp_path / "one", ["sub-01_ses-1_acq-a_dseg.nii"], ["sub-01_ses-1_dseg.nii", "sub-01_dseg.nii"])
    assert names_of(one) == {"sub-01_ses-1_acq-a_dseg.nii": "sub-01_ses-1_dseg.nii"}  # shares most
    runs = ["sub-01_run-1_dseg.nii", "sub-01_run-2_dseg.nii"]
    two = paired(tmp_path / "two", ["sub-01_dseg.nii"], runs)
    assert two.pairs == ()
    assert two.problems == (
        ("sub-01_dseg.nii", f"more than one truth fits: {', '.join(runs)}; narrow them down with a truth pattern"),
    )
    three = paired(tmp_path / "three", runs, ["sub-01_dseg.nii"])
    assert three.pairs == ()
    assert three.problems == (("sub-01_dseg.nii", f"wanted by several predictions: {', '.join(runs)}"),)


def test_several_truths_of_a_scan_are_a_problem_that_a_pattern_settles(tmp_path: Path) -> None:
    ours = ["sub-01_desc-a_dseg.nii", "sub-02_desc-a_dseg.nii"]
    theirs = [f"sub-0{i}_desc-{who}_dseg.nii" for i in (1, 2) for who in ("anna", "bob")]
    pairing = paired(tmp_path, ours, theirs)
    assert pairing.pairs == ()
    assert "sub-01_desc-anna_dseg.nii, sub-01_desc-bob_dseg.nii" in pairing.problems[0][1]
    assert len(pairing.problems) == 2  # the candidates are not told of again
    settled = paired(tmp_path, ours, theirs, truth_pattern="*_desc-bob_*")
    assert names_of(settled) == {name: name.replace("-a_", "-bob_") for name in ours}
    assert settled.problems == ()


def test_predictions_of_two_methods_in_one_dataset_are_told_apart_by_a_pattern(tmp_path: Path) -> None:
    ours, theirs = ["sub-01_desc-a_dseg.nii", "sub-01_desc-b_dseg.nii"], ["sub-01_dseg.nii"]
    assert "wanted by several" in paired(tmp_path, ours, theirs).problems[0][1]
    settled = paired(tmp_path, ours, theirs, predicted_pattern="*desc-b*")
    assert names_of(settled) == {"sub-01_desc-b_dseg.nii": "sub-01_dseg.nii"}


def test_of_several_truths_the_one_in_the_same_space_is_taken(tmp_path: Path) -> None:
    ours = ["sub-01_space-MNI_res-2_dseg.nii", "sub-01_dseg.nii"]
    theirs = ["sub-01_dseg.nii", "sub-01_space-MNI_res-1_dseg.nii", "sub-01_space-MNI_res-2_dseg.nii"]
    pairing = paired(tmp_path, ours, theirs)
    assert names_of(pairing) == {"sub-01_dseg.nii": "sub-01_dseg.nii", ours[0]: theirs[2]}
    assert pairing.problems == (("sub-01_space-MNI_res-1_dseg.nii", "no prediction for this truth"),)
    assert len({pair.scan for pair in pairing.pairs}) == 2


def test_other_files_of_a_dataset_are_passed_over(tmp_path: Path) -> None:
    ours = ["sub-01_dseg.nii.gz", "sub-01_desc-preproc_T1w.nii.gz", "sub-01_label-GM_probseg.nii.gz", "sub-01_dseg.tsv"]
    pairing = paired(tmp_path, ours, ["sub-01_dseg.nii.gz"])
    assert names_of(pairing) == {"sub-01_dseg.nii.gz": "sub-01_dseg.nii.gz"}
    assert pairing.problems == ()


def test_a_flat_folder_of_results_stands_for_a_dataset(tmp_path: Path) -> None:
    flat = tmp_path / "out"
    flat.mkdir()
    for name in ("sub-01_ses-1_T1w_synthseg.nii.gz", "sub-02_ses-1_T1w_synthseg.nii.gz", "notes.nii.gz"):
        (flat / name).touch()
    truths = [f"sub-0{i}_ses-1_desc-manual_dseg.nii.gz" for i in (1, 2)]
    pairing = pair_datasets(flat, dataset(tmp_path / "t", *truths))
    assert sorted(names_of(pairing).values()) == truths
    assert not is_dataset(flat)


def test_derivatives_are_named_when_a_dataset_has_no_label_map_of_its_own(tmp_path: Path) -> None:
    root = dataset(tmp_path / "study", "sub-01_T1w.nii.gz")
    dataset(root / "derivatives" / "manual", "sub-01_dseg.nii.gz")
    with pytest.raises(UsageError, match=r"study: found no label map \(\*_dseg.nii.gz\).*e\.g\. .*derivatives/manual"):
        label_maps(root)
    assert [name.path.name for name in label_maps(root / "derivatives" / "manual")] == ["sub-01_dseg.nii.gz"]
    with pytest.raises(UsageError, match=r"no label map .* named 'x'"):
        label_maps(root / "derivatives" / "manual", "x")
    with pytest.raises(UsageError, match="nowhere: found no such folder"):
        label_maps(tmp_path / "nowhere")


@given(
    scans=st.sets(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6),
    pads=st.integers(1, 3),
    ours=st.sampled_from(["_desc-a", "_space-orig_desc-b", ""]),
    theirs=st.sampled_from(["_desc-manual", "_space-MNI", ""]),
)
def test_regular_datasets_pair_completely_and_rightly(
    scans: set[tuple[int, int, int]], pads: int, ours: str, theirs: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = {
        f"sub-{s}_ses-{v}_run-{r}{ours}_dseg.nii.gz": f"sub-{s}_ses-{v}_run-{r:0{pads}d}{theirs}_dseg.nii.gz"
        for s, v, r in scans
    }
    pairing = paired(tmp_path_factory.mktemp("bids"), list(expected), list(expected.values()))
    assert names_of(pairing) == expected
    assert pairing.problems == ()
