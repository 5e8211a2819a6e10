"""Cortical parcels of a hemisphere that the network of the parcels was shown nothing of, or that has no parcels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plus_helpers import EXACT, PARCELS, VALUES, Reader, Slabs, painted, parcels_model, scan_of, structures_model
from synthseg.errors import InvariantError, WeightsError
from synthseg.inference import Model, Segmentation, Segmenter, Want
from synthseg.inference.bundle import gather, parcel_structures
from synthseg.inference.grids import Grid
from synthseg.inference.parcels import Parcels
from synthseg.labels import LabelProtocol

GRID = Grid((6, 6, 6), np.eye(4))
LEFT, RIGHT = ([s.value for s in parcel_structures(parcels_model()) if s.side == side] for side in ("left", "right"))
CORTEX, WHITE, CSF = (int(np.searchsorted(VALUES, value)) for value in (3, 2, 24))


class Doubting(Reader):
    """Takes left cortex for something else by a little: for ``even`` on slices of an even height, else for ``odd``."""

    def __init__(self, even: int = WHITE, odd: int = WHITE) -> None:
        super().__init__(range(33), 33)
        self.even, self.odd = even, odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        cortex = logits[:, CORTEX]
        high = torch.arange(x.shape[-1]) % 2 == 1
        for other, where in ((self.even, ~high), (self.odd, high)):
            logits[:, other] += torch.where((cortex > 0) & where, cortex + 0.2, 0)
        return logits


class Everywhere(Slabs):
    """Slabs on every voxel, whatever it is shown."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown = x[0, 2].bool()
        return super().forward(torch.cat([x[:, :2], torch.ones_like(x[:, :1])], dim=1))


def doubted(network: nn.Module, *, right: bool = True, parcels: bool = True) -> Segmentation:
    """A painted head whose left cortex wins no voxel, its right one all of its own if there is one."""
    labels = painted()
    if not right:
        labels[labels == 42] = 0
    model = replace(structures_model(), network=Doubting())
    segmenter = Segmenter(model, config=EXACT, parcels=parcels_model(network) if parcels else False)
    return segmenter.segment(scan_of(labels))


@pytest.mark.parametrize("right", [False, True])
def test_a_hemisphere_that_wins_no_voxel_is_divided_by_what_the_network_says_where_it_lies(right):
    result, plain = doubted(Everywhere(), right=right), doubted(Everywhere(), right=right, parcels=False)
    assert not np.isin(result.labels.data, [3, *LEFT]).any()
    assert {value: result.volumes_mm3[value] for value in plain.volumes_mm3} == plain.volumes_mm3
    assert plain.volumes_mm3[3] > 3000
    slab = np.broadcast_to((np.arange(60) * 34 // 60)[None, :, None], painted().shape)
    voxels = np.bincount(slab[painted() == 3], minlength=34)
    expected = plain.volumes_mm3[3] * voxels / voxels.sum()
    np.testing.assert_allclose([result.volumes_mm3[value] for value in LEFT], expected, rtol=1e-4, atol=1e-3)
    assert np.isin(result.labels.data, RIGHT).any() == right


def test_a_hemisphere_of_which_the_network_says_nothing_is_shared_evenly():
    result = doubted(Slabs())  # background wherever it is shown no cortex
    whole = result.volumes_mm3[3]
    assert whole > 3000
    np.testing.assert_allclose([result.volumes_mm3[value] for value in LEFT], whole / 34, rtol=1e-4)
    assert any("how its volume is shared among its parcels is a guess" in note for note in result.notes)


def test_a_cortex_that_wins_on_a_finer_grid_only_gets_the_parcels_that_lie_there():
    """White matter wins one slice, csf the next, and cortex, second in both, between them."""
    model = replace(structures_model(2.0), network=Doubting(WHITE, CSF))
    network = Everywhere()
    segmenter = Segmenter(model, config=EXACT, parcels=parcels_model(network, spacing_mm=2.0))
    labels = painted((40, 32, 12))
    result = segmenter.segment(scan_of(labels, np.diag([2.0, 2.0, 2.0, 1.0])), Want(space="1mm"))
    np.testing.assert_array_equal(network.shown, labels == 42)
    won = np.argwhere(np.isin(result.labels.data, LEFT))
    assert len(won) > 1000
    values = result.labels.data[tuple(won.T)]
    nearest = (won[:, 1] // 2) * 34 // 32
    np.testing.assert_array_equal(values, np.array(LEFT)[nearest])
    assert sum(result.volumes_mm3[value] for value in LEFT) == pytest.approx(result.volumes_mm3[3], rel=1e-5)


def test_what_was_guessed_is_noted_once():
    posteriors = torch.zeros(69, 6, 6, 6)
    posteriors[5, 2] = 1e-9
    posteriors[40] = 1
    parcels = Parcels(posteriors, GRID, parcel_structures(parcels_model()))
    weights = {3: np.full(GRID.shape, 0.25, np.float32), 42: np.ones(GRID.shape, np.float32)}
    for _ in range(2):
        sums = parcels.divide(np.full(GRID.shape, 42), GRID, weights)
    assert sums[LEFT[4]] == pytest.approx(0.25 * 216)
    assert parcels.notes == ["no voxel is left cerebral cortex: how its volume is shared among its parcels is a guess"]
    labels = np.full(GRID.shape, 3)
    parcels.divide(labels, GRID)
    assert (labels == LEFT[4]).all()
    assert parcels.notes[1:] == ["no left parcel was seen in the left cerebral cortex: its parcels are a guess"]


def test_a_stray_voxel_does_not_decide_for_a_hemisphere_that_was_not_shown():
    posteriors = torch.zeros(69, 6, 6, 6)
    posteriors[5] = 1e-9
    posteriors[7, 0, 0, 0] = 0.5
    weights = {3: np.ones(GRID.shape, np.float32), 42: np.zeros(GRID.shape, np.float32)}
    shown = Parcels(posteriors, GRID, parcel_structures(parcels_model()))
    assert shown.divide(np.zeros(GRID.shape), GRID, weights)[LEFT[6]] == pytest.approx(216)
    hidden = replace(shown, shown=frozenset({42}), notes=[])
    sums = hidden.divide(np.zeros(GRID.shape), GRID, weights)
    assert (sums[LEFT[6]], sums[LEFT[4]]) == (pytest.approx(1), pytest.approx(215))
    assert (len(shown.notes), len(hidden.notes)) == (0, 1)


def test_where_all_posteriors_are_zero_volumes_are_shared_evenly_and_labels_refused():
    parcels = Parcels(torch.zeros(69, 6, 6, 6), GRID, parcel_structures(parcels_model()))
    weights = dict.fromkeys((3, 42), np.ones(GRID.shape, np.float32))
    sums = parcels.divide(np.zeros(GRID.shape), GRID, weights)
    np.testing.assert_allclose(list(sums.values()), 216 / 34)
    with pytest.raises(InvariantError, match="no right parcel anywhere in the right cerebral cortex"):
        parcels.divide(np.full(GRID.shape, 42), GRID, weights)


@pytest.mark.parametrize("missing", ["left", "right"])
def test_a_protocol_with_the_parcels_of_one_side_is_refused(missing):
    labels = tuple(replace(s, target=s.partner if s.side == missing else s.value) for s in PARCELS.labels)
    protocol = LabelProtocol("half", "parcels of one side", labels)
    half = Model.from_network(Reader([], 35), protocol, role="parcels", spacing_mm=1.0, name="half")
    with pytest.raises(WeightsError, match=rf"weights half: found no {missing} parcels \(half\)"):
        gather("default", structures_model(), parcels=half)
