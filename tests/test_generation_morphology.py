"""Ventricles, sulci and head size change by what is drawn, without folds, and nothing else moves."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from generation_helpers import PROTOCOL, seeded, small_bank, still
from synthseg.errors import ConfigError
from synthseg.generation import GenerativeModel, LabelBank
from synthseg.generation.config import AnatomyPrior, GridPrior, MorphologyPrior
from synthseg.generation.morphology import draw_morphology, sulcal_field, ventricle_flow
from synthseg.generation.roles import tissue_values
from synthseg.labels.protocol import load_protocol

SIDE = 24  # nodes, 2 mm apart
GRID = GridPrior(shape=(80, 80, 80), spacing_mm=0.8)  # of no whole number of the map's voxels


def identity_mm(side: int = SIDE, step_mm: float = 2.0) -> torch.Tensor:
    line = torch.arange(side) * step_mm
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"))[None]


def smallest_jacobian(displacement_mm: torch.Tensor, step_mm: float) -> float:
    """Of x + u(x), u interpolated between nodes: determinants at all eight corners of each cell."""
    side = displacement_mm.shape[-1]
    field = (identity_mm(side, step_mm) + displacement_mm)[0].double().numpy() / step_mm
    lowest = np.inf
    for corner in np.ndindex(2, 2, 2):
        columns = []
        for axis in range(3):
            keep = [slice(c, c + side - 1) for c in corner]
            keep[axis] = slice(0, side - 1)
            columns.append(np.diff(field, axis=axis + 1)[(slice(None), *keep)])
        lowest = min(lowest, float(np.linalg.det(np.stack(columns, -1).transpose(1, 2, 3, 0, 4)).min()))
    return lowest


def masks(seed: int, smoothness: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two disjoint random masks, from specks to large blobs."""
    fields = [gaussian_filter(np.random.default_rng(seed + n).standard_normal((SIDE,) * 3), smoothness) for n in (0, 1)]
    one = fields[0] > 0
    other = ~one & (fields[1] > 0)
    return torch.tensor(one)[None, None].float(), torch.tensor(other)[None, None].float()


@given(seed=st.integers(0, 10**6), smoothness=st.sampled_from([0.0, 1.0, 3.0]), share=st.sampled_from([-1.0, 1.0]))
@settings(max_examples=25)
def test_the_largest_amounts_allowed_do_not_fold_whatever_the_masks(seed: int, smoothness: float, share: float) -> None:
    one, other = masks(seed, smoothness)
    prior = MorphologyPrior(sulci_mm=(-1.35, 1.35), ventricles_mm=(-9, 9))  # 0.45 and 1.5 standard deviations
    assert smallest_jacobian(sulcal_field(torch.tensor([1.35 * share]), one, other, prior, 2.0), 2.0) > 0
    assert smallest_jacobian(ventricle_flow(torch.tensor([9.0 * share]), one, prior, 2.0), 4.0) > 0


def test_a_flat_border_moves_by_the_amount_drawn() -> None:
    mask = torch.zeros(1, 1, 40, 40, 40)
    mask[:, :, 20:] = 1  # its border is at node 19.5
    prior = MorphologyPrior(sulci_sigma_mm=6.0)
    field = sulcal_field(torch.tensor([2.0]), mask, torch.ones_like(mask), prior, 2.0)[0]
    assert field[0, 19:21, 20, 20].mean() == pytest.approx(2.0, rel=0.05)
    assert field[1:].abs().max() < 1e-4
    flow = ventricle_flow(torch.tensor([1.0]), mask, MorphologyPrior(), 2.0)[0]  # every other node
    assert flow[0, 9:11, 10, 10].mean() == pytest.approx(1.0, rel=0.15)  # less as it leaves the peak
    assert flow[1:].abs().max() < 1e-3


def nested(radii: dict[int, float], side: int = 64) -> LabelBank:
    """Balls within balls: label value to radius in mm, from the outermost."""
    axes = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    values = np.zeros((side,) * 3, np.int32)
    for value, radius in radii.items():
        values[distance < radius] = value
    return LabelBank.from_maps([values], [(1.0, 1.0, 1.0)], ["balls"], PROTOCOL)


HEAD = nested({511: 31, 24: 28, 3: 22, 2: 18, 4: 9})


def volumes(bank: LabelBank, **prior: Any) -> dict[int, float]:
    """Voxels of each label value, with one amount for certain."""
    config = dataclasses.replace(still(GRID.shape), grid=GRID, morphology=MorphologyPrior(probability=1, **prior))
    model = GenerativeModel(config, bank)
    values = PROTOCOL.values[model.labels(model.draw(1, rng=seeded(0)))[0].numpy()]
    return {int(value): float((values == value).sum()) for value in np.unique(values)}


def test_ventricles_grow_steadily_with_the_amount_at_the_expense_of_what_is_around() -> None:
    amounts = [-6.0, -3.0, 0.0, 3.0, 6.0, 9.0]
    found = [volumes(HEAD, ventricles_mm=(a, a), sulci_mm=(0.0, 0.0)) for a in amounts]
    sizes = [each[4] for each in found]
    assert all(later > 1.1 * earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[0] < 0.6 * sizes[2]
    assert sizes[-1] > 2 * sizes[2]
    around = [each[2] + each[3] + each[24] for each in found]
    assert all(later < earlier for earlier, later in itertools.pairwise(around))
    assert all(each[511] == pytest.approx(found[2][511], rel=0.03) for each in found), "the skin is far away"


def test_csf_grows_at_the_brains_expense_and_the_skull_stays() -> None:
    found = [volumes(HEAD, sulci_mm=(a, a), ventricles_mm=(0.0, 0.0)) for a in (-1.3, 0.0, 0.6, 1.3)]
    csf, brain = ([each[24] for each in found], [each[2] + each[3] + each[4] for each in found])
    assert all(later > 1.05 * earlier for earlier, later in itertools.pairwise(csf))
    assert all(later < earlier for earlier, later in itertools.pairwise(brain))
    for each in found:
        assert sum(each[v] for v in (2, 3, 4, 24)) == pytest.approx(sum(found[1][v] for v in (2, 3, 4, 24)), rel=0.04)


def test_heads_scale_with_their_size_in_all_directions() -> None:
    usual = volumes(HEAD, ventricles_mm=(0.0, 0.0), sulci_mm=(0.0, 0.0))
    for size in (0.8, 0.9, 1.03):
        scaled = volumes(HEAD, ventricles_mm=(0.0, 0.0), sulci_mm=(0.0, 0.0), size_range=(size, size))
        assert scaled[2] / usual[2] == pytest.approx(size**3, rel=0.03)
        assert scaled[511] / usual[511] == pytest.approx(size**3, rel=0.03)


@pytest.mark.parametrize("flip", [False, True])
def test_an_amount_of_zero_is_the_map_as_it_was(flip: bool) -> None:
    bank = small_bank()
    anatomy = AnatomyPrior(flip_probability=flip, strip_probability=0.5)
    base = dataclasses.replace(still((16, 18, 20)), anatomy=anatomy)
    plain = GenerativeModel(base, bank)
    changed = GenerativeModel(dataclasses.replace(base, morphology=MorphologyPrior(probability=1e-9)), bank)
    draw = changed.draw(3, rng=seeded(1))
    assert torch.equal(draw.morphology.ventricles_mm, torch.zeros(3))  # type: ignore[union-attr]
    assert torch.equal(changed.labels(draw), plain.labels(plain.draw(3, rng=seeded(1))))


def test_mirroring_and_widening_may_be_swapped() -> None:
    # A lopsided ventricle, so that a displacement in the wrong direction would show.
    values = np.zeros((40, 40, 40), np.int32)
    values[5:35, 5:35, 5:35] = 41
    values[8:15, 12:30, 15:22] = 43
    bank = LabelBank.from_maps([values], [(1.0, 1.0, 1.0)], ["lopsided"], PROTOCOL)
    config = dataclasses.replace(
        still(),
        grid=GridPrior(shape=(40, 40, 40)),
        morphology=MorphologyPrior(probability=1, ventricles_mm=(6.0, 6.0)),
    )
    model = GenerativeModel(config, bank)
    draw = model.draw(1, rng=seeded(0))
    flipped = draw._replace(anatomy=draw.anatomy._replace(flip=torch.tensor([True])))
    mirrored = model.tables.partner[model.labels(draw).flip(1)]
    assert (model.labels(flipped) == mirrored).float().mean() > 0.99  # nodes lie elsewhere, counted from the other end
    assert (mirrored != model.labels(draw)).float().mean() > 0.05


def test_amounts_are_drawn_from_their_ranges_for_a_share_of_the_pairs() -> None:
    prior = MorphologyPrior(probability=0.5, ventricles_mm=(2.0, 4.0), sulci_mm=(0.5, 1.0), size_range=(0.9, 1.2))
    draw = draw_morphology(prior, 2000, rng=seeded(1))
    changed = draw.ventricles_mm != 0
    assert 0.45 < changed.float().mean() < 0.55
    assert torch.equal(changed, draw.sulci_mm != 0)
    for values, low, high in (
        (draw.ventricles_mm[changed], 2, 4),
        (draw.sulci_mm[changed], 0.5, 1),
        (draw.size, 0.9, 1.2),
    ):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


def test_tissues_are_read_off_the_names_of_any_table() -> None:
    found = tissue_values(PROTOCOL)
    assert found["ventricle"] == (14, 15, 72, 4, 5, 136, 137, 43, 44, 163, 164)
    assert found["csf"] == (24,)
    assert {2, 3, 10, 16, 25, 47} <= set(found["brain"])
    assert not {0, 4, 24, 502, 511, 72} & set(found["brain"])
    fetal = tissue_values(load_protocol("feta"))
    assert fetal == {"ventricle": (4,), "csf": (1,), "brain": (2, 3, 5, 6, 7)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("probability", 1.5),
        ("ventricles_mm", (3.0, 1.0)),
        ("ventricles_mm", (0.0, 9.1)),
        ("sulci_mm", (0.0, 1.4)),
        ("sulci_mm", (float("nan"), 1.0)),
        ("sulci_sigma_mm", 0.0),
        ("ventricles_sigma_mm", float("nan")),
        ("size_range", (0.1, 1.0)),
    ],
)
def test_values_out_of_range_name_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^generation\.morphology\.{key}: found"):
        MorphologyPrior(**{key: value})
