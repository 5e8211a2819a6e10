"""What the sampler measures of a label map: against the reference's numbers, closed forms, and itself turned around."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthseg.anatomies.features import feature_names, feature_vector, measure, mesh_area
from synthseg.anatomies.groups import ShapeGroup, shape_groups
from synthseg.anatomies.settings import FeatureSettings
from synthseg.anatomies.sources import measure_all, sources_of
from synthseg.errors import ConfigError, LabelError, UsageError
from synthseg.generation.bank import LabelBank
from synthseg.generation.pack import pack_files
from synthseg.labels import load_protocol
from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol

FETA = load_protocol("feta")
INNER = shape_groups(FETA, "2,3,4,5,6,7")
PLAIN = FeatureSettings()
TWO = (ShapeGroup("one", (1,)), ShapeGroup("two", (2, 3)))
# Reference A.4.5: three public atlas maps in voxel units, 21 columns each.
PUBLISHED = {
    21: "440071.0 55222.85 .1254862 .3333985 .4687085 .0544071 .0274751 .0747652 .0412456 .4870551 .3226494 .0659371"
    " .0252773 .0627850 .0362961 .5704253 .2687895 .4732149 .3592318 .3278995 .3436109",
    30: "1492360 144187.3 .0966170 .3419691 .4958093 .0322603 .0410049 .0603266 .0286298 .5244333 .3264974 .0471424"
    " .0286480 .0461417 .0271371 .4556264 .1956458 .4341590 .2075700 .2272428 .2816116",
    38: "2602439 229176.6 .0880622 .4211684 .4180148 .0192854 .0567529 .0594585 .0253201 .5345467 .3559142 .0282147"
    " .0283767 .0324083 .0205395 .4156171 .2788157 .4790828 .1637333 .1784867 .2656364",
}


def blobs(seed: int, shape: tuple[int, int, int] = (9, 10, 11)) -> np.ndarray:
    """Values 0 to 3 in clumps, background around."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, [math.ceil(n / 2) for n in shape])
    labels = np.kron(coarse, np.ones((2, 2, 2), dtype=int))[tuple(slice(n) for n in shape)]
    return np.pad(labels, 1)


@pytest.mark.parametrize("week", PUBLISHED)
def test_the_published_feature_vectors_come_out(shared: Path, week: int) -> None:
    image = nib.load(shared / f"data/training/fetal_noncommercial/crl_sta{week}_feta.nii.gz")
    found = measure(np.asarray(image.dataobj), image.header.get_zooms(), INNER, units="voxel", closed=False)
    expected = np.array(PUBLISHED[week].split(), dtype=float)
    vector = feature_vector(found)
    assert vector.shape == (21,)
    assert found.volume == expected[0]
    np.testing.assert_allclose(vector[3:9], expected[3:9], atol=6e-8)  # volumes are exact; seven digits are printed
    np.testing.assert_allclose(vector, expected, rtol=1e-4)


def test_meshes_of_a_cube_and_a_ball_have_the_published_areas() -> None:
    cube = np.pad(np.ones((10, 10, 10), dtype=bool), 3)
    assert mesh_area(cube, (1, 1, 1), closed=False) == pytest.approx(564.0996, rel=1e-4)
    grid = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"))
    ball = (grid**2).sum(axis=0) <= 100
    assert ball.sum() == 4169
    assert mesh_area(ball, (1, 1, 1), closed=False) == pytest.approx(1372.042, rel=1e-4)


@settings(max_examples=20)
@given(spacing=st.tuples(*[st.floats(0.3, 3.0)] * 3))
def test_a_box_in_millimetres_has_a_boxs_area_but_for_its_edges(spacing: tuple[float, float, float]) -> None:
    # The mesh lies on the faces, which its half-voxel bevels only touch: large boxes come close to their six faces.
    sides = np.array([12, 14, 16])
    box = np.pad(np.ones(sides, dtype=bool), 1)
    a, b, c = sides * spacing
    p, q, r = (sides - 1) * np.array(spacing)
    area = mesh_area(box, spacing, closed=True)
    flat = 2 * (p * q + q * r + p * r)  # what is at least left of the faces
    assert flat < area < 2 * (a * b + b * c + a * c)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), axes=st.permutations(range(3)), mirror=st.tuples(*[st.booleans()] * 3))
def test_turning_a_map_changes_nothing(seed: int, axes: list[int], mirror: tuple[bool, bool, bool]) -> None:
    labels, spacing = blobs(seed), np.array([0.7, 1.0, 1.9])
    turned = np.flip(labels.transpose(axes), [axis for axis in range(3) if mirror[axis]])
    before = measure(labels, spacing, TWO)
    after = measure(turned, spacing[axes], TWO)
    assert after.volumes == pytest.approx(before.volumes)
    # Where diagonal voxels touch, how the mesh joins them depends on the direction: a few triangles of hundreds.
    np.testing.assert_allclose([*after.areas, after.area], [*before.areas, before.area], rtol=0.03)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), factor=st.floats(0.2, 4.0))
def test_millimetres_scale_as_volumes_and_areas_do(seed: int, factor: float) -> None:
    labels = blobs(seed)
    one, other = (measure(labels, [size, size * 1.5, size], TWO) for size in (1.0, factor))
    np.testing.assert_allclose(other.volumes, np.array(one.volumes) * factor**3)
    np.testing.assert_allclose(other.areas, np.array(one.areas) * factor**2, rtol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_empty_space_around_a_map_changes_nothing(seed: int) -> None:
    labels = blobs(seed)
    wide = np.pad(labels, ((0, 3), (2, 0), (1, 4)))
    for closed in (False, True):
        assert measure(wide, (1, 2, 1), TWO, closed=closed) == measure(labels, (1, 2, 1), TWO, closed=closed)


def test_the_columns_are_the_references_in_its_order() -> None:
    labels = blobs(3)
    found = measure(labels, (1, 1, 1), TWO, units="voxel")
    volumes, areas = np.array(found.volumes), np.array(found.areas)
    assert volumes.tolist() == [(labels == 1).sum(), np.isin(labels, (2, 3)).sum()]
    expected = [found.volume, found.area, found.area / found.volume]
    expected += [*(volumes / volumes.sum()), *(areas / areas.sum()), *(areas / volumes)]
    np.testing.assert_allclose(feature_vector(found), expected)
    assert feature_names(TWO)[3:] == (
        *("volume share: one", "volume share: two", "area share: one", "area share: two"),
        *("area per volume: one", "area per volume: two"),
    )
    assert found.volume == volumes.sum()
    assert found.area < areas.sum()  # borders between shapes are no surface of the whole


def test_a_shape_cut_off_by_the_border_is_open_in_the_reference_and_closed_here() -> None:
    cube = np.zeros((10, 14, 14), dtype=int)
    cube[:, 2:12, 2:12] = 1  # from border to border along x
    labels = np.where(cube, 1, 0)
    one = (ShapeGroup("one", (1,)),)
    whole = measure(np.pad(labels, 1), (1, 1, 1), one)
    closed, opened = (measure(labels, (1, 1, 1), one, closed=closed) for closed in (True, False))
    assert closed.area == pytest.approx(whole.area)
    assert opened.area == pytest.approx(4 * 9 * 9 + 4 * 9 * math.sqrt(0.5), rel=1e-5)  # four sides, their bevels
    assert whole.border == 0
    assert closed.border == pytest.approx(200 / closed.area)


def test_an_absent_shape_has_no_share_and_no_ratio() -> None:
    labels = np.where(blobs(1) == 1, 1, 0)
    found = measure(labels, (1, 1, 1), TWO)
    assert found.absent == (False, True)
    vector = feature_vector(found)
    assert vector[[3, 4, 5, 6]].tolist() == [1, 0, 1, 0]
    assert np.isnan(vector[8])
    assert np.isfinite(np.delete(vector, 8)).all()
    with pytest.raises(LabelError, match=r"empty.nii.gz: found no voxel of any shape \(one, two\)"):
        measure(np.zeros((4, 4, 4), dtype=int), (1, 1, 1), TWO, subject="empty.nii.gz")


def test_files_and_their_bank_measure_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    turned = np.array([[0.0, -0.8, 0, 5], [0.9, 0, 0, 2], [0, 0, 1.1, 0], [0, 0, 0, 1]])  # not in RAS order
    for number in range(3):
        labels = np.pad(blobs(number) * 2, 3).astype(np.int16)
        nib.Nifti1Image(labels, turned).to_filename(folder / f"map-{number}.nii.gz")
    files = sorted(folder.iterdir())
    bank = pack_files(files, FETA)
    groups = shape_groups(FETA)
    for chosen in (PLAIN, FeatureSettings(units="voxel", closed=False)):
        one = measure_all(sources_of(files, FETA), groups, chosen)
        other = measure_all(sources_of(bank, FETA), groups, chosen)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(feature_vector(a), feature_vector(b), rtol=1e-6)


def test_a_cache_answers_for_equal_maps_and_for_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import synthseg.anatomies.sources as sources

    made: list[str] = []
    plain = sources.measure_shapes
    monkeypatch.setattr(sources, "measure_shapes", lambda *a, **k: made.append(k["subject"]) or plain(*a, **k))
    cache = tmp_path / "measures.json"

    def bank(*seeds: int, spacing: float = 1.0) -> LabelBank:
        maps = [blobs(seed) for seed in seeds]
        return LabelBank.from_maps(maps, [(spacing,) * 3] * len(maps), [f"m{seed}" for seed in seeds], FETA)

    def run(maps: LabelBank, chosen: FeatureSettings = PLAIN) -> object:
        return measure_all(sources_of(maps, FETA), shape_groups(FETA, chosen.labels), chosen, cache=cache)

    first = run(bank(1, 2))
    assert made == ["m1", "m2"]
    assert run(bank(1, 2)) == first
    run(bank(2, 3))
    assert made == ["m1", "m2", "m3"]
    run(bank(1, spacing=0.8))  # the same voxels of another size
    run(bank(1), FeatureSettings(closed=False))
    run(bank(1), FeatureSettings(labels="1,2"))
    assert made[3:] == ["m1", "m1", "m1"]
    cache.write_text('{"damaged":', encoding="utf-8")
    assert run(bank(1, 2)) == first


def test_structures_join_sides_and_what_becomes_them() -> None:
    adult = load_protocol("synthseg-generation")
    groups = {group.name: group.values for group in shape_groups(adult)}
    assert groups["lateral ventricle"] == (4, 136, 43, 163)  # with its choroid plexus
    assert groups["cerebral white matter"] == (2, 25, 41, 57)  # with its lesions
    assert "skin" not in groups
    assert sum(map(len, groups.values())) == sum(label.target > 0 for label in adult.labels)
    tissues = {group.name: group.values for group in shape_groups(adult, "tissues")}
    assert set(tissues) == {"white matter and nuclei", "grey matter", "fluid", "cerebellum"}
    assert 4 in tissues["fluid"]
    assert [group.values for group in shape_groups(FETA)] == [(n,) for n in range(1, 8)]


def test_shapes_can_be_listed_and_named() -> None:
    groups = shape_groups(load_protocol("synthseg-generation"), "cortex=3+42, 4+43")
    assert groups == (
        ShapeGroup("cortex", (3, 42)),
        ShapeGroup("left lateral ventricle + right lateral ventricle", (4, 43)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2,9", r"found 9, which is no structure of feta"),
        ("2,0", r"found 0, which is no structure"),
        ("cortex", r"found 'cortex'"),
        ("a=2,b=2+3", r"found 2 twice"),
        ("a=2,a=3", r"found a twice"),
        ("", r"found ''"),
    ],
)
def test_shapes_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_groups(FETA, text)


def test_a_protocol_without_targets_has_no_shapes() -> None:
    only = LabelProtocol("air", "", (Label(0, "background", "neutral", 0, 0, 0, 0, 0, 0, (0, 0, 0)),))
    with pytest.raises(ConfigError, match="no such shape in the protocol air"):
        shape_groups(only)


def test_two_maps_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"m.nii.gz: found two label maps of this name"):
        sources_of([tmp_path / "a" / "m.nii.gz", tmp_path / "b" / "m.nii.gz"], FETA)
    found = sources_of([tmp_path / "x" / "maps" / "1.nii.gz", tmp_path / "y" / "maps" / "2.nii.gz"], FETA)
    assert [source.dataset for source in found] == ["x/maps", "y/maps"]


def test_a_reference_measurement_refuses_a_missing_tissue() -> None:
    maps = LabelBank.from_maps([np.where(blobs(1) == 3, 0, blobs(1))], [(1, 1, 1)], ["scan.nii.gz"], FETA)
    groups = shape_groups(FETA, "1,2,3")
    with pytest.raises(LabelError, match=r"scan.nii.gz: found no white matter"):
        measure_all(sources_of(maps, FETA), groups, FeatureSettings(absent="refuse"))
    assert measure_all(sources_of(maps, FETA), groups, FeatureSettings())[0].absent == (False, False, True)
