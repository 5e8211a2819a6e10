"""Protocols: the built-in tables against the published facts, the rules of a table, look-ups and round trips."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.errors import LabelError
from synthseg.labels import Label, LabelProtocol, builtin_protocols, load_protocol
from synthseg.labels.table import COLUMNS

# Reference 1.3: what a left/right flip does to the channels.
FLIP_1_0 = [
    *[0, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 11, 12, 13, 28, 29, 30, 31],
    *[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17],
]
FLIP_2_0 = [
    *[0, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 11, 12, 13, 29, 30, 16, 31, 32],
    *[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 17, 18],
]


@pytest.fixture(scope="module")
def generation() -> LabelProtocol:
    return load_protocol("synthseg-generation")


# --- the built-in tables -------------------------------------------------------------------------------------------


def test_the_tables_have_the_published_sizes(generation: LabelProtocol) -> None:
    assert len(generation) == 54
    assert generation.sides == ("neutral",) * 18 + ("left",) * 18 + ("right",) * 18
    assert len(set(generation.generation_classes.tolist())) == 48
    assert len(set(generation.contrast_classes.tolist())) == 25
    assert len(set(generation.tissue_groups.tolist())) == 5
    assert len(set(generation.quality_groups.tolist())) == 9
    sizes = {name: len(load_protocol(name).target_values) for name in builtin_protocols()}
    assert sizes == {
        "synthseg-generation": 33,
        "synthseg-generation-dk": 101,
        "synthseg-1.0": 32,
        "synthseg-2.0": 33,
        "desikan-killiany": 69,
        "freesurfer-dk": 101,
        "dkt": 63,
        "tissue-groups": 5,
        "quality-groups": 9,
        "feta": 8,
        "feta-generation": 8,
        "dhcp": 8,
        "whole-heart": 8,
        "hvsmr": 5,
    }


@pytest.mark.parametrize(("name", "flip"), [("synthseg-1.0", FLIP_1_0), ("synthseg-2.0", FLIP_2_0)])
def test_output_protocols_flip_their_channels_as_published(name: str, flip: list[int]) -> None:
    protocol = load_protocol(name)
    assert protocol.partner_channel.tolist() == flip
    assert protocol.partner_index.tolist() == flip  # index == channel in output protocols


def test_the_generation_table_flips_into_the_channels_of_2_0(generation: LabelProtocol) -> None:
    assert generation.partner_channel.tolist() == FLIP_2_0
    assert generation.target_values.tolist() == load_protocol("synthseg-2.0").values.tolist()
    # A flip of the labels and then the target is the target and then a flip of the channels, for every label.
    flipped_then_target = generation.target_channel[generation.partner_index]
    assert flipped_then_target.tolist() == generation.partner_channel[generation.target_channel].tolist()


@pytest.mark.parametrize("name", builtin_protocols())
def test_partners_are_involutions_in_every_builtin_table(name: str) -> None:
    protocol = load_protocol(name)
    for permutation in (protocol.partner_index, protocol.partner_channel):
        assert permutation[permutation].tolist() == list(range(len(permutation)))


@pytest.mark.parametrize("name", ["synthseg-1.0", "synthseg-2.0", "desikan-killiany", "feta", "whole-heart", "hvsmr"])
def test_output_tables_list_their_channels_in_order(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.values.tolist() == sorted(protocol.values.tolist()) == protocol.target_values.tolist()
    assert protocol.target_channel.tolist() == list(range(len(protocol)))


def test_csf_is_exempt_from_topology_and_quality() -> None:
    csf = load_protocol("synthseg-2.0").by_value(24)
    assert (csf.name, csf.topology, csf.quality) == ("csf", 0, 0)
    assert 24 not in load_protocol("synthseg-1.0").values


def test_left_and_right_share_a_contrast_class_but_no_generation_class(generation: LabelProtocol) -> None:
    lateral = generation.partner_index != np.arange(len(generation))
    partner = generation.partner_index
    assert (generation.contrast_classes[partner] == generation.contrast_classes).all()
    assert (generation.generation_classes[partner] != generation.generation_classes)[lateral].all()


def _csv(shared: Path, name: str) -> list[dict[str, str]]:
    with (shared / "data/training/tables" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_generation_table_equals_the_published_lists(shared: Path, generation: LabelProtocol) -> None:
    arrays = json.loads((shared / "data/training/tables/all_arrays.json").read_text(encoding="utf-8"))
    assert generation.values.tolist() == arrays["generation_labels"]
    assert generation.generation_classes.tolist() == arrays["generation_classes"]
    assert generation.contrast_classes.tolist() == arrays["generation_classes_contrast_specific"]
    assert generation.tissue_groups.tolist() == arrays["tutorial_7_segmentation_labels_s1"]
    assert generation.quality_groups.tolist() == arrays["synthseg_qc_labels"]
    assert generation.topology_groups.tolist() == arrays["synthseg_topological_classes"]
    assert [label.side for label in generation.labels] == [r["side"] for r in _csv(shared, "generation_labels.csv")]
    # The published targets are those of 1.0: CSF (24) is the one difference to 2.0.
    targets = [0 if label.value == 24 else label.target for label in generation.labels]
    assert targets == arrays["synthseg_segmentation_labels"]


@pytest.mark.parametrize(("name", "suffix"), [("synthseg-1.0", ""), ("synthseg-2.0", "_2.0")])
def test_output_tables_equal_the_published_lists(shared: Path, name: str, suffix: str) -> None:
    arrays = json.loads((shared / "data/training/tables/all_arrays.json").read_text(encoding="utf-8"))
    protocol = load_protocol(name)
    published = arrays[f"synthseg_segmentation_labels{suffix}"]
    values, first = np.unique(published, return_index=True)  # facts are taken at the first occurrence
    assert protocol.values.tolist() == values.tolist()
    assert list(protocol.names) == [arrays[f"synthseg_segmentation_names{suffix}"][i] for i in first]
    assert protocol.topology_groups.tolist() == [arrays[f"synthseg_topological_classes{suffix}"][i] for i in first]
    assert protocol.quality_groups.tolist() == [arrays[f"synthseg_qc_labels{suffix}"][i] for i in first]
    if suffix:
        assert protocol.tissue_groups.tolist() == [arrays["synthseg_denoiser_labels_2.0"][i] for i in first]


def test_the_parcellation_table_equals_the_published_list(shared: Path) -> None:
    rows = _csv(shared, "dk_labels.csv")
    protocol = load_protocol("desikan-killiany")
    assert protocol.values.tolist() == [int(row["label"]) for row in rows]
    assert list(protocol.names) == [row["name"] for row in rows]
    assert all(label.partner - label.value == 1000 for label in protocol.labels if label.side == "left")


def test_every_value_of_a_real_training_map_is_known(shared: Path, generation: LabelProtocol) -> None:
    nibabel = pytest.importorskip("nibabel")
    path = shared / "data/training/brain/training_seg_01.nii.gz"  # stored as floats
    label_map = np.asarray(nibabel.load(path).dataobj)
    index = generation.index_of(label_map, subject=path)
    assert (generation.values[index] == label_map).all()
    assert len(np.unique(index)) == 54
    assert np.count_nonzero(index) == 4376109  # reference 1.9


# --- look-ups and round trips --------------------------------------------------------------------------------------


@given(data=st.data())
def test_index_of_inverts_values(data: st.DataObject) -> None:
    protocol = load_protocol(data.draw(st.sampled_from(builtin_protocols())))
    shape = data.draw(st.tuples(*[st.integers(0, 5)] * 3))
    dtype = data.draw(st.sampled_from([np.int16, np.int32, np.uint16, np.int64, np.float32, np.float64]))
    seed = data.draw(st.integers(0, 2**32 - 1))
    index = np.random.default_rng(seed).integers(0, len(protocol), shape)
    found = protocol.index_of(protocol.values[index].astype(dtype))
    assert found.dtype == np.int64
    assert (found == index).all()
    assert found.shape == shape


def test_index_of_handles_values_too_large_for_a_table(generation: LabelProtocol) -> None:
    huge = replace(generation.labels[1], value=614454277, partner=614454277, target=614454277)
    protocol = LabelProtocol("mouse", "", (generation.labels[0], replace(huge, generation_class=1)))
    assert protocol.index_of(np.array([[[614454277, 0]]])).tolist() == [[[1, 0]]]
    with pytest.raises(LabelError, match=r"614454278 \(1 voxels\)"):
        protocol.index_of(np.array([[[614454278, 0]]]))


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        ([0, 999, 999, 2], r"scan\.nii\.gz: found label values .* synthseg-generation does not know: 999 \(2 voxels\)"),
        ([0, -3, 2, 1], r"-3 \(1 voxels\), 1 \(1 voxels\)"),
        ([0, 2**40, 2, 2], r"1099511627776 \(1 voxels\)"),
        ([0.0, 2.5, 2.0, 3.0], r"1 voxels that hold no whole number \(e\.g\. 2\.5\)"),
        ([0.0, np.nan, np.inf, 3.0], r"2 voxels that hold no whole number"),
        ([0j, 1j, 2, 3], r"values of type complex128"),
    ],
)
def test_unknown_values_are_named_with_their_voxel_counts(
    generation: LabelProtocol, voxels: list[float], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        generation.index_of(np.array(voxels).reshape(2, 2, 1), subject="scan.nii.gz")


def test_many_unknown_values_do_not_flood_the_message(generation: LabelProtocol) -> None:
    with pytest.raises(LabelError, match=r"and 88 more") as caught:
        generation.index_of(np.arange(1000, 1100).reshape(10, 10, 1))
    assert len(str(caught.value)) < 600


def test_changing_an_array_does_not_change_the_protocol(generation: LabelProtocol) -> None:
    generation.values[:] = 7
    generation.partner_index[:] = 0
    assert generation.values[1] == 14
    assert generation.partner_index[18] == 36


def test_merged_sides_lose_the_right_labels_only(generation: LabelProtocol) -> None:
    merged = generation.merge_sides()
    assert merged[41] == 2
    assert merged[2] == 2
    assert merged[163] == 136
    assert merged[511] == 511
    assert len(set(merged.values())) == 18 + 18


_names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1).filter(
    lambda name: not (name[0] == '"' == name[-1])
)


@st.composite
def protocols(draw: st.DrawFn) -> LabelProtocol:
    values = draw(st.lists(st.integers(1, 2**31 - 1), unique=True, max_size=9))
    names = draw(st.lists(_names, unique=True, min_size=len(values) + 1, max_size=len(values) + 1))
    pairs = draw(st.integers(0, len(values) // 2))
    lateral, neutral = values[: 2 * pairs], values[2 * pairs :]
    sides = {0: ("neutral", 0)} | {value: ("neutral", value) for value in neutral}
    for left, right in zip(lateral[::2], lateral[1::2], strict=True):
        sides |= {left: ("left", right), right: ("right", left)}
    small = st.integers(0, 2**31 - 1)
    color = st.tuples(*[st.integers(0, 255)] * 3)
    labels = [
        Label(value, names[i], *side, i, draw(small), value, i, draw(small), draw(color), draw(small))
        for i, (value, side) in enumerate(sides.items())
    ]
    return LabelProtocol("drawn", draw(st.sampled_from(["", "some words: and, signs # %"])), tuple(labels))


@given(protocols())
def test_tables_and_rows_read_back_unchanged(protocol: LabelProtocol) -> None:
    assert LabelProtocol.from_table(protocol.to_table(), "other") == protocol
    rows = json.loads(json.dumps(protocol.to_rows()))  # as a weights' card carries them
    assert LabelProtocol.from_rows(protocol.name, protocol.description, rows) == protocol


@pytest.mark.parametrize("name", builtin_protocols())
def test_builtin_files_are_what_to_table_writes(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    path = tmp_path / "copy.tsv"
    path.write_text(protocol.to_table(), encoding="utf-8")
    assert load_protocol(path) == protocol
    assert protocol.name == name
    assert protocol.description
    assert protocol.source


def test_a_table_saved_by_a_spreadsheet_reads_the_same(generation: LabelProtocol) -> None:
    lines = generation.to_table().splitlines()
    lines[1] = f'"{lines[1]}"\t\t\t'
    quoted = [line.replace("background", '"background"') + "\t\t" for line in lines]
    text = "\ufeff" + "\r\n".join(quoted) + "\r\n\t\t\t\r\n"
    assert LabelProtocol.from_table(text, "x").labels == generation.labels


def test_the_tissue_column_may_be_left_out() -> None:
    text = "\t".join(COLUMNS) + "\n0\tnothing\tNeutral\t0\t0\t0\t0\t0\t0\t0\t0\t0\n"
    protocol = LabelProtocol.from_table(text, "short")
    assert protocol.name == "short"
    assert protocol.labels[0].tissue == 0


# --- what a table must not do ----------------------------------------------------------------------------------------


def _write(tmp_path: Path, rows: list[str]) -> Path:
    path = tmp_path / "mine.tsv"
    header = "\t".join(COLUMNS)
    text = "\n".join(["# name: mine", header, *(row.replace(" ", "\t") for row in rows)])
    path.write_text(text + "\n", encoding="utf-8")
    return path


BACKGROUND = "0 air neutral 0 0 0 0 0 0 0 0 0"
LEFT = "2 lh left 41 1 1 2 1 0 1 1 1"
RIGHT = "41 rh right 2 2 1 41 2 0 1 1 1"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"a table without rows\. Fix: add at least the background"),
        ([LEFT, RIGHT], r"no row for value 0\. Fix: add the background"),
        ([LEFT, RIGHT, BACKGROUND], r"background 0 on line 5, not first\. Fix: move"),
        ([BACKGROUND.removesuffix(" 0")], r"line 3: 11 cells under 12 columns"),
        ([BACKGROUND.replace("neutral 0 0 0 0", "neutral 0 0 0 9")], r"side neutral and target 9"),
        ([BACKGROUND, LEFT, RIGHT, LEFT], r"line 6: value 2 again, already on line 4\. Fix: give every row its own"),
        ([BACKGROUND, LEFT, RIGHT.replace("rh", "lh")], r"line 5: name 'lh' again"),
        ([BACKGROUND, LEFT.replace("left", "port"), RIGHT], r"line 4: side 'port'\. Fix: write neutral, left or right"),
        ([BACKGROUND, LEFT], r"line 4: 2 \(lh, left\) has partner 41, which has no row\. Fix: add the partner"),
        ([BACKGROUND, LEFT, RIGHT.replace("right", "left")], r"has partner 41 \(rh\), whose side is left"),
        ([BACKGROUND, LEFT, RIGHT.replace("right 2", "neutral 41")], r"whose side is neutral"),
        ([BACKGROUND, LEFT, RIGHT.replace("right", "neutral")], r"line 4: .* whose side is neutral"),
        ([BACKGROUND, "7 x neutral 0 1 1 7 0 0 1 1 1"], r"7 \(x, neutral\) has partner 0\. Fix: .* write 7"),
        (
            [BACKGROUND, LEFT, RIGHT, "3 lc left 41 3 3 3 0 0 1 1 1"],
            r"3 \(lc, left\) has partner 41, whose own partner is 2\. Fix: .* write 3 as the partner of 41",
        ),
        ([BACKGROUND, LEFT.replace("41 1", "41 -1"), RIGHT], r"generation_class = -1, outside 0"),
        ([BACKGROUND, LEFT.replace("2 lh", "-2 lh"), RIGHT], r"line 4: value = -2, outside 0"),
        ([BACKGROUND, LEFT.replace("2 1 0", "4294967296 1 0"), RIGHT], r"target = 4294967296, outside 0"),
        ([BACKGROUND, LEFT.removesuffix("1") + "256", RIGHT], r"line 4: colour \(1, 1, 256\)"),
        ([BACKGROUND, LEFT.replace("left 41 1", "left 41 1.5"), RIGHT], r"generation_class = '1\.5', not a whole"),
        ([BACKGROUND, LEFT.replace("left 41 1", "left 41 "), RIGHT], r"line 4: generation_class is empty"),
        ([BACKGROUND, LEFT, RIGHT.replace("right 2 2", "right 2 5")], r"classes 0 to 5 with no label in 2, 3, 4\. Fix"),
        (
            [BACKGROUND, LEFT, RIGHT, "3 lc left 42 3 3 2 1 0 1 1 1", "42 rc right 3 4 3 42 2 0 1 1 1"],
            r"line 6: target 2 becomes 42 on the other side for 3, but 41 for 2 on line 4",
        ),
        (
            [BACKGROUND, LEFT, RIGHT, "3 lc left 42 3 3 3 1 0 1 1 1", "42 rc right 3 4 3 42 9 0 1 1 1"],
            r"topology 1 becomes 9 on the other side for 3, but 2 for 2",
        ),
    ],
)
def test_a_broken_table_is_refused_with_the_row_and_the_fix(tmp_path: Path, rows: list[str], message: str) -> None:
    path = _write(tmp_path, rows)
    with pytest.raises(LabelError, match=message) as caught:
        load_protocol(path)
    assert str(caught.value).startswith(str(path))


def test_a_header_without_all_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("value\tname\tside\n0\tair\tneutral\n", encoding="utf-8")
    with pytest.raises(LabelError, match=r"mine\.tsv: found line 1: a header without the columns partner, gen"):
        load_protocol(path)
    path.write_text(",".join(COLUMNS) + "\n0,air\n", encoding="utf-8")
    with pytest.raises(LabelError, match=r"Fix: separate the columns with tabs"):
        load_protocol(path)
    path.write_text("\t".join((*COLUMNS, "colour")) + "\n", encoding="utf-8")
    with pytest.raises(LabelError, match=r"unknown or repeated columns \(colour\)"):
        load_protocol(path)
    path.write_text("# name: empty\n\n", encoding="utf-8")
    with pytest.raises(LabelError, match=r"no header row\. Fix: start the table with: value name"):
        load_protocol(path)


def test_odd_encodings_are_refused_with_the_fix(tmp_path: Path, generation: LabelProtocol) -> None:
    path = tmp_path / "mine.tsv"
    path.write_bytes(generation.to_table().encode("utf-16"))
    with pytest.raises(LabelError, match=r"mine\.tsv: found .*UTF-16 text.* Fix: .*save the table as UTF-8"):
        load_protocol(path)
    path.write_bytes(generation.to_table().replace("artery", "Gef\u00e4\u00df").encode("latin-1"))
    with pytest.raises(LabelError, match="not UTF-8"):
        load_protocol(path)
    path.write_bytes(generation.to_table().encode("utf-16-le"))
    with pytest.raises(LabelError, match="zero bytes in the text, as binary files and UTF-16 have them"):
        load_protocol(path)


def test_an_unknown_protocol_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"'synthseg-3\.0': found no built-in"):
        load_protocol("synthseg-3.0")
    with pytest.raises(LabelError, match=r"no built-in protocol of that name\. Fix: use one of synthseg-generation,"):
        load_protocol("desikan")
    with pytest.raises(LabelError, match=r"gone\.tsv: found no such file\. Fix: check the path"):
        load_protocol(tmp_path / "gone.tsv")
    with pytest.raises(LabelError, match=r"no readable file"):
        load_protocol(tmp_path)


def test_rows_of_a_card_are_checked(generation: LabelProtocol) -> None:
    rows = generation.to_rows()
    with pytest.raises(LabelError, match=r"card: found row 1: missing \['side'\]"):
        LabelProtocol.from_rows("card", "", [{k: v for k, v in row.items() if k != "side"} for row in rows])
    with pytest.raises(LabelError, match=r"unknown \['hue'\]"):
        LabelProtocol.from_rows("card", "", [{**row, "hue": 1} for row in rows])
    with pytest.raises(LabelError, match=r"row 2: value = '14', not a whole number"):
        LabelProtocol.from_rows("card", "", [rows[0], {**rows[1], "value": "14"}])
    with pytest.raises(LabelError, match=r"row 2: colour 3"):
        LabelProtocol.from_rows("card", "", [rows[0], {**rows[1], "color": 3}])
    with pytest.raises(LabelError, match=r"the name 'two\\nlines'"):
        LabelProtocol.from_rows("card", "", [{**rows[0], "name": "two\nlines"}])
    with pytest.raises(LabelError, match=r"found no label with value 1000"):
        generation.by_value(1000)
