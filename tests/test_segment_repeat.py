"""Error bars: the copies a scan is segmented in, and the spread of their volumes."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

import plus_helpers
from inference_helpers import (
    COARSE,
    NAMES,
    BandNetwork,
    band_model,
    coarse_scan,
    phantom,
    phantom_affine,
    run_scans,
    small_protocol,
)
from synthseg.errors import SynthsegError, UsageError
from synthseg.inference import Model, Outputs, Segmenter, repeat
from synthseg.inference.grids import Grid
from synthseg.inference.prepare import grid_of, looks_like_ct
from synthseg.inference.repeat import (
    Change,
    draw_changes,
    interval_of,
    rotation_matrix,
    segment_copies,
    with_intervals,
)
from synthseg.volumes import Volume, read_volume, to_ras


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


def head(spacing_mm=COARSE) -> Volume:
    return Volume(phantom(spacing_mm=spacing_mm), phantom_affine(spacing_mm))


# -- the interval


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=12))
def test_the_interval_is_students_for_one_more_value(values):
    found = interval_of(values)
    n, mean, sd = len(values), np.mean(values), np.std(values, ddof=1)
    low, high = stats.t.interval(0.95, n - 1, mean, sd * np.sqrt(1 + 1 / n)) if sd > 0 else (mean, mean)
    np.testing.assert_allclose([found.mean, found.sd, found.high], [mean, sd, high], rtol=1e-9, atol=1e-9)
    assert found.low == pytest.approx(max(low, 0.0), rel=1e-6, abs=1e-6)
    assert found.n == n


def test_one_more_segmentation_falls_into_the_interval_19_times_in_20():
    draws = np.random.default_rng(0).normal(5000, 70, (4000, 6))
    hits = [interval_of(row[:5]).low <= row[5] <= interval_of(row[:5]).high for row in draws]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)  # three standard errors


# -- the changes


@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_turns_are_those_of_scipy_about_right_front_and_up(degrees):
    np.testing.assert_allclose(
        rotation_matrix(degrees), Rotation.from_euler("xyz", degrees, degrees=True).as_matrix(), atol=1e-12
    )


def test_a_scan_always_gets_the_same_changes_and_another_scan_others():
    scan = head()
    changes = draw_changes(scan, 6)
    assert [change.mirrored for change in changes] == [False, True] * 3
    assert np.abs([change.degrees for change in changes]).max() <= repeat.MAX_DEGREES
    assert len({change.degrees for change in changes}) == 6
    assert draw_changes(scan, 3) == changes[:3]
    turned = Volume(scan.data[::-1, :, ::-1].transpose(2, 0, 1), scan.affine)  # the same scan, stored in another order
    move = np.array([[0, -1, 0, 35], [0, 0, 1, 0], [-1, 0, 0, 31], [0, 0, 0, 1.0]])
    assert draw_changes(to_ras(replace(turned, affine=scan.affine @ move))[0], 6) == changes
    other = scan.data.copy()
    other[3, 3, 3] += 1
    assert draw_changes(replace(scan, data=other), 6) != changes


# -- the copies


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_is_the_turned_scan(mirrored):
    """Against scipy's own resampling, for a scan that needs no other voxel size."""
    data = ndimage.gaussian_filter(np.random.default_rng(0).random((30, 36, 40)).astype(np.float32), 2) * 1000
    scan = Volume(data, phantom_affine())
    source = repeat._Source(scan, grid_of(scan), None)
    copy = source.copy(Change((2.0, -3.0, 1.0), mirrored))
    turn = rotation_matrix((2.0, -3.0, 1.0))
    centre = (np.array(data.shape) - 1) / 2
    expected = ndimage.affine_transform(data, turn.T, centre - turn.T @ centre, order=1)
    inner = (slice(4, -4),) * 3
    found = copy.data[::-1] if mirrored else copy.data
    np.testing.assert_allclose(found[inner], expected[inner], rtol=1e-4)
    np.testing.assert_array_equal(copy.affine, scan.affine)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), COARSE, (1, 1, 3)], ids=str)
@pytest.mark.parametrize("ct", [False, True])
def test_a_copy_that_is_not_turned_gives_the_volumes_of_the_scan(segmenter, monkeypatch, spacing_mm, ct):
    """Blur, grid, interpolation and CT window of a copy are those that the scan itself goes through."""
    monkeypatch.setattr(repeat, "MAX_DEGREES", 0.0)
    scan = head(spacing_mm)
    if ct:
        scan = replace(scan, data=np.where(scan.data > 0, scan.data / 20, -1000).astype(np.float32))
    segmentation = segmenter.segment(scan)
    assert any("recognised as CT" in note for note in segmentation.notes) == ct
    copy = segment_copies(segmenter, scan, segmentation, 1)[0]
    for value, volume in segmentation.volumes_mm3.items():
        assert copy.volumes_mm3[value] == pytest.approx(volume, rel=0.005, abs=20)


def test_copies_of_a_scan_that_is_not_ct_are_not_taken_for_ct():
    """Corners filled with the scan's minimum raise the share of air over the threshold."""
    labels = plus_helpers.painted((64, 60, 64))
    data = np.where(labels > 0, 40.0, 300.0).astype(np.float32)
    data.reshape(-1)[np.flatnonzero(labels == 0)[: int(0.045 * data.size)]] = -1024
    scan = Volume(data, np.eye(4))
    auto, never = (
        Segmenter(plus_helpers.structures_model(), config=replace(plus_helpers.EXACT, ct=ct)) for ct in (None, False)
    )
    segmentation = auto.segment(scan)
    source = repeat._Source.of(auto, scan, segmentation)
    assert not looks_like_ct(data)
    assert all(looks_like_ct(source.copy(change).data) for change in draw_changes(scan, 3))
    copies, expected = (segment_copies(segmenter, scan, segmentation, 3) for segmenter in (auto, never))
    assert [copy.volumes_mm3 for copy in copies] == [copy.volumes_mm3 for copy in expected]


def test_copies_look_where_the_scans_own_window_is(monkeypatch):
    """A network that knows the side by the middle of its window: other windows would move volume between the sides."""
    monkeypatch.setattr(repeat, "MAX_DEGREES", 0.0)
    scan = head()
    wide = replace(scan, data=np.pad(scan.data, ((4, 30), (3, 20), (25, 2))))  # a lot of air, on one side mostly
    model = replace(band_model(spacing_mm=2.0), field_of_view_mm=(72.0, 80.0, 64.0))
    segmenter = Segmenter(model, "fast")
    segmentation = segmenter.segment(wide)
    copies = segment_copies(segmenter, wide, segmentation, 1)
    assert copies[0].volumes_mm3 == pytest.approx(segmentation.volumes_mm3, rel=0.002)


@given(start=st.tuples(*[st.integers(0, 60)] * 3), shape=st.tuples(*[st.integers(1, 40)] * 3))
def test_the_window_lies_inside_the_scan_and_holds_the_brain(start, shape):
    labels = np.zeros((100, 100, 100), np.int32)
    labels[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] = 3
    working = Grid((50, 50, 50), np.diag([2.0, 2.0, 2.0, 1.0]) + np.array([[0, 0, 0, 0.5]] * 3 + [[0.0] * 4]))
    found = repeat.brain_window(working, Volume(labels, np.eye(4)), (48.0, 32.0, 64.0), 8)
    offset = (found.affine[:3, 3] - working.affine[:3, 3]) / 2
    low, high = (np.array(start) / 2, (np.array(start) + shape) / 2)  # edges of the brain in working voxels
    assert (offset >= 0).all()
    assert (offset + found.shape <= 50).all()
    assert (offset <= low + 1e-6).all()
    assert (offset + found.shape >= high - 1e-6).all()
    assert (np.array(found.shape) >= (24, 16, 32)).all()
    assert not (np.array(found.shape) % 8).any() or 50 in found.shape


def test_turned_and_mirrored_copies_keep_volumes_and_sides(segmenter):
    scan = head()
    segmentation = segmenter.segment(scan)
    sides = segmentation.volumes_mm3
    assert sides[41] > 1.1 * sides[2]  # the phantom's right half is the larger one
    for copy in segment_copies(segmenter, scan, segmentation, 4):
        assert copy.total_mm3 == pytest.approx(segmentation.total_mm3, rel=0.02)
        for value in (2, 41):
            assert copy.volumes_mm3[value] == pytest.approx(
                sides[value], rel=0.06
            )  # its edges, in voxels of 2 mm, blur
        assert copy.volumes_mm3 != segmentation.volumes_mm3


def test_intervals_are_over_the_scan_and_its_copies(segmenter):
    scan = head()
    segmentation = segmenter.segment(scan)
    copies = segment_copies(segmenter, scan, segmentation, 3)
    result = with_intervals(segmentation, copies)
    assert list(result.intervals) == [0, *segmentation.volumes_mm3]
    assert result.intervals[0] == interval_of([one.total_mm3 for one in (segmentation, *copies)])
    assert result.intervals[17] == interval_of([one.volumes_mm3[17] for one in (segmentation, *copies)])
    assert (result.labels, result.volumes_mm3) == (segmentation.labels, segmentation.volumes_mm3)


# -- in a batch


def test_error_bars_reach_the_record_and_the_tables_and_come_back_from_it(tmp_path, segmenter):
    scan, out, outputs = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out", Outputs(repeat=2)
    plain = run_scans(segmenter, [scan], out).outcomes[0]
    before = (out / "a_synthseg.nii.gz").read_bytes()
    outcome = run_scans(segmenter, [scan], out, outputs, table=tmp_path / "v.tsv").outcomes[0]
    assert outcome.status == "done"  # other settings than before
    assert (out / "a_synthseg.nii.gz").read_bytes() == before
    assert outcome.volumes_mm3 == plain.volumes_mm3
    record = json.loads((out / "a_synthseg.json").read_text())
    assert list(record["intervals_mm3"]) == NAMES
    assert record["timings_s"]["repeat"] > 0
    volume = read_volume(scan)
    whole = segmenter.segment(volume)
    expected = with_intervals(whole, segment_copies(segmenter, volume, whole, 2)).intervals
    for interval, values in zip(expected.values(), record["intervals_mm3"].values(), strict=True):
        assert values == pytest.approx(asdict(interval), abs=1e-3)
    rows = (tmp_path / "v.tsv").read_text()
    again = run_scans(segmenter, [scan], out, outputs, table=tmp_path / "again.tsv").outcomes[0]
    assert again.status == "skipped"
    assert (tmp_path / "again.tsv").read_text() == rows
    assert run_scans(segmenter, [scan], out, Outputs(repeat=3)).outcomes[0].status == "done"


@pytest.mark.parametrize("damage", [[], {"total": 3}, {}, {"total": {"mean": 1}}, None])
def test_a_record_with_damaged_error_bars_means_that_the_scan_is_done_again(tmp_path, segmenter, damage):
    scan, path = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out" / "a_synthseg.json"
    run_scans(segmenter, [scan], tmp_path / "out", Outputs(repeat=2))
    path.write_text(json.dumps({**json.loads(path.read_text()), "intervals_mm3": damage}))
    assert run_scans(segmenter, [scan], tmp_path / "out", Outputs(repeat=2)).outcomes[0].status == "done"


def test_sides_are_merged_before_the_spread_is_taken(tmp_path, segmenter):
    scan, table = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "v.csv"
    outputs = Outputs(repeat=2, merge_sides=True, structures=("hippocampus",))
    outcome = run_scans(segmenter, [scan], tmp_path / "out", outputs, table=table).outcomes[0]
    whole = segmenter.segment(scan)
    copies = segment_copies(segmenter, read_volume(scan), whole, 2)
    expected = interval_of([one.volumes_mm3[17] + one.volumes_mm3[53] for one in (whole, *copies)])
    row = next(csv.DictReader(table.open(newline="")))
    assert float(row["hippocampus sd"]) == pytest.approx(expected.sd, abs=1e-3)
    assert list(outcome.intervals_mm3) == ["total intracranial", "hippocampus"]


def test_a_copy_that_fails_fails_the_scan_with_its_number(tmp_path):
    class OnlyOnce(BandNetwork):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return super().forward(image) * (np.nan if self.calls > 2 else 1)

    segmenter = Segmenter(Model.from_network(OnlyOnce(), small_protocol(), spacing_mm=2.0, multiple=4), "fast")
    scan = coarse_scan(tmp_path / "a.nii.gz")
    outcome = run_scans(segmenter, [scan], tmp_path / "out", Outputs(repeat=3)).outcomes[0]
    assert outcome.status == "failed"
    assert isinstance(outcome.error, SynthsegError)
    assert f"{scan}: found copy 2 of 3 (turned by" in outcome.message
    assert "degrees and mirrored) that could not be segmented: " in outcome.message
    assert "that is not a number" in outcome.message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_synthseg_failed.json"]


@pytest.mark.parametrize("count", [1, -2])
def test_fewer_than_two_copies_are_refused(count):
    with pytest.raises(UsageError, match=rf"--repeat: found {count}. Fix: use at least 2 copies"):
        Outputs(repeat=count)
