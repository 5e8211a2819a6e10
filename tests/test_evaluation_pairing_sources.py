"""What may be given to be compared: folders, datasets, files, lists, tables; how scans and methods are then called."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthseg.errors import UsageError
from synthseg.evaluation import gather_pairs
from synthseg.evaluation.pairing import Pairing


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def called(pairing: Pairing) -> list[tuple[str, str, str]]:
    """(method, scan in the long table, name in messages) of each pair."""
    return [(pair.method, pair.scan, pair.name) for pair in pairing.pairs]


def test_scans_of_a_folder_are_called_the_same_whatever_made_the_prediction(tmp_path: Path) -> None:
    truth = fill(tmp_path / "t", "s1_aseg.nii", "s2_aseg.nii")
    ours = gather_pairs(fill(tmp_path / "ours", "s1_t1_synthseg.nii", "s2_t1_synthseg.nii"), truth)
    theirs = gather_pairs(fill(tmp_path / "samseg", "s1_seg.nii", "s2_seg.nii"), truth)
    assert called(ours) == [("ours", "s1", "s1_t1_synthseg"), ("ours", "s2", "s2_t1_synthseg")]
    assert [(scan, method) for method, scan, _ in called(theirs)] == [("s1", "samseg"), ("s2", "samseg")]
    assert called(gather_pairs(tmp_path / "ours", truth, method="mine"))[0][0] == "mine"


def test_scans_whose_cores_are_alike_keep_their_stems(tmp_path: Path) -> None:
    both = ("s1_aseg.nii", "s1_manual.nii")
    pairing = gather_pairs(fill(tmp_path / "p", *both), fill(tmp_path / "t", *both))
    assert [scan for _, scan, _ in called(pairing)] == ["s1_aseg", "s1_manual"]


def test_one_truth_for_all_leaves_the_predictions_names(tmp_path: Path) -> None:
    truth = fill(tmp_path, "atlas_seg.nii") / "atlas_seg.nii"
    folder = fill(tmp_path / "p", "a_seg.nii", "b_seg.nii")
    assert called(gather_pairs(folder, truth)) == [("p", "a_seg", "a_seg"), ("p", "b_seg", "b_seg")]
    assert called(gather_pairs(folder / "a_seg.nii", truth)) == [("p", "atlas", "a_seg")]


def test_datasets_are_recognised_and_can_be_asked_for_or_declined(tmp_path: Path) -> None:
    truth = fill(tmp_path / "t", "sub-01/anat/sub-01_desc-manual_dseg.nii", "sub-02/anat/sub-02_desc-manual_dseg.nii")
    flat = fill(tmp_path / "out", "sub-01_T1w_synthseg.nii", "sub-02_T1w_synthseg.nii")
    assert [scan for _, scan, _ in called(gather_pairs(flat, truth))] == ["sub-01", "sub-02"]
    with pytest.raises(UsageError, match="no label map in this folder"):
        gather_pairs(flat, truth, bids=False)
    beside = fill(tmp_path / "mixed", "sub-01_dseg.nii", "sub-03/notes.txt")  # volumes lie in it: an ordinary folder
    assert called(gather_pairs(beside, fill(tmp_path / "g", "sub-01_gt.nii"))) == [("mixed", "sub-01", "sub-01_dseg")]
    by_entities = gather_pairs(
        flat, fill(tmp_path / "f", "sub-01_desc-x_dseg.nii", "sub-02_desc-x_dseg.nii"), bids=True
    )
    assert len(by_entities.pairs) == 2


def test_lists_pair_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, theirs = tmp_path / "fs.txt", tmp_path / "truth.txt"
    ours.write_text("s1/mri/aseg.mgz\ns2/mri/aseg.mgz\n")
    theirs.write_text("gt/b.nii\n\ngt/a.nii\n")
    pairing = gather_pairs(ours, theirs)
    assert [(pair.predicted, pair.truth) for pair in pairing.pairs] == [
        (Path("s1/mri/aseg.mgz"), Path("gt/b.nii")),
        (Path("s2/mri/aseg.mgz"), Path("gt/a.nii")),
    ]
    assert called(pairing) == [("fs", "b", "s1/mri/aseg"), ("fs", "a", "s2/mri/aseg")]
    theirs.write_text("gt/b.nii\n")
    with pytest.raises(UsageError, match=r"fs.txt: found 2 predictions for 1 truths.*as many of both"):
        gather_pairs(ours, theirs)


def test_a_table_names_pairs_scans_and_methods(tmp_path: Path) -> None:
    table = tmp_path / "deep" / "pairs.tsv"
    table.parent.mkdir()
    table.write_text("predicted\ttruth\tscan\tmethod\na.nii\t../t/a.nii\ts1\tours\nb.nii\t/t/a.nii\ts1\ttheirs\n")
    pairing = gather_pairs(table)
    assert called(pairing) == [("ours", "s1", "ours/s1"), ("theirs", "s1", "theirs/s1")]
    assert pairing.pairs[0].predicted == table.parent / "a.nii"  # from the table's folder
    assert pairing.pairs[1].truth == Path("/t/a.nii")
    with pytest.raises(UsageError, match=r"--method: found 'x', but .*pairs.tsv has a column method"):
        gather_pairs(table, method="x")
    plain = tmp_path / "two.csv"
    plain.write_text("truth,predicted\nt/x_gt.nii,p/x.nii\nt/y_gt.nii,p/y.nii\n")
    assert called(gather_pairs(plain)) == [("two", "x_gt", "x"), ("two", "y_gt", "y")]
    assert {method for method, _, _ in called(gather_pairs(plain, method="m"))} == {"m"}


def test_methods_of_a_table_share_their_scans_names_without_a_column_for_them(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    rows = [f"{m}/{s}_{m}.nii\tt/{s}_gt.nii\t{m}\n" for m in ("ours", "theirs") for s in ("s1", "s2")]
    table.write_text("predicted\ttruth\tmethod\n" + "".join(rows))
    scans = {(method, scan) for method, scan, _ in called(gather_pairs(table))}
    assert scans == {(method, scan) for method in ("ours", "theirs") for scan in ("s1_gt", "s2_gt")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("predicted,reference\na.nii,b.nii\n", r"t.csv: found no column truth, only predicted, reference"),
        ("predicted,truth\na.nii,\n", r"t.csv, line 2: found nothing in the column truth"),
        (
            "predicted,truth,scan\na.nii,x.nii,s\nb.nii,y.nii,s\n",
            r"t\.csv: found two predictions of the method 't' for the scan 's'",
        ),
        (
            "predicted,truth\na.nii,x.nii\na.nii,x.nii\n",
            r"t\.csv: found two predictions of the method 't' for the scan 'a'",
        ),
    ],
)
def test_tables_that_are_wrong_are_told(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(UsageError, match=message):
        gather_pairs(table)


def test_a_prediction_without_a_truth_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"p: found no truth to compare with.*columns predicted and truth"):
        gather_pairs(fill(tmp_path / "p", "a.nii"))


def test_lists_and_tables_are_not_mixed_with_folders(tmp_path: Path) -> None:
    folder = fill(tmp_path / "t", "a.nii")
    for given in ((tmp_path / "p.txt", folder), (folder, tmp_path / "p.txt")):
        with pytest.raises(UsageError, match=r"p\.txt: found a list, but .*t is none.*two lists"):
            gather_pairs(*given)
    with pytest.raises(UsageError, match=r"p\.csv: found a table of pairs, and .*t beside it.*the table alone"):
        gather_pairs(tmp_path / "p.csv", folder)


def test_patterns_narrow_both_sides(tmp_path: Path) -> None:
    ours = fill(tmp_path / "p", "s1_a.nii", "s1_b.nii")
    theirs = fill(tmp_path / "t", "s1_gt.nii", "s1_t1.nii")
    pairing = gather_pairs(ours, theirs, predicted_pattern="*_b.nii", truth_pattern="*_gt.nii")
    assert [(pair.predicted.name, pair.truth.name) for pair in pairing.pairs] == [("s1_b.nii", "s1_gt.nii")]
    assert pairing.problems == ()
