"""What ``synthseg labels inspect`` measures and proposes, on heads whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthseg.errors import LabelError, UsageError
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.labels.freesurfer import side_and_partner
from synthseg.labels.inspect import LabelMap, inspect_folder, inspect_maps
from synthseg.labels.pairing import Shapes, guess_pairs

SHAPE = (40, 44, 36)
# Structures of the right half: (name, centre relative to the middle in voxels, radius); the left half mirrors them.
STRUCTURES = {"big": ((11, -6, 2), 5), "small": ((8, 9, 6), 3), "low": ((6, 3, -10), 4)}
MIDDLE = {"stem": ((0, 0, -4), 3)}


def _ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    grid = np.indices(SHAPE).astype(float)
    middle = (np.array(SHAPE) - 1) / 2
    distance = sum((grid[i] - middle[i] - centre[i]) ** 2 for i in range(3))
    return np.asarray(distance <= radius**2)


def _head(values: dict[str, int], *, shift: int = 0, tilt: float = 0.0) -> np.ndarray:
    """A head in RAS voxels: index 0 grows to the right."""
    label_map = np.zeros(SHAPE, dtype=np.int32)
    for name, (centre, radius) in {**STRUCTURES, **MIDDLE}.items():
        for side in ("left", "right") if name in STRUCTURES else ("middle",):
            x, y, z = centre
            x = -x if side == "left" else x
            turned = (x * np.cos(tilt) - y * np.sin(tilt) + shift, x * np.sin(tilt) + y * np.cos(tilt), z)
            label_map[_ball(turned, radius)] = values[name if side == "middle" else f"{side} {name}"]
    return label_map


def _map(data: np.ndarray, *, spacing: float = 1.0, affine: np.ndarray | None = None) -> LabelMap:
    affine = np.diag([spacing, spacing, spacing, 1.0]) if affine is None else affine
    return LabelMap("head.nii.gz", data, np.linalg.norm(affine[:3, :3], axis=0), affine)


UNKNOWN = {
    "left big": 9001,
    "right big": 9007,
    "left small": 9003,
    "right small": 9002,
    "left low": 9005,
    "right low": 9004,
    "stem": 9006,
}


def _sides(protocol: LabelProtocol) -> dict[int, tuple[str, int]]:
    return {label.value: (label.side, label.partner) for label in protocol.labels}


def _truth(values: dict[str, int]) -> dict[int, tuple[str, int]]:
    truth = {0: ("neutral", 0), values["stem"]: ("neutral", values["stem"])}
    for name in STRUCTURES:
        left, right = values[f"left {name}"], values[f"right {name}"]
        truth |= {left: ("left", right), right: ("right", left)}
    return truth


@settings(max_examples=25)
@given(
    numbers=st.lists(st.integers(5000, 9999), unique=True, min_size=7, max_size=7),
    shift=st.integers(-3, 3),
    tilt=st.floats(-0.15, 0.15),
)
def test_unknown_values_are_paired_by_their_place(numbers: list[int], shift: int, tilt: float) -> None:
    values = dict(zip(UNKNOWN, numbers, strict=True))
    inspection = inspect_maps([_map(_head(values, shift=shift, tilt=tilt))])
    assert _sides(inspection.protocol) == _truth(values)


def test_the_affine_decides_what_is_left() -> None:
    # Stored as left-inferior-anterior, half-size voxels: the same head in another voxel order.
    stored = _head(UNKNOWN)[::-1].transpose(0, 2, 1)[:, ::-1]
    affine = np.zeros((4, 4))
    affine[:, 3] = [100, -20, 30, 1]
    affine[0, 0], affine[2, 1], affine[1, 2] = -0.5, -0.5, 0.5
    inspection = inspect_maps([_map(stored, affine=affine)])
    assert _sides(inspection.protocol) == _truth(UNKNOWN)


def test_freesurfer_values_are_known_by_number() -> None:
    values = {
        "left big": 2,
        "right big": 41,
        "left small": 10,
        "right small": 49,
        "left low": 136,
        "right low": 163,
        "stem": 16,
    }
    inspection = inspect_maps([_map(_head(values))])
    assert _sides(inspection.protocol) == _truth(values)
    assert inspection.protocol.by_value(49).name == "right thalamus"
    assert inspection.protocol.values.tolist() == [0, 16, 2, 10, 136, 41, 49, 163]
    assert inspection.protocol.contrast_classes.tolist() == [0, 13, 2, 6, 12, 2, 6, 12]  # the T1 prior's numbers
    assert inspection.notes == ()
    # Plexus merges into a ventricle that is not in these maps: it stays a target of its own.
    assert inspection.protocol.by_value(136).target == 136


def test_a_mirrored_header_is_noticed() -> None:
    values = {**UNKNOWN, "left big": 2, "right big": 41}
    inspection = inspect_maps([_map(_head(values)[::-1])])
    assert any("1 of 1 left labels lie to the right of their partners (2)" in note for note in inspection.notes)


def test_one_sided_numbers_are_not_mistaken_for_left_labels() -> None:
    label_map = np.zeros(SHAPE, dtype=np.int32)
    for value in range(7, 0, -1):
        label_map[_ball((0, 0, 0), 2 * value)] = value
    protocol = inspect_maps([_map(label_map)]).protocol
    assert set(protocol.sides) == {"neutral"}
    assert protocol.names[2] == "label 2"
    assert any("feta" in note for note in inspect_maps([_map(label_map)]).notes)


def test_a_missing_partner_gets_a_row() -> None:
    values = {**UNKNOWN, "left big": 2, "right big": 41, "stem": 25}
    inspection = inspect_maps([_map(_head(values))])
    assert inspection.protocol.by_value(57).partner == 25
    assert inspection.protocol.by_value(57).target == 41
    row = inspection.protocol.names.index("right lesion")
    assert inspection.facts[row].maps == 0
    assert any("57 occurs in no map" in note for note in inspection.notes)


def test_volumes_are_counted_over_the_maps_that_hold_a_value() -> None:
    one, two = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.float32)
    one[0, :2, 0], one[1, :3, 0] = 3, 9
    two[2, :4, 0] = 3
    inspection = inspect_maps([_map(one, spacing=2.0), _map(two, spacing=1.0)])
    facts = {facts.value: facts for facts in inspection.facts}
    assert facts[3].voxels == (2, 4)
    assert facts[3].volumes_ml == pytest.approx((0.016, 0.004))
    assert (facts[3].min_ml, facts[3].mean_ml, facts[3].max_ml) == pytest.approx((0.004, 0.010, 0.016))
    assert facts[9].maps == 1
    assert facts[9].mean_ml == pytest.approx(0.024)
    assert facts[0].voxels == (115, 116)


def test_the_proposed_table_loads_and_keeps_what_was_proposed(tmp_path: Path) -> None:
    inspection = inspect_maps([_map(_head(UNKNOWN))], name="sheep")
    path = tmp_path / "sheep.tsv"
    path.write_text(inspection.to_table(), encoding="utf-8")
    protocol = load_protocol(path)
    assert protocol == inspection.protocol
    assert protocol.name == "sheep"
    assert (protocol.values[protocol.index_of(_head(UNKNOWN))] == _head(UNKNOWN)).all()
    facts = next(facts for facts in inspection.facts if facts.value == 9001)
    assert f"# 9001 - {facts.mean_ml:.3f} ml" in path.read_text(encoding="utf-8")
    assert protocol.generation_classes.tolist() == list(range(8))
    assert protocol.contrast_classes[protocol.partner_index].tolist() == protocol.contrast_classes.tolist()


def test_a_map_without_background_gets_one() -> None:
    inspection = inspect_maps([_map(np.full((3, 3, 3), 5))])
    assert inspection.protocol.values.tolist() == [0, 5]
    assert any("No map holds the value 0" in note for note in inspection.notes)


def test_an_empty_map_is_background_only() -> None:
    inspection = inspect_maps([_map(np.zeros((3, 3, 3)))])
    assert inspection.protocol.values.tolist() == [0]
    assert inspection.facts[0].voxels == (27,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((2, 2, 2), -4), r"head\.nii\.gz: found 8 voxels with negative values \(lowest -4\)"),
        (np.full((2, 2, 2), 0.5), r"8 voxels that hold no whole number"),
        (np.arange(8000).reshape(20, 20, 20), r"7999 different values\. Fix: .* looks like an image"),
        (np.zeros((2, 2)), r"an array of shape \(2, 2\)"),
    ],
)
def test_a_volume_that_is_no_label_map_is_refused(data: np.ndarray, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        inspect_maps([_map(data)])


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("b.vol", "a.vol", "notes.txt"):
        (tmp_path / name).touch()
    read: list[str] = []

    def reader(path: Path) -> LabelMap:
        read.append(path.name)
        return _map(_head(UNKNOWN))._replace(name=path.name)

    inspection = inspect_folder(tmp_path, read=reader, accepts=lambda path: path.suffix == ".vol")
    assert read == ["a.vol", "b.vol"]
    assert inspection.maps == ("a.vol", "b.vol")
    assert inspect_folder(tmp_path / "b.vol", read=reader, accepts=lambda _: True).maps == ("b.vol",)
    with pytest.raises(UsageError, match=r"3 entries but no volume"):
        inspect_folder(tmp_path, read=reader, accepts=lambda _: False)
    with pytest.raises(UsageError, match=r"gone: found no such file or folder"):
        inspect_folder(tmp_path / "gone", read=reader, accepts=lambda _: True)


def test_no_map_at_all_is_refused() -> None:
    with pytest.raises(LabelError, match="no label map"):
        inspect_maps([])


def test_labels_of_very_different_size_are_not_paired() -> None:
    positions = np.array([[-20.0, 0, 0], [20.0, 0, 0]])
    spreads = np.full((2, 3), 4.0)
    assert guess_pairs(Shapes(positions, spreads, np.array([1.0, 1.2]), 50.0)) == [(0, 1)]
    assert guess_pairs(Shapes(positions, spreads, np.array([1.0, 5.0]), 50.0)) == []
    # A label as wide as the head is on both sides, however its centre lies.
    assert guess_pairs(Shapes(positions, 12 * spreads, np.array([1.0, 1.2]), 50.0)) == []


def test_freesurfer_partners_agree_with_the_builtin_tables() -> None:
    for name in ("synthseg-generation", "desikan-killiany"):
        for label in load_protocol(name).labels:
            assert side_and_partner(label.value) == (label.side, label.partner)
    for value in range(20200):  # every partner's partner is the value itself, on the other side
        if known := side_and_partner(value):
            other = side_and_partner(known[1])
            assert other is not None
            assert other[1] == value
            assert {known[0], other[0]} in ({"left", "right"}, {"neutral"})


def test_a_real_head_is_paired_even_when_its_values_are_scrambled(shared: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(shared / "data/training/brain/training_seg_02.nii.gz")
    data = np.asarray(image.dataobj)[::2, ::2, ::2].astype(np.int32)
    affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    generation = load_protocol("synthseg-generation")
    known = inspect_maps([_map(data, affine=affine)]).protocol
    expected = [label for label in generation.labels if label.value != 72]  # absent from this map
    for label in expected:
        proposed = known.by_value(label.value)
        assert (proposed.side, proposed.partner, proposed.target) == (label.side, label.partner, label.target)
        assert (proposed.contrast_class, proposed.topology) == (label.contrast_class, label.topology)
    # Now hide the numbering: only the place can tell.
    scrambled = np.zeros(600, dtype=np.int64)
    scrambled[generation.values[1:]] = 5000 + np.random.default_rng(0).permutation(53)
    guessed = _sides(inspect_maps([_map(scrambled[data], affine=affine)]).protocol)
    wrong = [
        label.name
        for label in expected
        if guessed[int(scrambled[label.value])] != (label.side, int(scrambled[label.partner]))
    ]
    assert wrong == []
