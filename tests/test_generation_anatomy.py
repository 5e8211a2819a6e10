"""Which part of a map is shown, flips, skull stripping and lesions (Billot et al. 2023, section 4.2)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from generation_helpers import LESIONS, PROTOCOL, STRIPPED, blobby_map, seeded, small_bank, still, values_of
from synthseg.generation import GenerativeModel, LabelBank, PairDraw
from synthseg.generation.anatomy import flip_labels, map_center, sample_labels
from synthseg.generation.config import AnatomyPrior, GridPrior

BANK = small_bank()
PARTNER = torch.as_tensor(PROTOCOL.partner_index)


def switched(draw: PairDraw, **switches: bool) -> PairDraw:
    """The same draw with switches of the anatomy set for all elements."""
    every = {name: torch.full_like(draw.anatomy.flip, value) for name, value in switches.items()}
    return draw._replace(anatomy=draw.anatomy._replace(**every))


# Crops


@pytest.mark.parametrize("focus", ["map", "brain"])
def test_an_undeformed_crop_copies_the_map(focus: str) -> None:
    spacing = (0.8, 0.8, 0.8)
    bank = small_bank(spacings_mm=(spacing, spacing))
    grid = GridPrior(shape=(8, 10, 12), spacing_mm=0.8, focus=focus, jitter_mm=2.0)  # type: ignore[arg-type]
    model = GenerativeModel(still(grid=grid), bank)
    draw = model.draw(6, rng=seeded(0))
    center = map_center(bank, draw.anatomy.map_index, grid)
    first = (draw.anatomy.corner_mm / 0.8 + center).round().long()
    labels = model.labels(draw)
    for i in range(6):
        x, y, z = first[i].tolist()
        crop = bank.label_map(int(draw.anatomy.map_index[i]))[x : x + 8, y : y + 10, z : z + 12]
        assert torch.equal(labels[i], crop.long())


@given(
    spacing=st.floats(0.5, 3.0),
    grid_spacing=st.floats(0.5, 2.0),
    sides=st.tuples(*[st.integers(20, 60)] * 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=25)
def test_crops_stay_inside_a_map_that_is_large_enough(
    spacing: float, grid_spacing: float, sides: tuple[int, int, int], seed: int
) -> None:
    maps = small_bank((sides,), ((spacing,) * 3,))
    grid = GridPrior(shape=(8, 9, 10), spacing_mm=grid_spacing)
    draw = GenerativeModel(still(grid=grid), maps).draw(20, rng=seeded(seed)).anatomy
    first = draw.corner_mm / spacing + map_center(maps, draw.map_index, grid)
    last = first + (torch.tensor(grid.shape) - 1) * grid_spacing / spacing
    for axis, side in enumerate(sides):
        if (grid.shape[axis] - 1) * grid_spacing <= (side - 1) * spacing:
            # Corners are put on whole voxels, so the far end may reach half a voxel past the last centre, not beyond
            # the last voxel.
            assert first[:, axis].min() >= -1e-3
            assert last[:, axis].max() <= side - 0.5 + 1e-3


def test_a_map_smaller_than_the_crop_is_centred_and_its_border_is_repeated() -> None:
    bank = small_bank(((9, 11, 13),), ((1.0, 1.0, 1.0),))
    labels = GenerativeModel(still((17, 19, 21)), bank).labels(
        GenerativeModel(still((17, 19, 21)), bank).draw(3, rng=seeded(1))
    )
    padded = np.pad(bank.label_map(0).numpy(), 4, mode="edge")
    for element in labels:
        np.testing.assert_array_equal(element.numpy(), padded)


# Sampling


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_maps_of_any_shape_and_spacing_are_sampled_like_scipy_does(seed: int) -> None:
    spacings = ((1.0, 1.0, 1.0), (0.5, 2.0, 1.25), (3.0, 0.7, 1.1))
    bank = small_bank(((12, 14, 16), (20, 9, 11), (7, 8, 25)), spacings)
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(rng.integers(0, 3, 5))
    where = rng.uniform(-18, 18, (3, 5, 4, 5, 6))  # also outside
    center = (bank.shapes[chosen] - 1) / 2
    ours = sample_labels(bank, chosen, [torch.from_numpy(w) for w in where], center)
    assert ours.dtype == torch.uint8
    for i, n in enumerate(chosen.tolist()):
        values = bank.label_map(n).numpy()
        spacing = bank.spacing_mm[n].double().numpy()
        voxel = where[:, i] / spacing[:, None, None, None] + (np.array(values.shape)[:, None, None, None] - 1) / 2
        np.testing.assert_array_equal(ours[i].numpy(), map_coordinates(values, voxel, order=0, mode="nearest"))


def test_halves_round_to_the_even_voxel() -> None:
    bank = small_bank(((9, 3, 3),), ((1.0, 1.0, 1.0),))
    bank = dataclasses.replace(bank, voxels=torch.arange(9, dtype=torch.uint8).repeat_interleave(9))
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, -7.0, 99.0]).view(1, 6, 1, 1)
    zero = torch.zeros_like(x)
    sampled = sample_labels(bank, torch.tensor([0]), [x, zero, zero], torch.zeros(1, 3))
    assert sampled.flatten().tolist() == [0, 2, 2, 4, 0, 8]


# Flip


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_flip_is_an_involution_that_mirrors_and_swaps_exactly_the_partners(seed: int) -> None:
    labels = torch.randint(len(PROTOCOL), (3, 6, 7, 8), generator=seeded(seed))
    flip = torch.tensor([True, False, True])
    once = flip_labels(labels, flip, PARTNER)
    assert torch.equal(flip_labels(once, flip, PARTNER), labels)
    assert torch.equal(once[1], labels[1])
    # Element by element and by value: index 0 grows to the right, so only x is mirrored.
    sides = np.array(PROTOCOL.sides)
    for element in (0, 2):
        before, after = labels[element].flip(0).numpy(), once[element].numpy()
        neutral = sides[before] == "neutral"
        np.testing.assert_array_equal(after[neutral], before[neutral])
        names = np.array(PROTOCOL.names)
        swapped = {"left": "right", "right": "left"}
        for b, a in zip(before[~neutral].flat, after[~neutral].flat, strict=True):
            assert sides[a] == swapped[sides[b]]
            assert names[a].split(" ", 1)[1] == names[b].split(" ", 1)[1]


def test_a_flip_swaps_the_volumes_of_the_sides() -> None:
    model = GenerativeModel(still((24, 26, 28)), BANK)
    draw = model.draw(4, rng=seeded(2))
    plain, flipped = (values_of(model.labels(switched(draw, flip=flip))) for flip in (False, True))
    partner = dict(zip(PROTOCOL.values.tolist(), PROTOCOL.values[PROTOCOL.partner_index].tolist(), strict=True))
    seen = set(np.unique(plain).tolist())
    assert {2, 41, 10, 49, 25, 57} <= seen
    for value in seen:
        assert (plain == value).sum() == (flipped == partner[value]).sum()
    assert (plain == 10).sum() != (plain == 49).sum(), "the maps must not be symmetric"


# Lesions and skull stripping


def lesion_case() -> tuple[GenerativeModel, PairDraw, np.ndarray, np.ndarray]:
    """Each map with the other's lesions, which lie in all tissues: (model, draw, labels of the maps, of the donors)."""
    maps = []
    for seed in (0, 1):
        values = blobby_map((24, 26, 28), seed)
        side = np.where(np.arange(24) < 12, 25, 57)[:, None, None]
        speck = np.random.default_rng(seed).random(values.shape) < 0.2
        maps.append(np.where(speck & (values != 0), side, values))
    bank = LabelBank.from_maps(maps, [(1.0, 1.0, 1.0)] * 2, ["a", "b"], PROTOCOL)
    prior = AnatomyPrior(lesion_probability=0.5, lesion_paste_probability=1.0)
    model = GenerativeModel(still((24, 26, 28), anatomy=prior), bank)
    draw = switched(model.draw(2, rng=seeded(3)), flip=False, strip=False)
    anatomy = draw.anatomy._replace(map_index=torch.tensor([0, 1]), donor_index=torch.tensor([1, 0]))
    own = np.stack([values_of(bank.label_map(n)) for n in (0, 1)])
    return model, draw._replace(anatomy=anatomy), own, own[::-1]


def test_hidden_lesions_become_the_white_matter_of_their_side() -> None:
    model, draw, own, _ = lesion_case()
    hidden = values_of(model.labels(switched(draw, lesions=False, paste=True)))
    np.testing.assert_array_equal(hidden, np.where(own == 25, 2, np.where(own == 57, 41, own)))
    assert (own == 25).any()
    assert (own == 57).any()


def test_shown_lesions_are_the_maps_own() -> None:
    model, draw, own, _ = lesion_case()
    np.testing.assert_array_equal(values_of(model.labels(switched(draw, lesions=True, paste=False))), own)


def test_pasted_lesions_replace_white_matter_only_and_get_its_side() -> None:
    model, draw, own, donor = lesion_case()
    pasted = values_of(model.labels(switched(draw, lesions=True, paste=True)))
    changed = pasted != own
    lesion = np.isin(donor, list(LESIONS))
    assert changed.sum() > 50
    assert lesion[changed].all()
    assert set(zip(own[changed].tolist(), pasted[changed].tolist(), strict=True)) == {(2, 25), (41, 57)}
    white = np.isin(own, list(LESIONS.values()))
    np.testing.assert_array_equal(changed, lesion & white)  # none is forgotten
    assert (lesion & ~white).any(), "some donor lesions must fall on other tissue for this to prove anything"


def test_the_target_does_not_know_about_lesions() -> None:
    model, draw, _, _ = lesion_case()
    targets = [model.apply(switched(draw, lesions=a, paste=b)).target for a, b in ((0, 0), (1, 0), (1, 1))]  # type: ignore[arg-type]
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])


def test_skull_stripping_removes_exactly_the_labels_outside_the_brain() -> None:
    model = GenerativeModel(still((24, 26, 28)), BANK)
    draw = switched(model.draw(2, rng=seeded(5)), strip_csf=False)
    whole, stripped = (values_of(model.labels(switched(draw, strip=strip))) for strip in (False, True))
    outside = np.isin(whole, STRIPPED)
    assert outside.any()
    np.testing.assert_array_equal(stripped, np.where(outside, 0, whole))
    with_csf = values_of(model.labels(switched(draw, strip=True, strip_csf=True)))
    np.testing.assert_array_equal(with_csf, np.where(outside | (whole == 24), 0, whole))
    assert (whole == 24).any()
    # The switch for CSF alone does nothing.
    np.testing.assert_array_equal(values_of(model.labels(switched(draw, strip=False, strip_csf=True))), whole)


def test_targets_are_the_protocols_look_up() -> None:
    model = GenerativeModel(still((24, 26, 28), anatomy=AnatomyPrior()), BANK)
    draw = model.draw(4, rng=seeded(6))
    target = model.apply(draw).target
    assert target.dtype == torch.int64
    by_value = {label.value: int(np.searchsorted(PROTOCOL.target_values, label.target)) for label in PROTOCOL.labels}
    np.testing.assert_array_equal(target.numpy(), np.vectorize(by_value.get)(values_of(model.labels(draw))))
