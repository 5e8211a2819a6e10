"""What a batch does with many scans: skipping, failing, being interrupted."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch

from inference_helpers import BandNetwork, band_model, coarse_scan, run_scans, small_protocol
from synthseg.errors import OutputError, UsageError
from synthseg.inference import Model, Outputs, Segmenter, record


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


def test_finished_scans_are_skipped_until_settings_or_scan_change(tmp_path, segmenter):
    scan, out, table = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out", tmp_path / "v.csv"

    def status(outputs=None, using=segmenter, **options) -> str:
        return run_scans(using, [scan], out, outputs, **options).outcomes[0].status

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


def test_only_a_scan_with_another_time_is_read_to_be_skipped(tmp_path, segmenter, monkeypatch):
    scan, out = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    run_scans(segmenter, [scan], out)
    described = []
    describe = record.describe_input
    monkeypatch.setattr(record, "describe_input", lambda path: described.append(path) or describe(path))

    def status() -> str:
        return run_scans(segmenter, [scan], out).outcomes[0].status

    assert (status(), described) == ("skipped", [])
    os.utime(scan, ns=(0, 0))  # a copy: the same content
    assert (status(), described) == ("skipped", [scan])
    raw = bytearray(scan.read_bytes())
    raw[4] ^= 1  # the time in gzip's header: the same size, another content
    scan.write_bytes(raw)
    assert status() == "done"


def test_another_version_of_synthseg_does_scans_again(tmp_path, segmenter, monkeypatch):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    run_scans(segmenter, [scan], tmp_path / "out")
    newer = tuple((name, "99.0" if name == "synthseg" else version) for name, version in record.versions())
    monkeypatch.setattr(record, "versions", lambda: newer)
    assert run_scans(segmenter, [scan], tmp_path / "out").outcomes[0].status == "done"
    assert run_scans(segmenter, [scan], tmp_path / "out").outcomes[0].status == "skipped"


@pytest.mark.parametrize("part", ["input", "settings", "versions", "volumes_mm3"])
@pytest.mark.parametrize("damage", [None, {}, 3])
def test_a_record_with_a_part_missing_only_means_that_the_scan_is_done_again(tmp_path, segmenter, part, damage):
    scan, path = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out" / "a_synthseg.json"
    run_scans(segmenter, [scan], tmp_path / "out")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, part: damage}))
    assert run_scans(segmenter, [scan], tmp_path / "out").outcomes[0].status == "done"


def test_why_a_scan_failed_is_kept_until_it_is_done(tmp_path, segmenter):
    scan, out = tmp_path / "a.nii.gz", tmp_path / "out"
    scan.write_bytes(b"not a scan")
    outcome = run_scans(segmenter, [scan], out).outcomes[0]
    assert [path.name for path in out.iterdir()] == ["a_synthseg_failed.json"]
    kept = json.loads((out / "a_synthseg_failed.json").read_text())
    assert kept["status"] == "failed"
    assert kept["input"] == {"path": str(scan)}
    assert kept["error"] == {"kind": "VolumeError", "message": outcome.message}
    assert kept["settings"]["weights"]["structures"]["protocol"] == "small"
    coarse_scan(scan)
    assert run_scans(segmenter, [scan], out).outcomes[0].status == "done"
    assert sorted(path.name for path in out.iterdir()) == ["a_synthseg.json", "a_synthseg.nii.gz"]


def test_one_bad_scan_does_not_stop_the_others(tmp_path, segmenter):
    good = [coarse_scan(tmp_path / name) for name in ("a.nii.gz", "c.nii.gz")]
    bad = tmp_path / "b.nii.gz"
    bad.write_bytes(b"not a scan")
    table = tmp_path / "v.csv"
    result = run_scans(segmenter, [good[0], bad, tmp_path / "lost.nii", good[1]], tmp_path / "out", table=table)
    assert [outcome.status for outcome in result.outcomes] == ["done", "failed", "failed", "done"]
    assert all(str(outcome.job.scan) in outcome.message for outcome in result.failed)
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["subject", "a", "c"]
    assert not (tmp_path / "out" / "b_synthseg.nii.gz").exists()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError(), "not enough memory on cpu for 36 x 40 x 32 voxels.*crop the scan to the head"),
        (RuntimeError("boom"), "an unexpected error, RuntimeError: boom.*--debug"),
    ],
)
def test_an_unexpected_failure_carries_the_scans_name(tmp_path, raised, said):
    class Failing(BandNetwork):
        def forward(self, image):  # noqa: ARG002
            raise raised

    model = Model.from_network(Failing(), small_protocol(), spacing_mm=2.0)
    outcome = run_scans(Segmenter(model), [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out").outcomes[0]
    assert outcome.status == "failed"
    assert re.search(rf"a\.nii\.gz: found {said}", outcome.message)


def test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on(tmp_path, segmenter):
    scans = [coarse_scan(tmp_path / f"{name}.nii.gz") for name in "abc"]

    def interrupt(job):
        if job.subject == "b":
            raise KeyboardInterrupt

    table = tmp_path / "v.csv"
    result = run_scans(segmenter, scans, tmp_path / "out", starting=interrupt, table=table)
    assert result.interrupted
    assert [outcome.status for outcome in result.outcomes] == ["done"]
    assert [job.subject for job in result.remaining] == ["b", "c"]
    again = run_scans(segmenter, scans, tmp_path / "out", table=table)
    assert [outcome.status for outcome in again.outcomes] == ["skipped", "done", "done"]
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == ["a", "b", "c"]


def test_a_place_that_cannot_be_written_is_found_before_the_first_scan(tmp_path, segmenter):
    (tmp_path / "file").write_text("x")
    started = []
    with pytest.raises(OutputError, match=r"file/out: found a folder that cannot be written to"):
        run_scans(segmenter, [tmp_path / "lost.nii"], tmp_path / "file" / "out", starting=started.append)
    assert started == []


def test_an_overlay_without_a_writer_is_refused_not_left_out(tmp_path, segmenter):
    with pytest.raises(UsageError, match=r"overlay: found asked for.*write_overlay"):
        run_scans(segmenter, [tmp_path / "a.nii"], tmp_path / "out", Outputs(overlay=True))


def test_running_out_of_memory_in_torch_is_told_with_the_size(tmp_path):
    class Greedy(BandNetwork):
        def forward(self, image):
            return super().forward(image) + torch.empty(2**60)  # four exabytes

    model = Model.from_network(Greedy(), small_protocol(), spacing_mm=2.0)
    outcome = run_scans(Segmenter(model), [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out").outcomes[0]
    assert "found not enough memory on cpu for 36 x 40 x 32 voxels. Fix: " in outcome.message
    assert "crop the scan to the head" in outcome.message


def test_unknown_structures_stop_the_batch_before_the_first_scan(tmp_path, segmenter):
    with pytest.raises(UsageError, match="structure 'brane': found no such label"):
        run_scans(segmenter, [tmp_path / "lost.nii"], tmp_path / "out", Outputs(structures=("brane",)))
    assert not (tmp_path / "out").exists()
