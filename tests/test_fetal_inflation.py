"""Label inflation (reference A.6.2, G.3): offsets, how often, image and target alike, other stages as they were."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

from generation_helpers import PROTOCOL, seeded, small_bank, still
from synthseg.errors import ConfigError
from synthseg.generation import PRESETS, GenerativeModel, LabelBank
from synthseg.generation.config import InflationPrior, MixturePrior
from synthseg.generation.draws import Off
from synthseg.generation.inflation import InflationDraw, draw_inflation, inflated, inflated_values
from synthseg.labels.protocol import load_protocol

FETA = load_protocol("feta-generation")
REFERENCE = InflationPrior(probability=1.0)
OFFSETS = {1: [], 2: [-1, 0], 3: [-1, 0, 1], 4: [-2, -1, 0, 1]}  # reference A.6.2


def grown(labels: np.ndarray, label: int, edge: int, prior: InflationPrior = REFERENCE) -> np.ndarray:
    """Where a label lies once it has grown, of one map."""
    draw = InflationDraw(torch.tensor([label]), torch.tensor([edge]))
    return inflated(torch.as_tensor(labels)[None], draw, prior)[0].numpy()


@pytest.mark.parametrize(("edge", "offsets"), OFFSETS.items())
def test_a_voxel_grows_by_the_references_offsets(edge: int, offsets: list[int]) -> None:
    labels = np.zeros((9, 9, 9), dtype=np.int64)
    labels[4, 4, 4] = 3
    places = np.argwhere(grown(labels, 3, edge)) - 4
    assert len(places) == len(offsets) ** 3
    for axis in range(3):
        assert sorted(set(places[:, axis].tolist())) == offsets


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4]))
def test_growth_is_scipys_dilation_by_a_cube_with_empty_borders(seed: int, edge: int) -> None:
    labels = np.random.default_rng(seed).choice(4, size=(6, 7, 8), p=[0.7, 0.1, 0.1, 0.1])
    # scipy's window of an even size reaches one further down: mirrored, one further up, as growth downwards needs.
    expected = maximum_filter((labels == 2)[::-1, ::-1, ::-1].astype(int), edge, mode="constant")[::-1, ::-1, ::-1]
    assert np.array_equal(grown(labels, 2, edge), expected > 0)


def test_elements_of_a_batch_grow_their_own_labels() -> None:
    labels = torch.randint(0, 8, (3, 6, 6, 6), generator=seeded(0))
    draw = InflationDraw(torch.tensor([2, 5, 7]), torch.tensor([4, 1, 2]))
    found = inflated(labels, draw, REFERENCE)
    for n, (label, edge) in enumerate([(2, 4), (5, 1), (7, 2)]):
        assert np.array_equal(found[n].numpy(), grown(labels[n].numpy(), label, edge))


def test_half_of_the_pairs_stay_and_each_tissue_grows_equally_often() -> None:
    draw = draw_inflation(REFERENCE, FETA, 42_000, rng=seeded(1))
    edges = np.bincount(draw.edge.numpy(), minlength=5)[1:] / 42_000
    assert edges == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.01)
    labels = np.bincount(draw.label.numpy(), minlength=len(FETA)) / 42_000
    assert labels[1:8] == pytest.approx([1 / 7] * 7, abs=0.01)
    assert labels[0] == labels[8:].sum() == 0
    rarely = draw_inflation(InflationPrior(probability=0.2, edges=(3,)), FETA, 20_000, rng=seeded(1))
    assert (rarely.edge == 3).float().mean() == pytest.approx(0.2, abs=0.02)


def model(inflation: InflationPrior, **stages: Any) -> GenerativeModel:
    """A model of the small adult heads, without noise."""
    return GenerativeModel(still(inflation=inflation, **stages), small_bank())


def test_image_and_target_show_the_same_grown_label() -> None:
    prior = InflationPrior(probability=1.0, edges=(3,), values=(2, 41))
    with_growth, without = model(prior), model(InflationPrior())
    draw = with_growth.draw(2, rng=seeded(3))
    labels = without.labels(draw._replace(inflation=Off()))
    expected = labels.clone()
    where = inflated(labels, draw.inflation, prior)  # type: ignore[arg-type]
    assert 0 < where.float().mean() < 0.9
    for n, own in enumerate(where):
        expected[n][own] = draw.inflation.label[n]  # type: ignore[union-attr]
    found, image = with_growth.mixture(draw)
    assert torch.equal(found, expected)
    means = draw.mixture.means.gather(1, with_growth.classes[expected].flatten(1)).view_as(image[:, 0])
    assert torch.equal(image[:, 0], means)
    assert torch.equal(with_growth.apply(draw).target, with_growth.tables.target_channel[expected])


def test_with_partial_volume_the_grown_voxels_have_their_own_gaussian() -> None:
    prior = InflationPrior(probability=1.0, edges=(4,), values=(2,))
    base = model(prior).config
    mixed = dataclasses.replace(base, partial_volume=dataclasses.replace(base.partial_volume, positions=4))
    generator = GenerativeModel(mixed, small_bank())
    draw = generator.draw(1, rng=seeded(5))
    labels, image = generator.mixture(draw)
    index = int(PROTOCOL.index_of(np.array([2]))[0])
    before = GenerativeModel(dataclasses.replace(mixed, inflation=InflationPrior()), small_bank())
    plain, plain_image = before.mixture(draw._replace(inflation=Off()))
    new = (labels == index) & (plain != index)
    assert new.any()
    assert (image[:, 0][new] == draw.mixture.means[0, generator.classes[index]]).all()
    where = inflated(plain, draw.inflation, prior)  # type: ignore[arg-type]
    assert torch.equal(image[:, 0][~where], plain_image[:, 0][~where])


def test_it_is_off_by_default_and_leaves_what_a_seed_gives_the_others() -> None:
    assert not any(preset().inflation.enabled for preset in PRESETS.values())
    assert not InflationPrior(probability=1.0, edges=(1, 1)).enabled
    one, other = model(InflationPrior()).draw(2, rng=seeded(0)), model(REFERENCE).draw(2, rng=seeded(0))
    assert isinstance(one.inflation, Off)
    for mine, theirs in zip(one[:6], other[:6], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_labels_without_a_target_and_of_other_protocols_never_grow() -> None:
    assert inflated_values(REFERENCE, FETA) == (1, 2, 3, 4, 5, 6, 7)
    assert 0 not in inflated_values(REFERENCE, PROTOCOL)
    assert 515 not in inflated_values(REFERENCE, PROTOCOL)
    bank = LabelBank.from_maps([np.ones((8, 8, 8), dtype=int)], [(1, 1, 1)], ["map"], FETA)
    config = still(inflation=InflationPrior(probability=1.0, values=(17,)), mixture=MixturePrior())
    with pytest.raises(ConfigError, match="17"):
        GenerativeModel(config, bank)


@pytest.mark.parametrize("edges", [(), (0,), (2, 10)])
def test_edges_out_of_range_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="edges"):
        InflationPrior(probability=1.0, edges=edges)
