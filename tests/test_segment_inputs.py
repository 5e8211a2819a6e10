"""``synthseg segment`` with DICOM given: which series is taken, the DICOM SEG and the pages that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("dcm2niix")
import pydicom

from dicom_files import make_series, noise
from inference_helpers import COARSE, phantom, phantom_affine, save_random_weights, save_scan
from report_helpers import text_of

Command = Callable[..., tuple[int, str, str]]
Segment = Callable[..., tuple[int, str, str]]


@pytest.fixture
def segment(command: Command, tmp_path: Path) -> Segment:
    """Run `synthseg segment ... -o out` with a tiny network."""
    weights = save_random_weights(tmp_path / "weights.safetensors")
    fixed = ("-o", tmp_path / "out", "--weights", weights, "--device", "cpu", "--backend", "plain", "--threads", 1)
    return lambda *arguments: command("segment", *arguments, *fixed)


def study(folder: Path) -> Path:
    """A head of 4 mm slices, the same of 8 mm with a number before it, and a localiser."""
    head = np.ascontiguousarray(phantom((72, 80, 64), (2, 2, 4)).transpose(2, 1, 0))
    make_series(folder / "a", head[::2], number=2, description="T1 thick", spacing=(2.0, 2.0), gap=8.0)
    make_series(folder / "b", head, number=5, description="T1 thin", spacing=(2.0, 2.0), gap=4.0)
    make_series(folder / "c", noise(slices=3), number=1, description="scout")
    return folder


def label_maps(out: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in out.glob("*_synthseg.nii.gz"))


def test_the_best_series_is_segmented_and_the_others_are_accounted_for(segment: Segment, tmp_path: Path) -> None:
    code, out, told = segment(study(tmp_path / "visit"))
    assert code == 0, told
    assert label_maps(tmp_path / "out") == ["visit-s005"]
    assert "took series 5 'T1 thin'" in told
    assert "left out" in told
    rows = [line.split("\t") for line in (tmp_path / "out" / "left_out.tsv").read_text().splitlines()]
    assert [Path(row[0]).name for row in rows[1:]] == ["series 1 'scout'", "series 2 'T1 thick'"]
    assert rows[1][1] == "a localiser"
    assert "is better" in rows[2][1]
    assert "1 done" in out


def test_series_names_another(segment: Segment, tmp_path: Path) -> None:
    code, _, told = segment(study(tmp_path / "visit"), "--series", "thick")
    assert code == 0, told
    assert label_maps(tmp_path / "out") == ["visit-s002"]
    code, _, told = segment(tmp_path / "visit", "--series", 99)
    assert code == 2
    assert "no series to segment" in told
    assert "series 5 'T1 thin': not asked for" in told


def labels_of(path: Path) -> dict[tuple[float, ...], dict[str, np.ndarray]]:
    """Position of a slice -> name of a segment -> its pixels [rows, columns]."""
    seg: Any = pydicom.dcmread(path)
    names = {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence}
    found: dict[tuple[float, ...], dict[str, np.ndarray]] = {}
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, about in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = tuple(float(x) for x in about.PlanePositionSequence[0].ImagePositionPatient)
        named = about if "SegmentIdentificationSequence" in about else seg.SharedFunctionalGroupsSequence[0]
        number = named.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found.setdefault(position, {})[names[number]] = frame > 0
    return found


def test_a_dicom_seg_holds_the_label_map_and_stays_until_it_is_made_again(segment: Segment, tmp_path: Path) -> None:
    plain = save_scan(tmp_path / "plain.nii.gz", phantom(spacing_mm=COARSE), phantom_affine(COARSE))
    given = (study(tmp_path / "visit"), plain, "--dicom-seg")
    code, _, told = segment(*given)
    assert code == 0, told
    (path,) = (tmp_path / "out").glob("*.dcm")  # of the one that is DICOM
    image: Any = nib.load(path.with_name(f"{path.stem}.nii.gz"))
    labels = np.asarray(image.dataobj)
    colors = [line.split() for line in path.with_name(f"{path.stem}_colors.txt").read_text().splitlines()]
    values = {row[1].replace("-", " "): int(row[0]) for row in colors if row and row[0].isdecimal()}
    held = labels_of(path)
    assert sum(int(mask.sum()) for plane in held.values() for mask in plane.values()) == int((labels > 0).sum()) > 0
    for position, plane in held.items():
        x, y, z = -position[0], -position[1], position[2]
        i, j, k = np.rint(np.linalg.inv(image.affine) @ [x, y, z, 1])[:3].astype(int)
        assert (i, j) == ((0 if image.affine[0, 0] < 0 else labels.shape[0] - 1), labels.shape[1] - 1)
        rows = labels[:: 1 if i == 0 else -1, ::-1, k].T  # DICOM's first pixel is to the right and in front
        for name, mask in plane.items():
            np.testing.assert_array_equal(mask, rows == values[name.replace("-", " ")])

    first = pydicom.dcmread(path).SOPInstanceUID
    code, out, told = segment(*given)
    assert (code, "2 skipped" in out) == (0, True), told
    assert pydicom.dcmread(path).SOPInstanceUID == first
    segment(*given, "--overwrite")
    assert pydicom.dcmread(path).SOPInstanceUID != first


def test_a_study_that_cannot_be_used_and_a_series_that_is_gone_end_with_1(segment: Segment, tmp_path: Path) -> None:
    folder = study(tmp_path / "visit")
    make_series(tmp_path / "other", noise(slices=3), description="scout", study="1.2.3.4")
    code, out, told = segment(folder, tmp_path / "other")
    assert (code, "1 done" in out) == (1, True)
    assert "failed: " in told
    assert "'scout': a localiser" in told
    (scan,) = (tmp_path / "out" / "converted").glob("visit*.nii.gz")
    for path in (folder / "b").glob("*.dcm"):
        path.unlink()
    code, _, told = segment(scan, "--dicom-seg")
    assert code == 1
    assert "source files that are gone" in told


def test_report_writes_pages_that_do_not_name_the_folder(segment: Segment, tmp_path: Path) -> None:
    code, out, told = segment(study(tmp_path / "Doe_Jane"), "--report")
    assert code == 0, told
    pages = sorted((tmp_path / "out" / "report").glob("*.html"))
    assert [page.name == "index.html" for page in pages] == [True, False]
    assert "pages written; begin with" in out
    for page in pages:
        assert "Jane" not in text_of(page.read_text())


def test_report_needs_a_folder_and_says_so_before_the_work(command: Command, tmp_path: Path) -> None:
    code, _, told = command("segment", tmp_path / "none.nii.gz", "-o", tmp_path / "one.nii.gz", "--report")
    assert code == 2
    assert "--report: found one file" in told
