"""What is written for a scan, and which scans are found."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from inference_helpers import NAMES, BandNetwork, band_model, coarse_scan, phantom_affine, run_scans, small_protocol
from synthseg.errors import UsageError
from synthseg.inference import Model, Outputs, Segmenter, discover, plan_jobs
from synthseg.inference.outputs import brain_mask, color_table
from synthseg.inference.structures import channels_of
from synthseg.volumes import Volume


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


# -- files


def test_every_output_is_written_and_holds_what_its_name_says(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "in" / "sub-01.nii.gz")
    outputs = Outputs(space="both", posteriors=True, resampled=True, mask=True, color_table=True)
    result = run_scans(segmenter, [scan], tmp_path / "out", outputs)
    assert [outcome.message for outcome in result.failed] == []
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "sub-01_resampled.nii.gz",
        "sub-01_synthseg.json",
        "sub-01_synthseg.nii.gz",
        "sub-01_synthseg_1mm.nii.gz",
        "sub-01_synthseg_colors.txt",
        "sub-01_synthseg_mask.nii.gz",
        "sub-01_synthseg_posteriors.json",
        "sub-01_synthseg_posteriors.nii.gz",
    ]
    native, fine = (nib.load(out / f"sub-01_synthseg{s}.nii.gz") for s in ("", "_1mm"))
    source = nib.load(scan)
    assert native.shape == source.shape
    np.testing.assert_allclose(native.affine, source.affine)
    assert native.get_data_dtype() == np.int32
    assert fine.shape == nib.load(out / "sub-01_resampled.nii.gz").shape == (72, 80, 64)
    posteriors = nib.load(out / "sub-01_synthseg_posteriors.nii.gz")
    assert posteriors.shape == (*source.shape, 7)
    channels = json.loads((out / "sub-01_synthseg_posteriors.json").read_text())["channels"]
    values = np.array([channel["value"] for channel in channels])
    np.testing.assert_array_equal(values[np.asarray(posteriors.dataobj).argmax(-1)], np.asarray(native.dataobj))
    mask = np.asarray(nib.load(out / "sub-01_synthseg_mask.nii.gz").dataobj)
    assert set(np.unique(mask)) == {0, 1}
    assert mask[np.asarray(native.dataobj) > 0].all()


def test_the_record_says_what_was_run_on_what(tmp_path, segmenter):
    import hashlib

    scan = coarse_scan(tmp_path / "a.nii.gz")
    outcome = run_scans(segmenter, [scan], tmp_path / "out").outcomes[0]
    record = json.loads((tmp_path / "out" / "a_synthseg.json").read_text())
    assert record["input"]["sha256"] == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert record["settings"]["inference"]["flip"] is False
    assert record["settings"]["weights"]["structures"]["protocol"] == "small"
    stages = {"read", "prepare", "locate", "predict", "smooth", "postprocess", "results", "warnings", "write"}
    assert set(record["timings_s"]) == stages
    assert {"synthseg", "torch", "numpy"} <= set(record["versions"])
    assert record["volumes_mm3"] == outcome.volumes_mm3
    assert list(record["volumes_mm3"]) == NAMES
    assert record["peak_memory_mib"] > 50
    assert record["files"] == {"labels": "a_synthseg.nii.gz", "record": "a_synthseg.json"}


def test_one_scan_can_be_given_its_file_name_and_type(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    run_scans(segmenter, [scan], tmp_path / "deep" / "mine.mgz")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["mine.mgz", "mine_synthseg.json"]
    assert nib.load(tmp_path / "deep" / "mine.mgz").shape == nib.load(scan).shape


def test_chosen_and_merged_structures_reach_labels_tables_and_colours(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    outputs = Outputs(structures=("hippocampus",), merge_sides=True, color_table=True)
    table = tmp_path / "v.csv"
    assert not run_scans(segmenter, [scan], tmp_path / "out", outputs, table=table).failed
    labels = np.asarray(nib.load(tmp_path / "out" / "a_synthseg.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 17}
    assert table.read_text().splitlines()[0] == "subject,total intracranial,hippocampus"
    lines = (tmp_path / "out" / "a_synthseg_colors.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["0", "background"], ["17", "hippocampus"]]


class NoBrainStem(BandNetwork):
    def forward(self, image):
        logits = super().forward(image)
        logits[:, 2] -= 1e4
        return logits


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (("brain-stem",), "none of the chosen structures was found, the label map is empty: brain-stem"),
        (("brain-stem", "hippocampus"), "of the chosen structures these were not found: brain-stem"),
        (("hippocampus",), None),
    ],
)
def test_a_chosen_structure_that_is_nowhere_is_said(tmp_path, chosen, said):
    segmenter = Segmenter(Model.from_network(NoBrainStem(), small_protocol(), spacing_mm=2.0, multiple=4), "fast")
    scan = coarse_scan(tmp_path / "a.nii.gz")
    outcome = run_scans(segmenter, [scan], tmp_path / "out", Outputs(structures=chosen)).outcomes[0]
    assert outcome.status == "done"
    assert [note for note in outcome.notes if "chosen" in note] == ([said] if said else [])
    assert json.loads((tmp_path / "out" / "a_synthseg.json").read_text())["notes"] == list(outcome.notes)


def test_results_keep_the_space_of_the_scan_and_the_names_of_the_channels(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "in" / "a.nii.gz")
    image = nib.load(scan)
    image.set_sform(phantom_affine((2, 2, 2)), code=4)  # MNI
    nib.save(image, scan)
    outputs = Outputs(space="both", posteriors=True, resampled=True, mask=True)
    assert not run_scans(segmenter, [scan], tmp_path / "out", outputs).failed
    headers = {path.name: nib.load(path).header for path in (tmp_path / "out").glob("*.nii.gz")}
    assert len(headers) == 5
    assert {name: int(header["sform_code"]) for name, header in headers.items()} == dict.fromkeys(headers, 4)
    comment = headers["a_synthseg_posteriors.nii.gz"].extensions[0].get_content()
    assert json.loads(comment) == {"channels": ["background", *NAMES[1:]]}


def test_color_table_rows_are_freesurfers_columns():
    rows = [line.split() for line in color_table(channels_of(small_protocol()).structures).splitlines()[1:]]
    assert rows[1] == ["2", "left-cerebral-white-matter", "2", "4", "6", "0"]
    assert all(len(row) == 6 for row in rows)


def test_brain_mask_is_the_largest_piece_without_holes():
    labels = np.zeros((20, 20, 20), np.int32)
    labels[3:15, 3:15, 3:15] = 2
    labels[8, 8, 8] = 0
    labels[18, 18, 18] = 24
    mask = brain_mask(Volume(labels, np.eye(4))).data
    assert mask[8, 8, 8] == 1
    assert mask[18, 18, 18] == 0
    assert mask.sum() == 12**3
    assert ndimage.label(mask)[1] == 1


# -- discovery and planning


def test_folders_lists_and_files_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.nii.gz", "a.mgz", "c.NII", "notes.txt", ".hidden.nii", "sub/deep.nii", "a_synthseg.nii.gz"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    Path("list.txt").write_text("scans/b.nii.gz\n\n  other.nii \n")
    found, notes = discover(["scans", "list.txt", "lost.nii"])
    assert [str(path) for path in found] == ["scans/a.mgz", "scans/b.nii.gz", "scans/c.NII", "other.nii", "lost.nii"]
    assert len(notes) == 2
    assert "left out 1 file(s) that are results" in notes[0]
    assert "named more than once" in notes[1]


def test_a_list_with_the_mark_of_windows_editors_is_read(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.nii\nb.nii\n", encoding="utf-8-sig")
    assert discover([path])[0] == [Path("a.nii"), Path("b.nii")]


def test_a_list_may_name_files_that_begin_with_a_tilde_and_is_text(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("~$a.nii\n")
    assert discover([path])[0] == [Path("~$a.nii")]
    path.write_text("a.nii\n", encoding="utf-16-le")
    with pytest.raises(UsageError, match="zero bytes in the text, as binary files and UTF-16 have them"):
        discover([path])


def test_a_folder_or_list_without_scans_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path.name}: found a folder with no scans"):
        discover([tmp_path])
    (tmp_path / "l.txt").write_text("\n")
    with pytest.raises(UsageError, match=r"l.txt: found an empty list"):
        discover([tmp_path / "l.txt"])
    with pytest.raises(UsageError, match=r"lost.txt: found no such file"):
        discover([tmp_path / "lost.txt"])


def test_two_scans_that_would_share_an_output_are_both_named(tmp_path):
    scans = [tmp_path / "p" / "t1.nii.gz", tmp_path / "q" / "t1.mgz"]
    with pytest.raises(
        UsageError, match=r"t1_synthseg.nii.gz: found one output for two scans, .*p/t1.nii.gz and .*q/t1"
    ):
        plan_jobs(scans, tmp_path / "out", Outputs())


def test_an_output_never_replaces_a_scan(tmp_path):
    with pytest.raises(UsageError, match=r"a.nii: found an output that would replace a scan"):
        plan_jobs([tmp_path / "a.nii"], tmp_path / "a.nii", Outputs())


def test_one_file_name_is_not_enough_for_two_label_maps(tmp_path):
    with pytest.raises(UsageError, match="one output file for 2 scans"):
        plan_jobs([Path("a.nii"), Path("b.nii")], tmp_path / "o.nii.gz", Outputs())
    with pytest.raises(UsageError, match="one output file for two label maps"):
        plan_jobs([Path("a.nii")], tmp_path / "o.nii.gz", Outputs(space="both"))
