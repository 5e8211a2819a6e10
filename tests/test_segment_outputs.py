"""What is written for a scan, and what a batch does with many."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from inference_helpers import BandNetwork, band_model, phantom, phantom_affine, save_scan, small_protocol
from synthseg.errors import OutputError, UsageError
from synthseg.inference import BatchOptions, Model, Outputs, Segmenter, discover, plan_jobs, run_batch
from synthseg.inference.outputs import brain_mask, color_table
from synthseg.inference.structures import channels_of
from synthseg.inference.tables import VolumeTable
from synthseg.volumes import Volume

COARSE = (2.0, 2.0, 2.0)
NAMES = [
    "total intracranial",
    "left cerebral white matter",
    "brain-stem",
    "left hippocampus",
    "csf",
    "right cerebral white matter",
    "right hippocampus",
]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


def coarse_scan(path: Path, scale: float = 1.0) -> Path:
    return save_scan(path, phantom(spacing_mm=COARSE) * np.float32(scale), phantom_affine(COARSE))


def run(segmenter, scans, out, outputs=None, **options):
    outputs = outputs or Outputs()
    return run_batch(segmenter, plan_jobs(scans, out, outputs), outputs, BatchOptions(**options))


# -- files


def test_every_output_is_written_and_holds_what_its_name_says(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "in" / "sub-01.nii.gz")
    outputs = Outputs(space="both", posteriors=True, resampled=True, mask=True, color_table=True)
    result = run(segmenter, [scan], tmp_path / "out", outputs)
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
    outcome = run(segmenter, [scan], tmp_path / "out").outcomes[0]
    record = json.loads((tmp_path / "out" / "a_synthseg.json").read_text())
    assert record["input"]["sha256"] == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert record["settings"]["inference"]["flip"] is False
    assert record["settings"]["weights"]["protocol"] == "small"
    assert set(record["timings_s"]) == {"read", "prepare", "predict", "postprocess", "results", "write"}
    assert {"synthseg", "torch", "numpy"} <= set(record["versions"])
    assert record["volumes_mm3"] == outcome.volumes_mm3
    assert list(record["volumes_mm3"]) == NAMES
    assert record["peak_memory_mib"] > 50
    assert record["files"] == {"labels": "a_synthseg.nii.gz", "record": "a_synthseg.json"}


def test_one_scan_can_be_given_its_file_name_and_type(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    run(segmenter, [scan], tmp_path / "deep" / "mine.mgz")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["mine.mgz", "mine_synthseg.json"]
    assert nib.load(tmp_path / "deep" / "mine.mgz").shape == nib.load(scan).shape


def test_chosen_and_merged_structures_reach_labels_tables_and_colours(tmp_path, segmenter):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    outputs = Outputs(structures=("hippocampus",), merge_sides=True, color_table=True)
    table = tmp_path / "v.csv"
    assert not run(segmenter, [scan], tmp_path / "out", outputs, table=table).failed
    labels = np.asarray(nib.load(tmp_path / "out" / "a_synthseg.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 17}
    assert table.read_text().splitlines()[0] == "subject,total intracranial,hippocampus"
    lines = (tmp_path / "out" / "a_synthseg_colors.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["0", "background"], ["17", "hippocampus"]]


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


# -- tables


def test_csv_has_the_originals_layout(tmp_path, segmenter):
    scans = [coarse_scan(tmp_path / "in" / name) for name in ("b.nii", "a.nii.gz")]
    table = tmp_path / "volumes.csv"
    outcomes = run(segmenter, scans, tmp_path / "out", table=table).outcomes
    raw = table.read_bytes()
    assert raw.count(b"\r\n") == 3 == raw.count(b"\n")
    rows = list(csv.reader(raw.decode().splitlines()))
    assert rows[0] == ["subject", *NAMES]
    assert [row[0] for row in rows[1:]] == ["b", "a"]
    assert [float(cell) for cell in rows[1][1:]] == [outcomes[0].volumes_mm3[name] for name in NAMES]
    assert all(cell == repr(round(float(cell), 3)) for cell in rows[1][1:])


def test_tsv_is_tidy(tmp_path, segmenter):
    table = tmp_path / "volumes.tsv"
    run(segmenter, [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out", table=table)
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert rows[0] == ["subject", "value", "structure", "volume_mm3"]
    assert [row[1] for row in rows[1:]] == ["n/a", "2", "16", "17", "24", "41", "53"]
    assert [row[2] for row in rows[1:]] == NAMES


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rows_of_earlier_runs_are_kept_and_repeated_ones_replaced(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    VolumeTable(path, ["total", "x, y"], {"x, y": 3}).add("s1", {"total": 2, "x, y": 1.23456})
    again = VolumeTable(path, ["total", "x, y"], {"x, y": 3})
    again.add("s2", {"total": 4, "x, y": 0})
    again.add("s1", {"total": 3, "x, y": 5})
    assert VolumeTable(path, ["total", "x, y"], {}).rows == {"s1": ["3.0", "5.0"], "s2": ["4.0", "0.0"]}


@pytest.mark.parametrize("text", ["subject,other\r\na,1\r\n", "subject\tvalue\n", "\x00\x01"])
def test_a_table_of_something_else_is_not_overwritten(tmp_path, text):
    for suffix in (".csv", ".tsv"):
        path = tmp_path / f"v{suffix}"
        path.write_text(text)
        with pytest.raises(UsageError, match="existing table with other columns"):
            VolumeTable(path, ["total"], {})
        assert path.read_text(encoding="utf-8") == text.replace("\r\n", "\n")
    with pytest.raises(UsageError, match=r"v.xlsx: found suffix '.xlsx'"):
        VolumeTable(tmp_path / "v.xlsx", ["total"], {})


def test_without_csf_the_total_is_not_called_intracranial(tmp_path):
    rows = tuple(row for row in small_protocol().labels if row.value != 24)
    protocol = type(small_protocol())("no csf", "", rows)

    class SixBands(BandNetwork):
        def forward(self, image):
            return super().forward(image)[:, (0, 1, 2, 3, 5, 6)]

    model = Model.from_network(SixBands(), protocol, spacing_mm=2.0, multiple=4)
    table = tmp_path / "v.csv"
    result = run(Segmenter(model, "fast"), [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "o", table=table)
    assert next(iter(result.outcomes[0].volumes_mm3)) == "total segmented"
    assert table.read_text().splitlines()[0].split(",")[:2] == ["subject", "left cerebral white matter"]


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


# -- batches


def test_finished_scans_are_skipped_until_settings_or_scan_change(tmp_path, segmenter):
    scan, out, table = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out", tmp_path / "v.csv"

    def status(outputs=None, using=segmenter, **options) -> str:
        return run(using, [scan], out, outputs, **options).outcomes[0].status

    assert status() == "done"
    assert status() == "skipped"
    assert status(overwrite=True) == "done"
    assert status(Outputs(mask=True)) == "done"  # an output more
    assert status(Outputs(mask=True), table=table) == "skipped"
    assert table.read_text().splitlines()[1].startswith("a,")  # the row comes from the record
    (out / "a_synthseg_mask.nii.gz").unlink()
    assert status(Outputs(mask=True)) == "done"
    assert status(Outputs(mask=True), using=Segmenter(segmenter.model)) == "done"  # another mode
    coarse_scan(scan, scale=2.0)
    assert status(Outputs(mask=True), using=Segmenter(segmenter.model)) == "done"  # another scan
    (out / "a_synthseg.json").write_text("{")
    assert status(Outputs(mask=True)) == "done"  # a damaged record


def test_one_bad_scan_does_not_stop_the_others(tmp_path, segmenter):
    good = [coarse_scan(tmp_path / name) for name in ("a.nii.gz", "c.nii.gz")]
    bad = tmp_path / "b.nii.gz"
    bad.write_bytes(b"not a scan")
    table = tmp_path / "v.csv"
    result = run(segmenter, [good[0], bad, tmp_path / "lost.nii", good[1]], tmp_path / "out", table=table)
    assert [outcome.status for outcome in result.outcomes] == ["done", "failed", "failed", "done"]
    assert all(str(outcome.job.scan) in outcome.message for outcome in result.failed)
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["subject", "a", "c"]
    assert not (tmp_path / "out" / "b_synthseg.nii.gz").exists()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError(), "more memory needed than there is.*crop the scan to the head"),
        (RuntimeError("boom"), "an unexpected error, RuntimeError: boom.*--debug"),
    ],
)
def test_an_unexpected_failure_carries_the_scans_name(tmp_path, raised, said):
    class Failing(BandNetwork):
        def forward(self, image):  # noqa: ARG002
            raise raised

    model = Model.from_network(Failing(), small_protocol(), spacing_mm=2.0)
    outcome = run(Segmenter(model), [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out").outcomes[0]
    assert outcome.status == "failed"
    assert re.search(rf"a\.nii\.gz: found {said}", outcome.message)


def test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on(tmp_path, segmenter):
    scans = [coarse_scan(tmp_path / f"{name}.nii.gz") for name in "abc"]

    def interrupt(job):
        if job.subject == "b":
            raise KeyboardInterrupt

    table = tmp_path / "v.csv"
    result = run(segmenter, scans, tmp_path / "out", starting=interrupt, table=table)
    assert result.interrupted
    assert [outcome.status for outcome in result.outcomes] == ["done"]
    assert [job.subject for job in result.remaining] == ["b", "c"]
    again = run(segmenter, scans, tmp_path / "out", table=table)
    assert [outcome.status for outcome in again.outcomes] == ["skipped", "done", "done"]
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == ["a", "b", "c"]


def test_a_place_that_cannot_be_written_is_found_before_the_first_scan(tmp_path, segmenter):
    (tmp_path / "file").write_text("x")
    started = []
    with pytest.raises(OutputError, match=r"file/out: found a folder that cannot be written to"):
        run(segmenter, [tmp_path / "lost.nii"], tmp_path / "file" / "out", starting=started.append)
    assert started == []


def test_an_overlay_without_a_writer_is_refused_not_left_out(tmp_path, segmenter):
    with pytest.raises(UsageError, match=r"overlay: found asked for.*write_overlay"):
        run(segmenter, [tmp_path / "a.nii"], tmp_path / "out", Outputs(overlay=True))


def test_running_out_of_memory_in_torch_is_told_with_the_size(tmp_path):
    class Greedy(BandNetwork):
        def forward(self, image):
            return super().forward(image) + torch.empty(2**60)  # four exabytes

    model = Model.from_network(Greedy(), small_protocol(), spacing_mm=2.0)
    outcome = run(Segmenter(model), [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out").outcomes[0]
    assert "found not enough memory on cpu for 36 x 40 x 32 voxels. Fix: crop" in outcome.message


def test_unknown_structures_stop_the_batch_before_the_first_scan(tmp_path, segmenter):
    with pytest.raises(UsageError, match="structure 'brane': found no such label"):
        run(segmenter, [tmp_path / "lost.nii"], tmp_path / "out", Outputs(structures=("brane",)))
    assert not (tmp_path / "out").exists()
