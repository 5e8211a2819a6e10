"""From a table of weights to the maps that training draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from generation_helpers import small_bank, still
from synthseg.errors import ConfigError
from synthseg.generation import GenerativeModel
from synthseg.generation.anatomy import draw_anatomy
from synthseg.generation.config import AnatomyPrior, GridPrior
from synthseg.generation.draws import PairDraw
from synthseg.generation.map_weights import match_weights, read_map_weights, stratified_map
from synthseg.training.recipe import recipe_from_dict
from synthseg.training.resume import compare_recipes
from synthseg.training.task import SegmentationTask, element_generator
from training_helpers import tiny_recipe

CPU = torch.device("cpu")


def table(folder: Path, *rows: tuple[str, object], header: str = "map\tweight\tdataset") -> Path:
    path = folder / "weights.tsv"
    path.write_text("\n".join([header, *(f"{name}\t{weight}\tany" for name, weight in rows)]) + "\n", encoding="utf-8")
    return path


def test_a_table_is_read_by_name_in_its_order(tmp_path: Path) -> None:
    path = table(tmp_path, ("b.nii.gz", 3), ('a "quoted", name.nii', 0.5))
    path.write_text("# a comment\n" + path.read_text(encoding="utf-8") + "\n", encoding="utf-8-sig")
    assert read_map_weights(path) == {"b.nii.gz": 3.0, 'a "quoted", name.nii': 0.5}
    found = match_weights(read_map_weights(path), ['a "quoted", name.nii', "b.nii.gz"], subject=path)
    assert found == (0.5, 3.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 1), ("a", 2)], r"weights.tsv: found the map 'a' twice"),
        ([("", 1)], r"found a row without a map's name"),
        ([("a", "much")], r"found the weight 'much' of a"),
        ([("a", -1)], r"found the weight '-1' of a"),
        ([("a", "nan")], r"found the weight 'nan' of a"),
        ([("a", "inf")], r"found the weight 'inf' of a"),
        ([("a", "")], r"found the weight '' of a"),
        ([("a", 0), ("b", 0.0)], r"found 2 weights, none above 0"),
        ([], r"found 0 weights"),
    ],
)
def test_a_table_that_says_no_weights_is_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_map_weights(table(tmp_path, *rows))


def test_a_file_that_is_no_such_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.tsv: found no such file.*synthseg sampler LABELS"):
        read_map_weights(tmp_path / "absent.tsv")
    with pytest.raises(ConfigError, match=r"found no column weight"):
        read_map_weights(table(tmp_path, ("a", 1), header="map\tmass\tdataset"))
    (tmp_path / "weights.npy").write_bytes(b"\x93NUMPY\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"weights.npy: found no readable text"):
        read_map_weights(tmp_path / "weights.npy")


def test_maps_that_only_one_side_knows_are_named() -> None:
    weights = {"a": 1.0, "b": 2.0}
    with pytest.raises(ConfigError, match=r"w.tsv: found no weight for c, d of the bank"):
        match_weights(weights, ["a", "c", "b", "d"], subject="w.tsv")
    with pytest.raises(ConfigError, match=r"w.tsv: found a weight for b, which the bank does not hold"):
        match_weights(weights, ["a"], subject="w.tsv")
    with pytest.raises(ConfigError, match=r"found two maps named a in the bank"):
        match_weights(weights, ["a", "b", "a"], subject="w.tsv")
    many = {f"m{n}": 1.0 for n in range(9)}
    with pytest.raises(ConfigError, match=r"for m1, m2, m3 and 5 more, which"):
        match_weights(many, ["m0"], subject="w.tsv")


@pytest.mark.parametrize("weights", [None, [0.05, 0.4, 0.0, 0.15, 0.4]])
def test_maps_are_drawn_as_often_as_the_table_says(weights: Sequence[float] | None) -> None:
    bank = small_bank(shapes=((6, 6, 6),) * 5, spacings_mm=((1.0, 1.0, 1.0),) * 5)
    model = GenerativeModel(still(), bank, weights)
    rng = torch.Generator().manual_seed(8)
    grid = GridPrior(shape=(16, 16, 16))
    drawn = draw_anatomy(AnatomyPrior(), grid, bank, model.map_weights, 100_000, rng=rng).map_index
    counts = np.bincount(drawn.numpy(), minlength=5)
    wanted = np.array(weights or [0.2] * 5) * 100_000
    assert (counts[wanted == 0] == 0).all()
    assert chisquare(counts[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


@settings(max_examples=25)
@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 0.01),
    seed=st.integers(0, 10**6),
    block=st.integers(0, 5),
    element=st.integers(0, 3),
)
def test_a_block_of_stratified_steps_shows_each_map_its_share(
    weights: list[float], seed: int, block: int, element: int
) -> None:
    count, share = len(weights), np.array(weights) / sum(weights)
    drawn = [
        stratified_map(torch.tensor(weights), seed=seed, step=block * count + n, element=element) for n in range(count)
    ]
    counts = np.bincount(drawn, minlength=count)
    assert (np.abs(counts - count * share) < 1 + 1e-5).all()
    assert (counts[np.array(weights) == 0] == 0).all()


def test_a_stratified_step_has_the_distribution_of_an_independent_one() -> None:
    weights = torch.tensor([0.05, 0.4, 0.0, 0.15, 0.4])
    for step, element in ((3, 0), (17, 2)):
        drawn = Counter(stratified_map(weights, seed=seed, step=step, element=element) for seed in range(2000))
        counts = np.array([drawn[n] for n in (0, 1, 3, 4)])
        assert sum(counts) == 2000
        assert chisquare(counts, 2000 * np.array([0.05, 0.4, 0.15, 0.4])).pvalue > 1e-3


def test_uniform_weights_show_every_map_once_in_as_many_steps() -> None:
    weights = torch.ones(7)
    orders = [[stratified_map(weights, seed=3, step=7 * block + n, element=0) for n in range(7)] for block in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders[0] != [stratified_map(weights, seed=3, step=n, element=1) for n in range(7)]


def test_a_recipe_takes_the_table_by_its_path(tmp_path: Path) -> None:
    table(tmp_path, ("two", 3.0), ("one", 1.0))  # in another order than the bank
    task = SegmentationTask(tiny_recipe(tmp_path, data={"map_weights": "weights.tsv"}), CPU)
    assert task.model.map_weights.tolist() == [1.0, 3.0]
    assert SegmentationTask(tiny_recipe(tmp_path), CPU).model.map_weights.tolist() == [1.0, 1.0]
    listed = tiny_recipe(tmp_path, data={"map_weights": [1, 3]})
    assert SegmentationTask(listed, CPU).model.map_weights.tolist() == [1.0, 3.0]
    table(tmp_path, ("two", 3.0))
    with pytest.raises(ConfigError, match=r"weights.tsv: found no weight for one of the bank"):
        SegmentationTask(tiny_recipe(tmp_path, data={"map_weights": "weights.tsv"}), CPU)


def test_stratified_choice_changes_the_map_and_nothing_else_that_is_drawn(tmp_path: Path) -> None:
    weights = {"data": {"map_weights": [1.0, 3.0]}}
    plain = SegmentationTask(tiny_recipe(tmp_path, **weights), CPU)
    even = SegmentationTask(tiny_recipe(tmp_path, data={**weights["data"], "map_choice": "stratified"}), CPU)

    def draws(task: SegmentationTask) -> list[PairDraw]:
        return [task._draw(step, 0, element_generator(5, step, 0, CPU)) for step in range(8)]

    chosen = [int(draw.anatomy.map_index) for draw in draws(even)]
    assert chosen == [stratified_map(even.model.map_weights, seed=5, step=step, element=0) for step in range(8)]
    assert [sum(chosen[n : n + 2]) >= 1 for n in range(0, 8, 2)] == [True] * 4  # the map of 3/4 in every two steps
    for one, other in zip(draws(plain), draws(even), strict=True):
        assert torch.equal(one.mixture.noise, other.mixture.noise)
        assert torch.equal(one.anatomy.flip, other.anatomy.flip)
        assert torch.equal(one.deformation.affine, other.deformation.affine)
    # Elements of a step may be made together or apart, by one process or several.
    together, apart = even.batch(4, [0, 1]), [even.batch(4, [e]) for e in (0, 1)]
    torch.testing.assert_close(together.input, torch.cat([one.input for one in apart]))


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.map_choice: found 'even'"):
        tiny_recipe(tmp_path, data={"map_choice": "even"})


def test_another_table_at_the_same_path_is_a_changed_recipe(tmp_path: Path) -> None:
    (tmp_path / "weights.tsv").write_text("map\tweight\none\t1\n", encoding="utf-8")
    tables = {"data": {"bank": "b.safetensors", "map_weights": "weights.tsv"}}
    before = recipe_from_dict(tables, where="r", folder=str(tmp_path))
    facts = {"recipe": before.to_dict(), "targets": [0]}
    again = recipe_from_dict(tables, where="r", folder=str(tmp_path))
    assert compare_recipes(facts, again, [0], where="step-1") == []
    (tmp_path / "weights.tsv").write_text("map\tweight\none\t2\n", encoding="utf-8")
    (note,) = compare_recipes(facts, recipe_from_dict(tables, where="r", folder=str(tmp_path)), [0], where="step-1")
    assert "map_weights_sha256" in note
    assert recipe_from_dict({"data": {"bank": "b"}}, where="r").map_weights_sha256 is None
    with pytest.raises(ConfigError, match="map_weights_sha256"):
        recipe_from_dict({**tables, "map_weights_sha256": "0"}, where="r")


def test_names_may_hold_rare_line_ends(tmp_path: Path) -> None:
    (tmp_path / "w.tsv").write_text("map\tweight\na\u2028b\x0b.nii\t1\n", encoding="utf-8")
    assert read_map_weights(tmp_path / "w.tsv") == {"a\u2028b\x0b.nii": 1.0}
