"""A recorded draw gives its own pair again, or an error that says what is not the same: never another pair."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from generation_helpers import PROTOCOL, blobby_map, seeded, small_bank, still
from synthseg.errors import TrainingError, UsageError
from synthseg.generation import GenerationConfig, GenerativeModel, LabelBank, PairDraw
from synthseg.generation.config import AcquisitionPrior, BiasPrior, DeformationPrior
from synthseg.generation.replay import read_origin, require_fit
from synthseg.generation.write import generate_pairs

BANK = small_bank()
CONFIG = still((8, 9, 10))


def recorded(folder: Path, bank: LabelBank = BANK, config: GenerationConfig = CONFIG) -> Path:
    """The file of a bank's first draw."""
    return next(iter(generate_pairs(bank, config, folder / "made", count=1, seed=4))).draw


def replay(draw: Path, bank: LabelBank, config: GenerationConfig = CONFIG) -> None:
    list(generate_pairs(bank, config, draw.parent.parent / "again", replay=[draw]))


def bank_of(seeds: tuple[int, ...], names: tuple[str, ...], protocol: Any = PROTOCOL) -> LabelBank:
    maps = [blobby_map((20, 22, 24), seed) for seed in seeds]
    return LabelBank.from_maps(maps, [(1.0, 1.0, 1.0)] * len(maps), names, protocol)


def test_recorded_draws_replay_bit_exactly_with_the_same_bank_read_again(tmp_path: Path) -> None:
    made = list(generate_pairs(BANK, CONFIG, tmp_path / "made", count=3, seed=4))
    packed = LabelBank.load(BANK.save(tmp_path / "bank.safetensors"))
    again = list(generate_pairs(packed, CONFIG, tmp_path / "again", replay=[pair.draw for pair in reversed(made)]))
    assert [pair.image.name for pair in again] == [pair.image.name for pair in reversed(made)]
    for before, after in zip(reversed(made), again, strict=True):
        assert np.array_equal(before.image_data, after.image_data)
        assert np.array_equal(before.label_data, after.label_data)
        assert np.array_equal(nib.load(before.image).get_fdata(), nib.load(after.image).get_fdata())
        assert before.draw.read_bytes() == after.draw.read_bytes()
        assert (after.map_name, after.note) == (before.map_name, "")
    assert len({pair.image_data.tobytes() for pair in made}) == 3


def test_a_draws_file_says_its_protocol_maps_and_config(tmp_path: Path) -> None:
    origin = read_origin(recorded(tmp_path))
    assert origin is not None
    assert (origin["protocol"], origin["maps"]) == ("synthseg-generation", ["map0", "map1"])
    assert origin["bank_sha256"] == BANK.sha256
    assert origin["config"]["grid.shape"] == [8, 9, 10]
    assert origin["config"]["intensity.clip_max"] is None


def test_a_draw_of_other_maps_is_refused(tmp_path: Path) -> None:
    draw = recorded(tmp_path)
    other = bank_of((5, 6, 7), ("a", "b", "c"))
    with pytest.raises(TrainingError, match=r"draw\.safetensors: .*maps \(map0, map1\) than these \(a, b, \.\.\. 3 in"):
        replay(draw, other)


def test_a_draw_of_maps_of_the_same_names_with_other_contents_is_refused(tmp_path: Path) -> None:
    draw = recorded(tmp_path)
    with pytest.raises(TrainingError, match=r"draw\.safetensors: found a draw from label maps of the same names"):
        replay(draw, bank_of((5, 6), ("map0", "map1")))


def test_a_draw_of_another_protocol_is_refused(tmp_path: Path) -> None:
    draw = recorded(tmp_path)
    renamed = dataclasses.replace(BANK, protocol=dataclasses.replace(PROTOCOL, labels=PROTOCOL.labels, name="other"))
    replay(draw, renamed)  # the name alone changes nothing
    labels = [dataclasses.replace(row, target=0) if row.value == 16 else row for row in PROTOCOL.labels]
    changed = dataclasses.replace(BANK, protocol=dataclasses.replace(PROTOCOL, name="other", labels=tuple(labels)))
    with pytest.raises(TrainingError, match=r"a draw with label protocol synthseg-generation, not other"):
        replay(draw, changed)


def test_a_draw_of_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    draw = recorded(tmp_path)
    other = dataclasses.replace(CONFIG, acquisition=AcquisitionPrior(native_probability=1, downsampling="nearest"))
    with pytest.raises(
        TrainingError,
        match=r"made with acquisition\.jitter = 0 \(here 0\.03\), acquisition\.downsampling = 'linear' \(he",
    ):
        replay(draw, BANK, other)
    with pytest.raises(TrainingError, match=r"grid\.shape = \[8, 9, 10\] \(here \[10, 9, 8\]\)"):
        replay(draw, BANK, still((10, 9, 8)))


def test_a_draw_without_origin_replays_with_a_note_and_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x_draw.safetensors"
    GenerativeModel(CONFIG, BANK).draw(1, rng=seeded(0)).save(path)
    assert read_origin(path) is None
    (pair,) = generate_pairs(BANK, CONFIG, tmp_path / "again", replay=[path])
    assert pair.note == f"{path} does not say which bank and config it was made with"
    assert pair.image.name == "x_image.nii.gz"
    with pytest.raises(
        TrainingError, match=r"x_draw\.safetensors: found mixture\.noise of shape \[1, 1, 8, 9, 10\], not "
    ):
        replay(path, BANK, still((9, 8, 10)))


def test_a_record_of_several_pairs_is_refused_rather_than_cut(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x_draw.safetensors"
    GenerativeModel(CONFIG, BANK).draw(3, rng=seeded(0)).save(path)
    with pytest.raises(
        TrainingError, match=r"x_draw\.safetensors: found a draw of 3 pairs\. Fix: cut it with PairDraw"
    ):
        replay(path, BANK)


def test_two_records_of_one_name_are_refused_before_one_overwrites_the_other(tmp_path: Path) -> None:
    draws = [recorded(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(UsageError, match=r"pair_0000: found several recorded draws of this name"):
        list(generate_pairs(BANK, CONFIG, tmp_path / "again", replay=draws))
    assert not (tmp_path / "again").exists()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x_draw.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(TrainingError, match=r"x_draw\.safetensors: found no readable record of a draw"):
        read_origin(path)


# Without any file


@pytest.mark.parametrize("index", [2, -1])
@pytest.mark.parametrize("key", ["map_index", "donor_index"])
def test_a_map_beyond_the_bank_is_refused(key: str, index: int) -> None:
    model = GenerativeModel(CONFIG, BANK)
    draw = model.draw(2, rng=seeded(1))
    wrong = draw._replace(anatomy=draw.anatomy._replace(**{key: torch.tensor([0, index])}))
    with pytest.raises(TrainingError, match=rf"draw: found {key} \[0, {index}\] for a bank of 2 maps"):
        model.apply(wrong)


@pytest.mark.parametrize(
    ("tensor", "stages"),
    [
        ("deformation.velocity_mm", {"deformation": DeformationPrior(svf_node_mm=3.0)}),
        ("bias.log_gain", {"bias": BiasPrior(node_mm=2.0)}),
    ],
)
def test_a_draw_of_another_grid_of_nodes_is_refused(tensor: str, stages: dict[str, Any]) -> None:
    draw = GenerativeModel(still((8, 9, 10), **stages), BANK).draw(1, rng=seeded(1))
    with pytest.raises(TrainingError, match=rf"draw: found {tensor} of shape"):
        GenerativeModel(CONFIG, BANK).apply(draw)


def test_every_tensor_of_a_draw_is_checked() -> None:
    model = GenerativeModel(CONFIG, BANK)
    draw = model.draw(2, rng=seeded(1))
    require_fit(model, draw)
    for name, stage in draw._asdict().items():
        for key, value in stage._asdict().items():
            if key == "map_index":
                continue  # its length is the batch that all the others must have
            wrong = draw._replace(**{name: stage._replace(**{key: value[:1]})})
            with pytest.raises(TrainingError, match=rf"draw: found {name}\.{key} of shape"):
                require_fit(model, wrong)


def test_a_joined_batch_of_other_draws_still_fits() -> None:
    model = GenerativeModel(CONFIG, BANK)
    require_fit(model, PairDraw.join([model.draw(2, rng=seeded(1)), model.draw(3, rng=seeded(2))]))
