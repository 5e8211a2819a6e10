"""The original's prior and class files in a recipe: what they mean, what is refused, that they are needed only once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import stats

from conftest import shared_dir
from generation_helpers import blobby_map, seeded, small_bank, still
from synthseg.configs import config_from_dict, config_to_dict
from synthseg.errors import ConfigError, LabelError
from synthseg.generation import GenerativeModel, LabelBank
from synthseg.generation.config import GenerationConfig, GridPrior, MixturePrior
from synthseg.generation.intensity import MixtureDraw, draw_mixture
from synthseg.generation.replay import read_origin
from synthseg.labels import load_protocol
from synthseg.training.recipe import generation_config, load_recipe
from synthseg.weights import load_weights, protocol_of
from training_helpers import state_of

Command = Callable[..., tuple[int, str, str]]
GRID = GridPrior(shape=(8, 8, 8))
DRAWS = 4000


def mixture(folder: Path, **keys: Any) -> MixturePrior:
    """The mixture of a recipe in ``folder``, on top of the preset ``original``."""
    return generation_config({"preset": "original", "mixture": keys}, where="r.toml", folder=folder).mixture


def save(folder: Path, **arrays: Any) -> Path:
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", np.array(values))
    return folder


def drawn(prior: MixturePrior, classes: int, batch: int = DRAWS) -> MixtureDraw:
    """Draws without the background's own rule."""
    plain = dataclasses.replace(prior, background_zero_probability=0, background_dark_probability=0)
    left = torch.arange(classes)
    return draw_mixture(plain, left, GRID, torch.zeros(batch, dtype=torch.bool), rng=seeded(3))


def assert_normal(values: torch.Tensor, mean: float, std: float) -> None:
    assert stats.kstest(values.numpy(), "norm", (mean, std)).pvalue > 1e-4


def assert_uniform(values: torch.Tensor, low: float, high: float) -> None:
    assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-4


# What the files mean


def test_two_rows_are_means_and_deviations_of_normal_priors(tmp_path: Path) -> None:
    save(tmp_path, m=[[50, 100, 200], [5, 10, 1]], s=[[20, 30, 40], [1, 2, 3]])
    prior = mixture(tmp_path, kind="normal", means="m.npy", stds="s.npy")
    assert prior.class_means == ((50, 5), (100, 10), (200, 1))
    assert prior.class_stds == ((20, 1), (30, 2), (40, 3))
    draw = drawn(prior, 3)
    for k, (mean, std) in enumerate([(50, 5), (100, 10), (200, 1)]):
        assert_normal(draw.means[:, k], mean, std)
    for k, (mean, std) in enumerate([(20, 1), (30, 2), (40, 3)]):
        assert_normal(draw.stds[:, k], mean, std)


def test_two_rows_are_lowest_and_highest_of_uniform_priors(tmp_path: Path) -> None:
    save(tmp_path, m=[[50, 100, -60], [60, 100, 60]], s=[[1, 2, 3], [2, 3, 4]])
    draw = drawn(mixture(tmp_path, kind="uniform", means="m.npy", stds="s.npy"), 3)
    assert_uniform(draw.means[:, 0], 50, 60)
    assert draw.means[:, 1].unique().tolist() == [100]
    below = draw.means[:, 2]  # negative draws become 0, as in the original
    assert float((below == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert_uniform(below[below > 0], 0, 60)
    for k in range(3):
        assert_uniform(draw.stds[:, k], k + 1, k + 2)


def test_more_rows_are_alternatives_means_and_stds_on_their_own(tmp_path: Path) -> None:
    save(tmp_path, m=[[10, 11], [0, 0], [50, 51], [0, 0], [90, 91], [0, 0]], s=[[1, 2], [0, 0], [5, 6], [0, 0]])
    draw = drawn(mixture(tmp_path, kind="normal", means="m.npy", stds="s.npy"), 2)
    seen, counts = torch.cat([draw.means, draw.stds], 1).unique(dim=0, return_counts=True)
    pairs = [(10, 11), (50, 51), (90, 91)]
    assert {tuple(row) for row in seen.tolist()} == {(*m, *s) for m in pairs for s in ((1, 2), (5, 6))}
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_two_numbers_and_one_number_are_for_all_classes(tmp_path: Path) -> None:
    assert mixture(tmp_path, means=[25, 225], stds=[5, 25]) == mixture(
        tmp_path, mean_range=[25.0, 225.0], std_range=[5.0, 25.0]
    )
    save(tmp_path, m=[25, 225], b=125, c=100.0)
    assert mixture(tmp_path, means="m.npy").mean_range == (25, 225)
    assert mixture(tmp_path, means="b.npy", stds=15) == mixture(tmp_path)  # the original's defaults, 125 -+ 125
    assert mixture(tmp_path, means="c.npy", stds=10).mean_range == (25, 225)
    assert mixture(tmp_path, means=100, stds=10).std_range == (5, 25)
    assert mixture(tmp_path, means=None, stds=None) == mixture(tmp_path)
    draw = drawn(mixture(tmp_path, kind="normal", means=[100, 7], stds=[20, 2]), 5)
    for k in range(5):
        assert_normal(draw.means[:, k], 100, 7)
        assert_normal(draw.stds[:, k], 20, 2)
    assert float(torch.corrcoef(draw.means.T)[0, 1]) == pytest.approx(0, abs=0.08)  # classes on their own


def test_a_preset_with_class_priors_can_go_back_to_ranges(tmp_path: Path) -> None:
    values = {"preset": "t1", "mixture": {"kind": "uniform", "means": [10, 20], "stds": [1, 2]}}
    config = generation_config(values, folder=tmp_path).mixture
    assert (config.class_means, config.class_stds, config.mean_range) == ((), (), (10.0, 20.0))


@pytest.mark.parametrize("given", [[400, 401], 1])
def test_what_is_given_for_all_classes_is_mixed_with_the_defaults_too(tmp_path: Path, given: Any) -> None:
    """Reference 2.3, step 0'.3: the default pair takes the place of the supplied prior, whatever form that has."""
    prior = mixture(tmp_path, means=given, stds=given if given == 1 else [50, 51], mix_probability=0.5)
    assert (prior.mean_range, prior.std_range) == ((0, 250), (0, 30))
    draw = draw_mixture(prior, torch.arange(4), GRID, torch.zeros(400, dtype=torch.bool), rng=seeded(5))
    low, high = (400, 401) if given != 1 else (124, 126)
    supplied = ((draw.means >= low) & (draw.means <= high))[:, 1:].all(1)
    assert 0.4 < supplied.double().mean() < 0.6
    assert (draw.means[~supplied][:, 1:] <= 250).all()
    low, high = (50, 51) if given != 1 else (14, 16)
    deviations = ((draw.stds >= low) & (draw.stds <= high))[:, 1:].all(1)
    assert 0.4 < deviations.double().mean() < 0.6
    assert 0.4 < (supplied == deviations).double().mean() < 0.6  # on their own


def test_half_of_the_draws_may_take_the_ranges_instead(tmp_path: Path) -> None:
    save(tmp_path, m=[[300, 300], [0, 0]], s=[[400, 400], [0, 0]])
    prior = mixture(tmp_path, kind="normal", means="m.npy", stds="s.npy", mix_probability=0.5)
    draw = drawn(prior, 2)
    means, deviations = (draw.means == 300).all(1), (draw.stds == 400).all(1)
    assert ((draw.means == 300).any(1) == means).all()  # all classes of a draw together
    table = [[int((means & deviations).sum()), int((means & ~deviations).sum())]]
    table += [[int((~means & deviations).sum()), int((~means & ~deviations).sum())]]
    assert stats.chisquare(np.ravel(table)).pvalue > 1e-4  # four equal shares: means and stds separately
    assert_uniform(draw.means[~means][:, 1], 0, 250)
    assert_uniform(draw.stds[~deviations][:, 0], 0, 30)


def test_what_is_off_leaves_a_seeds_draws_as_they_were() -> None:
    means, stds = ((10.0, 2.0), (90.0, 5.0)), ((5.0, 1.0), (9.0, 1.0))
    prior = MixturePrior(kind="normal", class_means=means, class_stds=stds)
    draw, rng = drawn(prior, 2, 4), seeded(3)
    for values, hyper in ((draw.means, means), (draw.stds, stds)):
        expected = torch.tensor(hyper)[:, 0] + torch.tensor(hyper)[:, 1] * torch.randn(4, 2, generator=rng)
        torch.testing.assert_close(values, expected.clamp(min=0), rtol=0, atol=0)
    one_list = dataclasses.replace(prior, class_means=(means,), class_stds=(stds,))
    assert torch.equal(drawn(one_list, 2, 4).means, draw.means)


def test_the_published_t1_files_are_the_preset_t1(tmp_path: Path) -> None:
    folder = shared_dir()
    if folder is None:
        pytest.skip("no real data: set SYNTHSEG_SHARED to the folder that holds data/")
    arrays = json.loads((folder / "data" / "training" / "tables" / "all_arrays.json").read_text(encoding="utf-8"))
    for name in ("prior_means_t1", "prior_stds_t1", "generation_classes_contrast_specific"):
        np.save(tmp_path / f"{name}.npy", np.array(arrays[name]))
    keys = {"kind": "normal", "means": "prior_means_t1.npy", "stds": "prior_stds_t1.npy"}
    given = generation_config(
        {"mixture": {**keys, "classes": "generation_classes_contrast_specific.npy"}}, folder=tmp_path
    )
    named = generation_config({"preset": "t1"})
    for key in ("class_means", "class_stds"):
        np.testing.assert_array_equal(getattr(given.mixture, key), getattr(named.mixture, key))
    ours, theirs = (GenerativeModel(config, small_bank()).draw(2, rng=seeded(1)) for config in (given, named))
    torch.testing.assert_close(ours.mixture, theirs.mixture, rtol=0, atol=0)


# Classes


def test_a_class_file_takes_the_place_of_the_tables_column(tmp_path: Path) -> None:
    classes = [0, *(1 + n % 3 for n in range(53))]
    save(tmp_path, classes=classes)
    prior = mixture(tmp_path, classes="classes.npy")
    assert prior.label_classes == tuple(classes)
    config = still(shape=(16, 16, 16), mixture=dataclasses.replace(prior, std_range=(0, 0)))
    model = GenerativeModel(config, small_bank())
    draw = model.draw(1, rng=seeded(0))
    assert draw.mixture.means.shape == (1, 4)
    labels, image = model.mixture(draw)
    expected = draw.mixture.means[0][torch.tensor(classes)[labels]]
    torch.testing.assert_close(image[:, 0], expected)


def test_a_class_file_must_fit_the_label_table(tmp_path: Path) -> None:
    save(tmp_path, few=[0, 1, 2], gap=[0, 2, 2], odd=[0, 0.5])
    with pytest.raises(ConfigError, match=r"label_classes: found 3 classes for the 54 labels of synthseg-generation"):
        GenerativeModel(GenerationConfig(mixture=mixture(tmp_path, classes="few.npy")), small_bank())
    with pytest.raises(ConfigError, match=r"label_classes: found \(0, 2, 2\).*without gaps"):
        mixture(tmp_path, classes="gap.npy")
    with pytest.raises(LabelError, match=r"odd\.npy: found entry 1: 0\.5"):
        mixture(tmp_path, classes="odd.npy")
    with pytest.raises(ConfigError, match=r"gone\.npy: found no readable file"):
        mixture(tmp_path, classes="gone.npy")


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_priors_for_another_number_of_classes_are_refused(tmp_path: Path, kind: str) -> None:
    save(tmp_path, m=[[1, 2, 3], [4, 5, 6]])
    config = GenerationConfig(mixture=mixture(tmp_path, kind=kind, means="m.npy", stds="m.npy"))
    with pytest.raises(ConfigError, match=r"class_means: found 3 classes.*each of the 48 classes of column 'random'"):
        GenerativeModel(config, small_bank())


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, 3], r"m\.npy: found an array of shape \[3\]"),
        ([[1, 2], [3, 4], [5, 6]], r"m\.npy: found an array of shape \[3, 2\]"),
        ([[[1, 2], [3, 4]]], r"m\.npy: found an array of shape \[1, 2, 2\]"),
        ([], r"m\.npy: found an array of shape \[0\]"),
        ([[], []], r"m\.npy: found an array of shape \[2, 0\]"),
        ([[1, 2], [3, np.nan]], r"m\.npy: found nan at \[1, 1\]"),
        ([[1, np.inf], [3, 4]], r"m\.npy: found inf at \[0, 1\]"),
        ([["a", "b"], ["c", "d"]], r"m\.npy: found values of type <U1"),
        ([[1, 20], [3, 4]], r"m\.npy: found class 1: 20 and 4 in rows 0 and 1.*need kind = \"normal\""),
        ([[1, 2], [3, 4], [1, 9], [3, 4]], r"m\.npy: found class 1: 9 and 4 in rows 2 and 3"),
        (126, r"m\.npy: found 126, a half width around 125"),
        (-1, r"m\.npy: found -1, a half width"),
    ],
)
def test_arrays_that_mean_nothing_are_refused(tmp_path: Path, values: Any, message: str) -> None:
    save(tmp_path, m=values)
    with pytest.raises(ConfigError, match=message):
        mixture(tmp_path, means="m.npy")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "normal", "means": 10, "stds": [1, 1]}, r"means: found the single number 10 for normal"),
        ({"kind": "normal", "means": [[1, -2], [1, 1]], "stds": [1, 1]}, r"means: found class 1: -2 and 1"),
        ({"kind": "normal", "means": [[1, 2], [1, 1]]}, r"mixture\.class_means: found .*for means and stds"),
        ({"kind": "normal", "means": [[1, 2], [1, 1]], "stds": [[1] * 3] * 2}, r"mixture\.class_means: found"),
        ({"means": [1, 2], "mean_range": [1, 2]}, r"mixture\.means: found \[1, 2\] beside mean_range"),
        ({"stds": [1, 2], "class_stds": [[1, 2]]}, r"mixture\.stds: found \[1, 2\] beside class_stds"),
        ({"means": True}, r"r\.toml: generation\.mixture\.means: found True"),
        ({"means": {"a": 1}}, r"mixture\.means: found \{'a': 1\}"),
        ({"means": [[1, 2], [3]]}, r"mixture\.means: found .*rows of the same length"),
        ({"class_means": [[[1, 2]], [[1, 2], [3, 4]]]}, r"class_means: found .*same number of classes"),
        ({"class_means": [[]]}, r"mixture\.class_means: found"),
        ({"class_means": [[3.0, 2.0]]}, r"mixture\.class_means\[0\]: found \(3\.0, 2\.0\).*lowest <= highest"),
        ({"class_means": [[[1, 2]], [[4, 3]]]}, r"mixture\.class_means\[1\]\[0\]: found \(4\.0, 3\.0\)"),
        ({"mix_probability": 1.5}, r"mixture\.mix_probability: found 1\.5"),
    ],
)
def test_keys_that_mean_nothing_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(tmp_path, **keys)


def test_a_pickled_prior_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"m\.npy: found pickled objects"):
        mixture(tmp_path, means="m.npy")


def test_numbers_read_from_files_survive_json(tmp_path: Path) -> None:
    save(tmp_path, m=[[10, 11], [0, 0], [50, 51], [0, 0]], s=[[1, 2], [0, 0]], c=[0, 1])
    prior = mixture(tmp_path, kind="normal", means="m.npy", stds="s.npy", classes="c.npy")
    config = GenerationConfig(mixture=prior)
    plain = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(GenerationConfig, plain, where="x") == config


# From the original's files to pairs and weights

RECIPE = """
[data]
bank = "../bank.safetensors"
[generation]
preset = "original"
[generation.grid]
shape = [16, 16, 16]
[generation.mixture]
kind = "normal"
means = "../lists/prior_means.npy"
stds = "../lists/prior_stds.npy"
classes = "../lists/generation_classes_contrast_specific.npy"
mix_probability = 0.5
[network]
features = 4
levels = 2
out_channels = 8
[optimizer]
steps = 2
learning_rate = 0.01
[output]
name = "mine"
"""
VALUES = [0, 16, 24, 507, 511, 514, 515, 2, 3, 4, 10, 17, 25, 41, 42, 43, 49, 53, 57]  # of `blobby_map`: 7 neutral
TARGETS = [0, 16, 0, 0, 0, 0, 0, 2, 3, 0, 0, 17, 2, 41, 42, 0, 0, 53, 41]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Label maps in FreeSurfer's values, and the original's lists for them."""
    (tmp_path / "maps").mkdir()
    for seed in (0, 1):
        image = nib.Nifti1Image(blobby_map((24, 26, 28), seed), np.eye(4))
        nib.save(image, tmp_path / "maps" / f"head{seed}.nii.gz")
    lists = tmp_path / "lists"
    lists.mkdir()
    half = [7 + k for k in range(6)]
    save(
        lists,
        generation_labels=VALUES,
        generation_classes=list(range(19)),
        generation_classes_contrast_specific=[*range(7), *half, *half],
        synthseg_segmentation_labels=TARGETS,
        prior_means=[[7, *range(20, 260, 20)], [2.0] * 13],
        prior_stds=[[5.0] * 13, [1.0] * 13],
    )
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def test_the_originals_files_train_and_what_comes_out_needs_them_no_more(command: Command, place: Path) -> None:
    code, out, err = command("bank", place / "maps", "-o", place / "bank.safetensors", "--protocol", place / "lists")
    assert code == 0, err
    assert "protocol lists" in out
    bank = LabelBank.load(place / "bank.safetensors")
    assert bank.protocol.labels == load_protocol(place / "lists").labels
    code, _, err = command(
        "train", place / "recipes" / "mine.toml", "-o", place / "run", "--device", "cpu", "--threads", 1
    )
    assert code == 0, err
    weights = load_weights(str(place / "run" / "mine.safetensors"))
    assert protocol_of(weights).values.tolist() == sorted(set(TARGETS))
    stored = state_of(place / "run")[1]["recipe"]["generation"]["mixture"]
    assert (len(stored["class_means"]), len(stored["label_classes"]), stored["mix_probability"]) == (13, 19, 0.5)
    assert "npy" not in json.dumps(stored)
    # Other numbers in the files are another recipe: going on with them is told.
    np.save(place / "lists" / "prior_means.npy", np.full((2, 13), 3.0))
    code, out, err = command(
        "train", place / "recipes" / "mine.toml", "-o", place / "run", "--resume", "--device", "cpu"
    )
    assert "class_means" in out + err


def test_the_originals_files_generate_pairs_that_can_be_told_apart(command: Command, place: Path) -> None:
    out = place / "pairs"
    options = ("--recipe", place / "recipes" / "mine.toml", "-n", 2, "--no-figure", "--device", "cpu")
    code, _, err = command("generate", place / "maps", "-o", out, "--protocol", place / "lists", *options)
    assert code == 0, err
    labels = np.asarray(nib.load(out / "pair_0000_labels.nii.gz").dataobj)
    assert set(np.unique(labels)) <= set(TARGETS)
    origin = read_origin(out / "pair_0000_draw.safetensors")
    assert origin is not None
    assert origin["config"]["mixture.class_means"][1] == [20.0, 2.0]
    replayed = (*options[:2], "--no-figure", "--replay", out / "pair_0001_draw.safetensors")
    code, _, err = command("generate", place / "maps", "-o", place / "again", "--protocol", place / "lists", *replayed)
    assert code == 0, err
    before, after = (nib.load(folder / "pair_0001_image.nii.gz").get_fdata() for folder in (out, place / "again"))
    np.testing.assert_array_equal(before, after)
    # One list alone: every label is a target.
    one = place / "lists" / "generation_labels.npy"
    code, _, err = command("generate", place / "maps", "-o", place / "one", "--protocol", one, *options)
    assert code == 0, err
    assert set(np.unique(nib.load(place / "one" / "pair_0000_labels.nii.gz").dataobj)) - set(TARGETS)


def test_paths_start_from_the_recipes_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "maps")
    prior = load_recipe(place / "recipes" / "mine.toml").generation.mixture
    assert prior.class_means[1] == (20.0, 2.0)
    (place / "lists" / "prior_means.npy").unlink()
    with pytest.raises(ConfigError, match=r"prior_means\.npy: found no readable file"):
        load_recipe(place / "recipes" / "mine.toml")
