"""Tables of cortical parcels, and the recipe that cuts the cortex of brain maps into them."""

from __future__ import annotations

import importlib
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from synthseg.errors import LabelError, ShapeError, UsageError
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.volumes import Volume, read_volume, write_volume

PROTOCOLS = Path(str(resources.files("synthseg.labels"))) / "protocols"
RECIPE = Path(__file__).parents[1] / "recipes" / "parcels"
SPACING = np.array([1.0, 1.5, 2.0])


def recipe(name: str) -> ModuleType:
    """A module of the recipe's folder, which is run from there and is no package."""
    sys.path.insert(0, str(RECIPE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPE))


def table(name: str) -> LabelProtocol:
    return load_protocol(PROTOCOLS / f"{name}.tsv")


# --- the tables ----------------------------------------------------------------------------------------------------


def test_the_freesurfer_table_trains_the_same_targets_as_our_own_maps() -> None:
    ours, theirs = load_protocol("synthseg-generation-dk"), table("freesurfer-dk")
    assert theirs.target_values.tolist() == ours.target_values.tolist()
    shared_values = set(ours.values.tolist()) & set(theirs.values.tolist())
    assert len(shared_values) == 33 + 68 + 6  # the structures, the parcels; 72, 85 and a side's 25 and 30 beside them
    for value in shared_values:
        here, there = theirs.by_value(value), ours.by_value(value)
        assert (here.name, here.side, here.partner, here.target, here.tissue, here.quality, here.topology) == (
            *(there.name, there.side, there.partner, there.target, there.tissue, there.quality, there.topology),
        )


def test_the_freesurfer_table_knows_every_value_of_an_aparc_aseg() -> None:
    regions = [n for n in range(36) if n != 4]
    values = [0, 14, 15, 16, 24, 72, 77, 80, 85, *range(251, 256), *(1000 + n for n in regions)]
    values += [2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 26, 28, 30, 31, 41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54]
    values += [58, 60, 62, 63, *(2000 + n for n in regions)]
    protocol = table("freesurfer-dk")
    assert (protocol.values[protocol.index_of(np.array(values))] == values).all()


def test_cortex_without_a_parcel_stays_cortex_and_choroid_plexus_is_ventricle() -> None:
    protocol = table("freesurfer-dk")
    wanted = {1000: 3, 2000: 42, 1004: 3, 2004: 42, 3: 3, 42: 42, 31: 4, 63: 43, 78: 2, 79: 41, 77: 0, 253: 0}
    assert {value: protocol.by_value(value).target for value in wanted} == wanted


def test_a_hemispheres_parcels_share_the_brightness_of_its_cortex() -> None:
    protocol = table("freesurfer-dk")
    for side, cortex in (("left", 3), ("right", 42)):
        classes = {lab.generation_class for lab in protocol.labels if lab.value >= 1000 and lab.side == side}
        assert classes == {protocol.by_value(cortex).generation_class}


def test_dkt_is_desikan_killiany_without_three_regions_a_side() -> None:
    ours, theirs = load_protocol("desikan-killiany"), table("dkt")
    left_out = sorted({*ours.values.tolist()} - {*theirs.values.tolist()})
    assert left_out == [1001, 1032, 1033, 2001, 2032, 2033]
    assert theirs.sides.count("left") == theirs.sides.count("right") == 31
    assert all(theirs.by_value(value).name == ours.by_value(value).name for value in theirs.values.tolist())


def test_a_real_aparc_aseg_is_known_to_the_table(shared: Path) -> None:
    path = shared / "data" / "training" / "parcellation" / "mni152_nlin6_aparc+aseg.nii.gz"
    labels = np.unique(read_volume(path, labels=True).data)
    assert len(labels) > 100
    assert len(table("freesurfer-dk").index_of(labels)) == len(labels)


# --- merging -------------------------------------------------------------------------------------------------------


def two_hemispheres(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A brain map with two slabs of cortex around white matter, and parcels on part of each."""
    rng = np.random.default_rng(seed)
    brain = np.zeros((10, 7, 6), dtype=np.int32)
    brain[1:4, 1:6, 1:5], brain[6:9, 1:6, 1:5] = 42, 3
    brain[2, 2:5, 2:4], brain[7, 2:5, 2:4] = 41, 2
    parcels = np.zeros_like(brain)
    for cortex, base in ((3, 1000), (42, 2000)):
        mask = brain == cortex
        parcels[mask] = np.where(rng.random(mask.sum()) < 0.6, base + rng.choice([2, 7, 35], mask.sum()), 0)
        parcels[tuple(np.argwhere(mask)[0])] = base + 7  # at least one
    parcels[0, 0, 0] = 1024  # outside of any cortex: counts for nothing
    return brain, parcels


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_every_cortex_voxel_takes_the_nearest_parcel_of_its_own_side(seed: int) -> None:
    brain, parcels = two_hemispheres(seed)
    merged = recipe("merge").merge(brain, parcels, SPACING, subject="p.nii.gz")
    cortex = np.isin(brain, (3, 42))
    np.testing.assert_array_equal(merged.labels[~cortex], brain[~cortex])
    kept = cortex & (parcels > 0)
    np.testing.assert_array_equal(merged.labels[kept], parcels[kept])
    assert merged.filled == int((cortex & (parcels == 0)).sum())
    assert merged.wrong_side == 0
    for value, base in ((3, 1000), (42, 2000)):
        mask = brain == value
        known = np.argwhere(mask & (parcels > 0))
        empty = np.argwhere(mask & (parcels == 0))
        if len(empty) == 0:
            continue
        given_to = merged.labels[tuple(empty.T)]
        assert ((given_to > base) & (given_to < base + 36)).all()
        distances = cdist(empty * SPACING, known * SPACING)
        same = parcels[tuple(known.T)][None] == given_to[:, None]  # ties: any of the nearest will do
        np.testing.assert_allclose(np.where(same, distances, np.inf).min(1), distances.min(1))


def test_a_stray_voxel_of_the_other_hemisphere_is_mended() -> None:
    brain, parcels = two_hemispheres(1)
    parcels[6, 1, 1] = 2007
    merged = recipe("merge").merge(brain, parcels, SPACING, subject="p.nii.gz")
    assert merged.wrong_side == 1
    assert 1000 < merged.labels[6, 1, 1] < 1036


def test_maps_that_do_not_belong_together_are_refused() -> None:
    merge = recipe("merge").merge
    brain, parcels = two_hemispheres(2)
    swapped = np.where(parcels > 2000, parcels - 1000, np.where(parcels > 1000, parcels + 1000, 0))
    for error, args, told in (
        (ShapeError, (brain[:-1], parcels), "shape"),
        (LabelError, (brain, swapped), "other hemisphere"),
        (LabelError, (brain, np.zeros_like(parcels)), "no parcel on the left cortex"),
        (LabelError, (np.where(brain == 42, 41, brain), parcels), "no right cortex"),
    ):
        with pytest.raises(error, match=rf"p\.nii\.gz.*{told}"):
            merge(*args, SPACING, subject="p.nii.gz")


def test_the_command_merges_folders_and_keeps_names_and_grids(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    for name, seed in (("a", 3), ("b", 4)):
        brain, parcels = two_hemispheres(seed)
        write_volume(Volume(brain, affine), tmp_path / "brain" / f"{name}.nii.gz")
        write_volume(Volume(parcels, affine), tmp_path / "parcels" / f"{name}_dk.nii.gz")
    arguments = [str(tmp_path / "brain"), str(tmp_path / "parcels"), "-o", str(tmp_path / "out")]
    assert recipe("merge").main(arguments) == 0
    merged = read_volume(tmp_path / "out" / "b.nii.gz", labels=True)
    np.testing.assert_allclose(merged.affine, affine)
    assert set(np.unique(merged.data)) <= {0, 2, 41, 1002, 1007, 1035, 2002, 2007, 2035}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.nii.gz"]

    write_volume(Volume(two_hemispheres(3)[1], np.eye(4)), tmp_path / "parcels" / "a_dk.nii.gz")
    assert recipe("merge").main([*arguments[:3], str(tmp_path / "other")]) == 1
    assert "another affine" in capsys.readouterr().err
    (tmp_path / "parcels" / "a_dk.nii.gz").unlink()
    assert recipe("merge").main(arguments) == 2
    assert "a.nii.gz" in capsys.readouterr().err


# --- votes of several atlases --------------------------------------------------------------------------------------


def shell_map(folder: Path, *, white_matter: bool) -> Path:
    """Two boxes of cortex, each cut into three parcels from back to front, around deep grey and white matter."""
    data = np.zeros((44, 40, 30), dtype=np.int32)
    for base, start in ((2000, 4), (1000, 24)):
        box = np.zeros(data.shape, dtype=bool)
        box[start : start + 16, 4:36, 4:26] = True
        inner = ndimage.binary_erosion(box, iterations=3)
        y = np.broadcast_to(np.arange(40)[None, :, None], data.shape)
        cortex = box & ~inner
        data[cortex] = base + np.select([y[cortex] < 14, y[cortex] < 26], [11, 22], 28)
        data[inner] = (2 if base == 1000 else 41) if white_matter else 0
        data[start + 6 : start + 10, 18:22, 13:17] = 10 if base == 1000 else 49
    path = folder / f"shell{int(white_matter)}.nii.gz"
    return write_volume(Volume(data, np.diag([-1.0, 1.0, 1.0, 1.0])), path)  # first axis to the left: 1000s are left


def test_the_inside_of_a_ribbon_is_found_where_the_map_does_not_hold_it(tmp_path: Path) -> None:
    maps = recipe("maps")
    full, ribbon = (maps.read_cerebrum(shell_map(tmp_path, white_matter=given)) for given in (True, False))
    np.testing.assert_array_equal(ribbon.tissue, full.tissue)
    assert (full.tissue == maps.WITHIN).sum() > 1000


def test_an_atlas_read_off_at_its_own_cortex_gives_its_own_parcels(tmp_path: Path) -> None:
    maps, fuse = recipe("maps"), recipe("fuse")
    atlas = maps.read_cerebrum(shell_map(tmp_path, white_matter=True))
    points = {side: fuse.cortex_points(atlas, side, None, fuse.POINTS) for side in ("left", "right")}
    found = fuse.label_cortex(atlas, None, [fuse.Vote(side, [one, one]) for side, one in points.items()])
    cortex = atlas.parcels > 0
    assert ((found > 0) == cortex).all()
    assert ((found // 1000) == (atlas.parcels // 1000)).all()
    assert (found == atlas.parcels)[cortex].mean() > 0.95
    whole = read_volume(tmp_path / "shell1.nii.gz", labels=True).data
    np.testing.assert_array_equal(np.where(whole > 1000, whole, 0), atlas.on_file_grid(atlas.parcels).data)


def test_directions_point_out_of_the_white_matter_and_turn_with_the_registration(tmp_path: Path) -> None:
    maps, fuse, register = recipe("maps"), recipe("fuse"), recipe("register")
    atlas = maps.read_cerebrum(shell_map(tmp_path, white_matter=True))
    voxels = fuse.cortex_voxels(atlas, "left")
    low, high = voxels.min(0), voxels.max(0)
    top = voxels[(voxels[:, 2] == high[2]) & (abs(voxels - (low + high) / 2)[:, :2] < 3).all(1)]
    outwards = fuse.places(atlas, top, None)[:, 3:] / fuse.DIRECTION_MM
    np.testing.assert_allclose(outwards, np.tile([0.0, 0.0, 1.0], (len(top), 1)), atol=0.05)
    turned = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0]])  # up becomes backwards
    link = register.Correspondence(turned, np.zeros((2, 2, 2, 3), np.float32), np.full(3, -40.0), np.full(3, 80.0))
    moved = fuse.places(atlas, top, link)
    np.testing.assert_allclose(moved[:, 3:] / fuse.DIRECTION_MM, np.tile([0.0, -1, 0], (len(top), 1)), atol=0.05)
    here = atlas.origin_mm + top * atlas.spacing_mm
    np.testing.assert_allclose(moved[:, :3], here @ turned[:, :3].T, atol=1e-9)


def test_two_banks_of_a_sulcus_are_told_apart_by_the_way_they_face() -> None:
    fuse = recipe("fuse")
    rng = np.random.default_rng(0)

    def bank(parcel: int, y: float, facing: float) -> object:
        where = np.c_[rng.uniform(0, 30, (400, 1)), np.full((400, 1), y), rng.uniform(0, 30, (400, 1))]
        ways = np.tile([0.0, facing * fuse.DIRECTION_MM, 0.0], (400, 1))
        return fuse.CortexPoints(np.c_[where, ways], np.full(400, parcel))

    front, back = bank(1024, 1.0, -1.0), bank(1022, -1.0, 1.0)
    vote = fuse.Vote("left", [front, back])
    misplaced = front.places - [0, 2.0, 0, 0, 0, 0]  # registered a sulcus too far: it lies on the other bank now
    assert (vote(misplaced) == 1024).mean() > 0.95


def test_what_is_kept_of_an_atlas_is_used_for_these_two_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlases, register = recipe("atlases"), recipe("register")
    made: list[tuple[str, str]] = []

    def by_hand(brain: Any, template: Any) -> Any:
        made.append((brain.name, template.name))
        affine = np.c_[np.eye(3), [1.0, 0, 0]]
        return register.Correspondence(affine, np.zeros((2, 2, 2, 3), np.float32), np.full(3, -40.0), np.full(3, 80.0))

    monkeypatch.setattr(atlases, "register", by_hand)
    (tmp_path / "a").mkdir()
    template, atlas = shell_map(tmp_path, white_matter=True), shell_map(tmp_path / "a", white_matter=False)
    link = (atlas.name, template.name)
    _, first = atlases.read_atlases(template, [atlas], tmp_path / "work", 50)
    _, again = atlases.read_atlases(template, [atlas], tmp_path / "work", 50)
    assert made == [link]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.points["left"].places, other.points["left"].places)
    changed = read_volume(atlas, labels=True)
    write_volume(Volume(np.where(changed.data == 1028, 1024, changed.data), changed.affine), atlas)
    _, (_, later) = atlases.read_atlases(template, [atlas], tmp_path / "work", 50)
    assert made == [link, link]
    assert 1024 in later.points["left"].parcels
    assert 1024 not in first[1].points["left"].parcels
    changed = read_volume(template, labels=True)
    write_volume(Volume(np.where(changed.data == 10, 11, changed.data), changed.affine), template)
    atlases.read_atlases(template, [atlas], tmp_path / "work", 50)
    assert made == [link, link, link]


def test_two_files_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("one", "two", "maps"):
        (tmp_path / folder).mkdir()
    template = shell_map(tmp_path, white_matter=True)
    one, two = (shell_map(tmp_path / folder, white_matter=False) for folder in ("one", "two"))
    with pytest.raises(UsageError, match=r"two.shell0\.nii\.gz: found the name of another file, .*one.shell0\.nii\.gz"):
        recipe("atlases").read_atlases(template, [one, two], tmp_path / "work")
    shell_map(tmp_path / "maps", white_matter=False)
    arguments = [tmp_path / "maps", template, one, "-o", tmp_path / "out", "--work", tmp_path / "work"]
    assert recipe("propagate").main([str(argument) for argument in arguments]) == 2
    assert "shell0.nii.gz: found the name of another file" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"gone\.nii: found no such file"):
        recipe("atlases").read_atlases(template, [tmp_path / "gone.nii"], tmp_path / "work", 50)


def test_landmarks_recover_the_affine_that_moved_them() -> None:
    rng = np.random.default_rng(5)
    points = rng.normal(0, 30, (16, 3))
    affine = np.concatenate([np.eye(3) + rng.normal(0, 0.1, (3, 3)), rng.normal(0, 5, (3, 1))], axis=1)
    moved = points @ affine[:, :3].T + affine[:, 3]
    moved[3] = np.nan
    np.testing.assert_allclose(recipe("register").match_landmarks(points, moved), affine, atol=1e-9)


def test_islands_of_a_parcel_go_to_its_neighbour() -> None:
    labels = np.full((12, 5, 5), 1007, dtype=np.int16)
    labels[:6] = 1002
    labels[9, 2, 2] = 1002
    mended = recipe("fuse").without_islands(labels, np.ones(3))
    assert mended[9, 2, 2] == 1007
    np.testing.assert_array_equal(np.delete(mended.ravel(), 9 * 25 + 12), np.delete(labels.ravel(), 9 * 25 + 12))
