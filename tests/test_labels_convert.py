"""Conversions between label conventions: one look-up against a plain dictionary, and the published groupings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.errors import LabelError
from synthseg.labels import load_protocol
from synthseg.labels.convert import apply_mapping, convert, group_mapping, target_mapping


@given(data=st.data())
def test_convert_equals_a_loop_over_a_dictionary(data: st.DataObject) -> None:
    numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**31 - 1))
    mapping = data.draw(st.dictionaries(numbers, numbers, min_size=1, max_size=20))
    shape = data.draw(st.tuples(*[st.integers(0, 4)] * 3))
    size = int(np.prod(shape))
    voxels = data.draw(st.lists(st.sampled_from(sorted(mapping)), min_size=size, max_size=size))
    dtype = data.draw(st.sampled_from([np.int64, np.uint32, np.float64]))
    label_map = np.array(voxels, dtype=dtype).reshape(shape)
    before = label_map.copy()
    converted = convert(label_map, list(mapping), list(mapping.values()), subject="map")
    assert converted.dtype == np.int32
    assert converted.shape == shape
    assert converted.ravel().tolist() == [mapping[int(value)] for value in voxels]
    assert (label_map == before).all()


def test_a_target_beyond_32_bits_widens_the_result() -> None:
    converted = convert(np.array([[[3]]]), [3], [2**40])
    assert converted.dtype == np.int64
    assert converted.item() == 2**40


def test_booleans_are_zero_and_one() -> None:
    assert convert(np.array([True, False]), [0, 1], [5, 6]).tolist() == [6, 5]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([0, 2], [0], r"scan\.mgz: found 2 source values for 1 target values"),
        ([], [], r"0 source values for 0 target values"),
        ([0, 2, 2], [0, 1, 3], r"two targets for value 2: 1 and 3"),
        ([0, -2], [0, 1], r"the pair -2 -> 1\. Fix: label values are never negative"),
        ([0, 3], [0, 1], r"the conversion does not know: 2 \(3 voxels\)"),
    ],
)
def test_impossible_conversions_are_refused(source: list[int], target: list[int], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        convert(np.array([[[0, 2, 2, 2]]]), source, target, subject="scan.mgz")


def test_a_repeated_pair_is_harmless() -> None:
    assert convert(np.array([2, 0]), [0, 2, 2], [0, 7, 7]).tolist() == [7, 0]


def test_generation_labels_become_the_targets_of_both_versions() -> None:
    generation = load_protocol("synthseg-generation")
    to_2 = target_mapping(generation)
    to_1 = target_mapping(generation, onto=load_protocol("synthseg-1.0"))
    assert {value for value in to_2 if to_2[value] != to_1[value]} == {24}
    assert to_1[24] == 0
    # Reference 1.2: lesions and choroid plexus merge into what holds them; vessels and the head drop out.
    merged = {25: 2, 57: 41, 136: 4, 137: 5, 163: 43, 164: 44, 30: 0, 62: 0, 511: 0, 72: 0, 85: 0}
    assert {value: to_2[value] for value in merged} == merged


def test_group_mappings_are_the_published_groups() -> None:
    generation = load_protocol("synthseg-generation")
    tissue = group_mapping(generation, "tissue")
    fluids = {14, 15, 4, 5, 136, 137, 43, 44, 163, 164}  # reference 1.6
    assert {value for value, group in tissue.items() if group == 3} == fluids
    quality = group_mapping(load_protocol("synthseg-2.0"), "quality")
    assert {value for value, group in quality.items() if group == 1} == {2, 11, 26, 28, 41, 50, 58, 60}  # 1.5
    topology = group_mapping(load_protocol("synthseg-2.0"), "topology")
    assert {value for value, group in topology.items() if group == 14} == {41, 42, 43, 44}  # 1.4
    with pytest.raises(LabelError, match="no group column 'color'"):
        group_mapping(generation, "color")


def test_mappings_equal_the_published_lists(shared: Path) -> None:
    arrays = json.loads((shared / "data/training/tables/all_arrays.json").read_text(encoding="utf-8"))
    generation = load_protocol("synthseg-generation")
    values = np.array(arrays["generation_labels"])
    to_1 = target_mapping(generation, onto=load_protocol("synthseg-1.0"))
    assert apply_mapping(values, to_1, subject="list").tolist() == arrays["synthseg_segmentation_labels"]
    for column, key in [("tissue", "tutorial_7_segmentation_labels_s1"), ("quality", "synthseg_qc_labels")]:
        groups = apply_mapping(values, group_mapping(generation, column), subject="list")
        assert groups.tolist() == arrays[key]
