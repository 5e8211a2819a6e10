"""Sub-labels: the rows they add to a protocol, and what every split keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from conftest import shared_dir
from generation_helpers import PROTOCOL, blobby_map, seeded
from synthseg.errors import ConfigError, LabelError, ShapeError
from synthseg.generation.neighbours import majority
from synthseg.generation.sublabels import (
    SubLabels,
    SubLabelSpec,
    sublabel_protocol,
    sublabel_rows,
    sublabels_by_geometry,
    sublabels_from_image,
)
from synthseg.labels.protocol import LabelProtocol
from synthseg.volumes.distance import distance_inside

Command = Callable[..., tuple[int, str, str]]
SPEC = SubLabelSpec(protocol=PROTOCOL, least_voxels=20)
HEART = """# name: toy-heart
value\tname\tside\tpartner\tgeneration_class\tcontrast_class\ttarget\ttopology\tquality\tred\tgreen\tblue
0\tbackground\tneutral\t0\t0\t0\t0\t0\t0\t0\t0\t0
1\tmyocardium\tneutral\t1\t1\t1\t1\t0\t0\t200\t90\t70
2\tblood\tneutral\t2\t2\t2\t2\t0\t0\t220\t40\t40
"""


# --- rows ---


@given(
    foreground=st.integers(1, 4),
    background=st.integers(1, 12),
    keep=st.sets(st.sampled_from(PROTOCOL.values.tolist()), max_size=6),
)
@settings(max_examples=30)
def test_rows_join_their_protocol_without_clashes(foreground: int, background: int, keep: set[int]) -> None:
    spec = SubLabelSpec(protocol=PROTOCOL, foreground=foreground, background=(1, background), keep=tuple(keep))
    protocol = sublabel_protocol(spec)  # its own checks: values, names, partners, classes, targets of flips
    rows = sublabel_rows(spec)
    assert not {row.value for row in rows} & set(PROTOCOL.values.tolist()) | set(PROTOCOL.targets.tolist()) & {
        row.value for row in rows
    }
    for row in rows:
        parent = PROTOCOL.by_value(row.value % 1000)
        assert (row.target, row.side, row.contrast_class) == (parent.target, parent.side, parent.contrast_class)
        assert row.partner % 1000 == parent.partner
        assert parent.value not in keep
    assert sum(row.target == 0 and row.value % 1000 == 0 for row in rows) == (0 if 0 in keep else background - 1)
    assert np.array_equal(protocol.target_values, PROTOCOL.target_values)


def test_parts_have_gaussians_of_their_own_which_labels_share_as_before() -> None:
    protocol = sublabel_protocol(SPEC)
    column = {label.value: label.generation_class for label in protocol.labels}
    assert len(set(column.values())) == 48 + 47 + 9  # 48 Gaussians: a second each, the background nine more
    assert column[1017] == column[1018] != column[17] == column[18]  # hippocampus and amygdala share theirs


def test_a_bank_and_32_bits_must_hold_them() -> None:
    with pytest.raises(LabelError, match=r"found 275 labels"):
        sublabel_protocol(SubLabelSpec(protocol=PROTOCOL, foreground=5))
    huge = LabelProtocol.from_table(
        HEART.replace("\n2\tblood\tneutral\t2", "\n2000000000\tblood\tneutral\t2000000000"), "h"
    )
    with pytest.raises(LabelError, match="values up to"):
        sublabel_rows(SubLabelSpec(protocol=huge))


def test_specs_that_make_no_sense_are_refused() -> None:
    for wrong in ({"foreground": 0}, {"background": (5, 3)}, {"smooth": -1}, {"background_node_mm": 0.0}):
        with pytest.raises(ConfigError, match=f"sub-labels: {next(iter(wrong))}"):
            SubLabelSpec(protocol=PROTOCOL, **wrong)  # type: ignore[arg-type]
    with pytest.raises(LabelError, match="no label with value 999"):
        SubLabelSpec(protocol=PROTOCOL, keep=(999,))


# --- splitting ---


def split(
    way: str, labels: np.ndarray, seed: int, spec: SubLabelSpec = SPEC, background: int | None = None
) -> SubLabels:
    if way == "geometry":
        return sublabels_by_geometry(labels, spec, rng=seeded(seed), background=background, spacing_mm=(1, 2, 1.5))
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(100, 60, labels.shape), 1.5) + labels % 7
    return sublabels_from_image(labels, image, spec, rng=seeded(seed), background=background)


@pytest.mark.parametrize("way", ["image", "geometry"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=3)
def test_whatever_the_split_the_targets_stay(way: str, seed: int) -> None:
    labels = blobby_map((18, 20, 22), seed)
    before = labels.copy()
    found = split(way, labels, seed)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(found.labels % 1000, labels)
    protocol = sublabel_protocol(SPEC)
    index = protocol.index_of(found.labels)
    np.testing.assert_array_equal(protocol.targets[index], PROTOCOL.targets[PROTOCOL.index_of(labels)])
    assert found.rows == sublabel_rows(SPEC)
    assert 3 <= found.background <= 10
    parts = np.unique(found.labels[labels == 0] // 1000)
    assert 1 < len(parts) <= found.background
    assert parts.max() < found.background
    again = split(way, labels, seed)
    np.testing.assert_array_equal(again.labels, found.labels)


@pytest.mark.parametrize("way", ["image", "geometry"])
def test_what_is_to_stay_whole_stays_whole(way: str) -> None:
    labels = blobby_map((18, 20, 22), 3)
    kept = split(way, labels, 0, SubLabelSpec(protocol=PROTOCOL, foreground=1, keep=(0,)))
    np.testing.assert_array_equal(kept.labels, labels)
    small = split(way, labels, 0, SubLabelSpec(protocol=PROTOCOL, least_voxels=10**6))
    np.testing.assert_array_equal(small.labels, labels)


def test_numbers_of_background_parts_are_drawn_evenly() -> None:
    labels = np.zeros((5, 5, 5), dtype=np.int32)
    spec = SubLabelSpec(protocol=PROTOCOL, least_voxels=10**6)
    rng = seeded(0)
    counts = np.bincount([sublabels_by_geometry(labels, spec, rng=rng).background for _ in range(400)], minlength=11)
    assert counts[:3].sum() == 0
    assert stats.chisquare(counts[3:]).pvalue > 1e-4


def test_parts_by_image_are_its_tissues_the_darkest_first() -> None:
    rng = np.random.default_rng(0)
    truth = np.argmax([ndimage.gaussian_filter(rng.standard_normal((24, 24, 24)), 3) for _ in range(3)], axis=0)
    image = np.array([30.0, 90, 160])[truth] + rng.normal(0, 12, truth.shape)
    spec = SubLabelSpec(protocol=PROTOCOL, background=(3, 3), smooth=1)
    found = sublabels_from_image(np.zeros_like(truth), image, spec, rng=seeded(0))
    assert (found.labels // 1000 == truth).mean() > 0.97
    rough = sublabels_from_image(
        np.zeros_like(truth), image, SubLabelSpec(protocol=PROTOCOL, background=(3, 3), smooth=0), rng=seeded(0)
    )
    specks = [sum(ndimage.label(part.labels == v)[1] for v in (0, 1000, 2000)) for part in (found, rough)]
    assert specks[0] < specks[1] / 5


@pytest.mark.parametrize("seed", range(12))
def test_parts_that_nothing_belongs_to_come_last(seed: int) -> None:
    # An even tissue may get a second Gaussian that no voxel is likeliest to be of; a wide one takes both tails.
    image = np.random.default_rng(seed).normal(500, 50, (14, 14, 14))
    spec = SubLabelSpec(protocol=PROTOCOL, background=(2, 6), smooth=0)
    for count in (2, 6):
        found = sublabels_from_image(np.zeros(image.shape, dtype=int), image, spec, rng=seeded(seed), background=count)
        parts = np.unique(found.labels) // 1000
        assert parts.tolist() == list(range(len(parts)))
        means = [image[found.labels == 1000 * part].mean() for part in parts]
        assert means == sorted(means)


def test_voxels_without_an_image_go_to_the_first_part() -> None:
    labels = np.zeros((12, 12, 12), dtype=int)
    image = np.random.default_rng(0).uniform(10, 90, labels.shape)
    image[:4] = np.nan
    spec = SubLabelSpec(protocol=PROTOCOL, smooth=0)
    assert (sublabels_from_image(labels, image, spec, rng=seeded(0)).labels[:4] == 0).all()
    assert (sublabels_from_image(labels, np.full(labels.shape, np.nan), spec, rng=seeded(0)).labels == 0).all()


def test_geometry_puts_the_first_parts_far_away_and_regions_in_one_piece() -> None:
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in (40, 44, 48)], indexing="ij")
    labels = np.where(x**2 + y**2 + z**2 < 8**2, 2, 0)
    protocol = LabelProtocol.from_table(HEART, "heart")
    spec = SubLabelSpec(protocol=protocol, background_node_mm=25.0)
    distance = distance_inside(labels == 0, (2, 2, 2))
    ranks = []
    for seed in range(8):
        found = sublabels_by_geometry(labels, spec, rng=seeded(seed), spacing_mm=(2, 2, 2), background=6).labels
        parts = [v for v in range(0, 60, 10) if (found == v).any()]
        assert len(parts) >= 4
        ranks.append(stats.spearmanr(parts, [-distance[found == v].mean() for v in parts]).statistic)
        pieces = sum(ndimage.label(found == v)[1] for v in parts)
        assert pieces < 60
    assert np.mean(ranks) > 0.8


def test_geometry_works_in_millimetres() -> None:
    labels = blobby_map((16, 18, 20), 1)
    twice = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    spec = SubLabelSpec(protocol=PROTOCOL, smooth=0, background_node_mm=8.0)
    coarse = sublabels_by_geometry(labels, spec, rng=seeded(4), spacing_mm=(2, 2, 2), background=4).labels
    fine = sublabels_by_geometry(twice, spec, rng=seeded(4), spacing_mm=(1, 1, 1), background=4).labels
    air = labels == 0
    assert (fine[::2, ::2, ::2] == coarse)[air].mean() > 0.7  # a quarter would agree by chance


def test_labels_and_images_must_fit(tmp_path: Path) -> None:
    labels = blobby_map((12, 12, 12), 0)
    with pytest.raises(ShapeError, match="label map's grid"):
        sublabels_from_image(labels, np.zeros((3, 3, 3)), SPEC, rng=seeded(0))
    with pytest.raises(ShapeError, match="three positive sizes"):
        sublabels_by_geometry(labels, SPEC, rng=seeded(0), spacing_mm=(1, 0, 1))
    with pytest.raises(LabelError, match="9999"):
        sublabels_by_geometry(np.full((9, 9, 9), 9999), SPEC, rng=seeded(0))
    with pytest.raises(ConfigError, match="background"):
        sublabels_by_geometry(labels, SPEC, rng=seeded(0), background=11)
    assert not list(tmp_path.iterdir())


@given(seed=st.integers(0, 10**6), count=st.integers(2, 5))
@settings(max_examples=20)
def test_the_majority_vote_is_that_of_the_27_neighbours(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.integers(0, count, (6, 7, 8)).astype(np.uint8)
    mask = rng.random(parts.shape) < 0.8
    votes = np.stack(
        [
            ndimage.convolve(((parts == k) & mask).astype(int), np.ones((3, 3, 3), int), mode="constant")
            for k in range(count)
        ]
    )
    found = majority(parts, mask, count)
    own = np.take_along_axis(votes, parts[None].astype(int), 0)[0]
    chosen = np.take_along_axis(votes, found[None].astype(int), 0)[0]
    np.testing.assert_array_equal(chosen[mask], votes.max(0)[mask])
    np.testing.assert_array_equal(found[mask & (own == votes.max(0))], parts[mask & (own == votes.max(0))])


def test_distances_inside_a_mask_are_in_mm() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 6, 7)) < 0.9
    spacing = np.array([1.0, 2.0, 0.5])
    outside = np.argwhere(~mask) * spacing
    wanted = [np.linalg.norm(outside - at * spacing, axis=1).min() for at in np.argwhere(mask)]
    np.testing.assert_allclose(distance_inside(mask, spacing)[mask], wanted, rtol=1e-6)
    assert (distance_inside(mask, spacing)[~mask] == 0).all()
    assert np.isinf(distance_inside(np.ones((2, 2, 2), bool), spacing)).all()
    with pytest.raises(ShapeError):
        distance_inside(np.ones((2, 2), bool), spacing)


@pytest.mark.slow
def test_a_real_heart_keeps_its_targets() -> None:
    folder = shared_dir()
    path = None if folder is None else folder / "data" / "training" / "cardiac" / "hvsmr2016_pat4.nii.gz"
    if path is None or not path.is_file():
        pytest.skip("no real heart")
    labels = np.asarray(nib.load(path).dataobj)[::2, ::2, ::2].astype(np.int32)
    rows = "".join(
        f"{v}\t{n}\tneutral\t{v}\t{c}\t{c}\t{v}\t0\t0\t9\t9\t9\n" for v, n, c in ((64, "aorta", 3), (71, "pa", 4))
    )
    spec = SubLabelSpec(protocol=LabelProtocol.from_table(HEART + rows, "heart"))
    found = sublabels_by_geometry(labels, spec, rng=seeded(0), spacing_mm=(2.1, 2.1, 1.3))
    np.testing.assert_array_equal(found.labels % 100, labels)
    shares = np.bincount((found.labels[labels == 0] // 100).astype(int)) / (labels == 0).sum()
    assert len(shares) == found.background
    assert shares.max() < 0.7
