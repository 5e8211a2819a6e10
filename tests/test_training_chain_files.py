"""The file of a chain: how it is read, and what is said of one that is wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chain_helpers import CHAIN, edit, make_yard, run
from plus_helpers import SHIPPED
from synthseg.errors import ConfigError
from synthseg.training import Chain, Recipe, load_training
from synthseg.weights import ROLES

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes" / "plus"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks, recipes and the chain; nothing in it is changed by the tests."""
    return make_yard(tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('recipe = "parts/tissues.toml"', 'recipe = "parts/t.toml"', r"toy.toml: stages.tissues.recipe: found no file"),
        ('"stage:tissues" }', '"stage:tisues" }', r"stages.denoiser.weights.tissues: found an unknown stage 'tisues'"),
        ('"stage:tissues" }', '"stage:guided" }', r"denoiser.weights.tissues: found the stage 'guided', which is not"),
        (
            'init = "stage:structures"',
            'init = "stage:tissues"',
            r"tissues.init: found the stage 'tissues', which is not",
        ),
        ('init = "stage:structures"', 'init = "structures"', r'tissues.init: .*write init = "stage:structures"'),
        (
            "weights = { tissues",
            "weights = { tisues",
            r"stages.denoiser.weights: found unknown key 'tisues'.*mean 'tissues'",
        ),
        ("changes = { optimizer", "changes = { optimiser", r"stages.parcels.changes: found unknown key 'optimiser'"),
        ("{ learning_rate = 2e-3 }", "{ learning_rate = -1.0 }", r"optimizer.learning_rate: found -1.0"),
        ("changes = { optimizer = { learning_rate = 2e-3 } }", "changes = 3", r"stages.parcels.changes: found 3"),
        ('name = "tissues"', 'name = "structures"', r"found a second stage of the name 'structures'"),
        ('name = "tissues"', 'name = "a/b"', r"found 'a/b'.*it becomes a folder"),
        ('name = "tissues"', 'name = "weights"', r"found 'weights'.*it becomes a folder"),
        ('name = "tissues"', 'nam = "tissues"', r"stages.1: found unknown key 'nam'. Fix: did you mean 'name'"),
        ('[[stages]]\nname = "structures"', '[x]\n[[stages]]\nname = "structures"', r"toy.toml: found unknown key 'x'"),
        ("parts/tissues.toml", "parts/structures.toml", r"output.name: found 'toy-structures', the name of an earlier"),
        ("parts/tissues.toml", "toy.toml", r"stages.tissues.recipe: found a chain, toy.toml"),
    ],
)
def test_a_chain_that_cannot_be_trained_is_one_message(
    yard: Path, tmp_path: Path, command: Command, old: str, new: str, message: str
) -> None:
    shutil.copytree(yard / "parts", tmp_path / "parts")
    (tmp_path / "toy.toml").write_text(CHAIN, encoding="utf-8")
    edit(tmp_path / "toy.toml", old, new)
    code, _, err = command("train", tmp_path / "toy.toml", "-o", tmp_path / "run")
    assert code == 2
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("parts/quality.toml", "maps.safe", "gone.safe", r"quality.toml: data.bank: found no file .*gone.safetensors"),
        (
            "toy.toml",
            'init = "stage:structures"',
            'init = "nope"',
            r"toy.toml: stages.tissues.init: found 'nope': no weig",
        ),
        (
            "toy.toml",
            '"stage:guided" }',
            '"x/y.safetensors" }',
            r"toy.toml: stages.quality.weights.guided: found .*no such",
        ),
    ],
)
def test_what_a_later_stage_lacks_is_told_before_the_first(
    yard: Path, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    shutil.copytree(yard / "parts", tmp_path / "parts")
    for bank in yard.glob("*.safetensors"):
        shutil.copy(bank, tmp_path)
    (tmp_path / "toy.toml").write_text(CHAIN, encoding="utf-8")
    edit(tmp_path / file, old, new)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "toy.toml", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_a_stages_recipe_is_told_with_the_recipes_name(yard: Path, tmp_path: Path) -> None:
    shutil.copytree(yard / "parts", tmp_path / "parts")
    (tmp_path / "toy.toml").write_text(CHAIN, encoding="utf-8")
    edit(tmp_path / "parts" / "guided.toml", "steps = 3", "stepps = 3")
    with pytest.raises(ConfigError, match=r"guided.toml.optimizer: found unknown key 'stepps'"):
        load_training(tmp_path / "toy.toml")


def test_a_recipe_is_read_as_before(yard: Path) -> None:
    recipe = load_training(yard / "parts" / "guided.toml")
    assert isinstance(recipe, Recipe)
    assert recipe.task.kind == "guided"


def test_paths_in_a_chain_count_from_its_own_folder(yard: Path, tmp_path: Path) -> None:
    shutil.copytree(yard / "parts", tmp_path / "parts")
    text = CHAIN.replace('"stage:structures"', '"./mine.safetensors"').replace('"stage:guided"', '"up/g.safetensors"')
    (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
    chain = load_training(tmp_path / "toy.toml")
    assert isinstance(chain, Chain)
    stages = {stage.name: stage for stage in chain.stages}
    assert stages["tissues"].init == str(tmp_path / "mine.safetensors")
    assert stages["quality"].recipe.task.weights.guided == str(tmp_path / "up" / "g.safetensors")
    assert stages["quality"].needs == {"tissues": "tissues"}


def test_the_shipped_chain_trains_the_five_networks_of_synthseg_plus() -> None:
    chain = load_training(RECIPES / "chain.toml")
    assert isinstance(chain, Chain)
    assert {stage.name: stage.recipe.task.kind for stage in chain.stages} == {r: r for r in ROLES[1:]}
    for stage in chain.stages:
        assert stage.recipe.output.name == SHIPPED[stage.name]
        roles = {
            "denoiser": ["tissues"],
            "guided": ["tissues", "denoiser"],
            "quality": ["tissues", "denoiser", "guided"],
        }
        assert stage.needs == {role: role for role in roles.get(stage.name, [])}
        assert stage.init is None or stage.init in ("default", "compact")
