"""Converting a truth of another convention: tables as users write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthseg.errors import LabelError
from synthseg.evaluation import read_mapping

ONE_MM = np.ones(3)


def table(tmp_path: Path, text: str, name: str = "map.csv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "braincolor_id,name,aseg_id,note\n40,x,46,\n71,vermis,8/47,split\n"),
        ("a.tsv", "source\tnote\ttarget\n40\t\t46\n71\t\t8/47\n"),
        ("bom.csv", "\ufeffbraincolor_id,aseg_id\n40,46\n71,8/47\n"),
    ],
)
def test_tables_are_read_by_their_columns(tmp_path: Path, name: str, text: str) -> None:
    assert read_mapping(table(tmp_path, text, name)).targets == {40: (46,), 71: (8, 47)}


def test_rows_marked_ignore_become_the_ignored_value(tmp_path: Path) -> None:
    mapping = read_mapping(table(tmp_path, "b_id,a_id,score\n46,24,ignore\n4,14,yes\n"))
    assert mapping.targets == {46: (255,), 4: (14,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"map.csv: found the columns a, b\. Fix: give two columns"),
        ("", "found the columns none"),
        ("a_id,b_id\n1,two\n", r"map.csv, line 2: found '1' -> 'two'"),
        ("a_id,b_id\n1\n", "line 2: found '1' -> "),
        ("a_id,b_id\n1,-2\n", "never negative"),
        ("a_id,b_id\n1,2\n1,3\n", "line 3: found two different targets for 1"),
    ],
)
def test_a_table_that_makes_no_sense_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read_mapping(table(tmp_path, text))


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"none.csv: found no such file"):
        read_mapping(tmp_path / "none.csv")


def test_values_are_converted_and_background_needs_no_row(tmp_path: Path) -> None:
    mapping = read_mapping(table(tmp_path, "a_id,b_id\n40,46\n41,7\n"))
    truth = np.array([[[0, 40, 41, 40]]], dtype=np.int32)
    np.testing.assert_array_equal(mapping.apply(truth, ONE_MM, subject="t.nii"), [[[0, 46, 7, 46]]])


def test_a_value_the_table_lacks_is_told(tmp_path: Path) -> None:
    mapping = read_mapping(table(tmp_path, "a_id,b_id\n40,46\n"))
    with pytest.raises(LabelError, match=r"t\.nii: found label values .*99 \(2 voxels\)"):
        mapping.apply(np.array([[[99, 99, 40]]]), ONE_MM, subject="t.nii")


def test_a_choice_goes_to_the_nearest_structure_in_millimetres(tmp_path: Path) -> None:
    mapping = read_mapping(table(tmp_path, "a_id,b_id\n1,8\n2,47\n71,8/47\n72,8/47\n"))
    truth = np.zeros((7, 5, 3), dtype=np.int32)
    truth[0, 2, 1], truth[6, 2, 1] = 1, 2
    truth[1:4, 2, 1], truth[4:6, 2, 1] = 71, 72
    expected = [8, 8, 8, 8, 47, 47, 47]  # the voxel in the middle goes to the target named first
    np.testing.assert_array_equal(mapping.apply(truth, ONE_MM, subject="t")[:, 2, 1], expected)
    # Thick voxels along the first axis: a neighbour along the second is nearer than two voxels away.
    truth = np.zeros((4, 4, 1), dtype=np.int32)
    truth[0, 0, 0], truth[1, 3, 0], truth[1, 0, 0] = 1, 2, 71
    near_first = mapping.apply(truth, np.array([1.0, 1.0, 1.0]), subject="t")[1, 0, 0]
    near_second = mapping.apply(truth, np.array([5.0, 1.0, 1.0]), subject="t")[1, 0, 0]
    assert (near_first, near_second) == (8, 47)


def test_a_choice_without_anything_to_go_by_is_told(tmp_path: Path) -> None:
    mapping = read_mapping(table(tmp_path, "a_id,b_id\n1,8\n2,47\n71,8/47\n"))
    with pytest.raises(LabelError, match=r"divide among 8/47, but none that is 47 without a choice"):
        mapping.apply(np.array([[[1, 71]]]), ONE_MM, subject="t")


def test_the_input_is_left_as_it_was(tmp_path: Path) -> None:
    mapping = read_mapping(table(tmp_path, "a_id,b_id\n1,8\n2,47\n71,8/47\n"))
    truth = np.array([[[1, 71, 2]]], dtype=np.int32)
    mapping.apply(truth, ONE_MM, subject="t")
    np.testing.assert_array_equal(truth, [[[1, 71, 2]]])


def test_the_real_table_gives_the_real_conversion(shared: Path) -> None:
    from synthseg.metrics import dice
    from synthseg.volumes import read_volume

    folder = shared / "data" / "validation"
    mapping = read_mapping(folder / "braincolor_to_aseg.csv")
    source = read_volume(folder / "mni" / "mni152lin_2mm_braincolor.nii.gz", labels=True)
    expected = read_volume(folder / "mni" / "mni152lin_2mm_aseg.nii.gz", labels=True)
    converted = mapping.apply(source.data, source.spacing_mm, subject="mni")
    values = [int(value) for value in np.unique(expected.data) if value]
    # The vermis (values 8 and 47) was split there by the hemispheres' cortex and white matter, here by cortex.
    scores = dict(zip(values, dice(converted, expected.data, values), strict=True))
    assert min(scores[8], scores[47]) > 0.99
    assert {score for value, score in scores.items() if value not in (8, 47)} == {1.0}
