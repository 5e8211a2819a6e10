"""A chain of networks from one file: a toy-size SynthSeg+ from end to end, stopped, resumed, and refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plus_helpers import SHIPPED
from synthseg.errors import ConfigError, TrainingError, UsageError
from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import load_protocol
from synthseg.networks import Encoder, UNet
from synthseg.networks.hierarchy import GroupsFirst, one_hot_argmax
from synthseg.training import Chain, ChainResult, Recipe, RunOptions, load_training, train_chain
from synthseg.training.__main__ import main
from synthseg.training.signals import StopOnSignal
from synthseg.training.tasks.groups import TissuesTask
from synthseg.weights import ROLES, build_network, load_weights, protocol_of, role_of, verify_weights
from training_helpers import assert_same_bits

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes" / "plus"
Command = Callable[..., tuple[int, str, str]]

STAGES = ("structures", "tissues", "denoiser", "guided", "parcels", "quality")
CHANNELS = {"structures": (1, 33), "tissues": (1, 5), "denoiser": (5, 5), "guided": (6, 33), "parcels": (3, 69)}
CHAIN = """
[[stages]]
name = "structures"
recipe = "parts/structures.toml"

[[stages]]
name = "tissues"
recipe = "parts/tissues.toml"
init = "stage:structures"

[[stages]]
name = "denoiser"
recipe = "parts/denoiser.toml"
weights = { tissues = "stage:tissues" }

[[stages]]
name = "guided"
recipe = "parts/guided.toml"
init = "stage:structures"
weights = { tissues = "stage:tissues", denoiser = "stage:denoiser" }

[[stages]]
name = "parcels"
recipe = "parts/parcels.toml"
changes = { optimizer = { learning_rate = 2e-3 } }

[[stages]]
name = "quality"
recipe = "parts/quality.toml"
weights = { structures = "stage:structures", tissues = "stage:tissues", guided = "stage:guided" }
"""


def toy_head(parcels: bool) -> np.ndarray:
    """A head of boxes, 8 mm a voxel: bone around two hemispheres of cortex, white matter, ventricles and deep grey."""
    values = np.zeros((20, 22, 20), dtype=np.int32)
    values[1:-1, 1:-1, 1:-1] = 515
    for side, x in ((0, slice(3, 10)), (1, slice(10, 17))):
        cortex, white, ventricle, thalamus, hippocampus, cerebellum = ((3, 2, 4, 10, 17, 8), (42, 41, 43, 49, 53, 47))[
            side
        ]
        values[x, 3:19, 5:18] = cortex
        if parcels:  # one half each of two parcels
            values[x, 3:11, 5:18], values[x, 11:19, 5:18] = (1024, 1028) if side == 0 else (2024, 2028)
        inner = slice(4, 10) if side == 0 else slice(10, 16)
        values[inner, 5:17, 7:16] = white
        values[inner, 9:13, 11:14] = ventricle
        values[inner, 9:13, 9:11] = thalamus
        values[inner, 7:9, 8:10] = hippocampus
        values[x, 3:8, 3:6] = cerebellum
    values[8:12, 8:11, 2:9] = 16
    return values


def write_stage(folder: Path, kind: str) -> None:
    """The recipe of one stage, for 16^3 voxels of 8 mm and networks of two levels."""
    inputs, outputs = CHANNELS.get(kind, (1, 33))
    patch = 2 if kind in ("tissues", "denoiser") else 1
    text = f"""
[task]
kind = "{kind}"
[data]
bank = "../{"parcels" if kind == "parcels" else "maps"}.safetensors"
[generation.grid]
shape = [16, 16, 16]
spacing_mm = 8.0
[network]
in_channels = {inputs}
out_channels = {outputs}
features = 4
levels = 2
patch = {patch}
norm = "instance"
[encoder]
features = 2
levels = 2
kernel = 3
expected_dice = true
[optimizer]
steps = {3 if kind == "guided" else 2}
learning_rate = 1e-3
loss = "dice_ce"
absent = "skip"
ema_decay = 0.5
seed = {STAGES.index(kind)}
[output]
name = "toy-{kind}"
checkpoint_minutes = 1000.0
log_every = 1
"""
    (folder / f"{kind}.toml").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks, recipes and the chain; nothing in it is changed by the tests."""
    folder = tmp_path_factory.mktemp("chain")
    for name, protocol in (("maps", "synthseg-generation"), ("parcels", "synthseg-generation-dk")):
        maps = [toy_head(name == "parcels"), toy_head(name == "parcels")[::-1].copy()]
        if name == "maps":
            maps[1] = toy_head(False)
        bank = LabelBank.from_maps(maps, [(8.0, 8.0, 8.0)] * 2, ["one", "two"], load_protocol(protocol))
        bank.save(folder / f"{name}.safetensors")
    (folder / "parts").mkdir()
    for kind in STAGES:
        write_stage(folder / "parts", kind)
    (folder / "toy.toml").write_text(CHAIN, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(yard: Path) -> Path:
    """The run folder of the chain, trained in one go."""
    result = run(yard / "toy.toml", yard / "whole")
    assert (result.finished, result.stage, result.step) == (True, "quality", 2)
    return yard / "whole"


@pytest.fixture
def copy(yard: Path, whole: Path, tmp_path: Path) -> Path:
    """A finished chain of one's own: recipes, banks and run folder, to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(yard, folder)
    assert whole.is_dir()
    return folder


def run(chain: Path, out: Path, **options: object) -> ChainResult:
    read = load_training(chain)
    assert isinstance(read, Chain)
    return train_chain(read, RunOptions(out=out, device="cpu", threads=1, **options))  # type: ignore[arg-type]


def weights_of(out: Path, stage: str) -> Path:
    return out / stage / f"toy-{stage}.safetensors"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# A whole chain


def test_every_stage_leaves_weights_of_its_role_that_build(whole: Path) -> None:
    for role in STAGES:
        weights = load_weights(weights_of(whole, role))
        assert role_of(weights.card) == role
        network = build_network(weights)
        assert isinstance(network, Encoder if role == "quality" else UNet)
        assert protocol_of(weights).name == {
            "tissues": "tissue-groups",
            "denoiser": "tissue-groups",
            "parcels": "desikan-killiany",
            "quality": "quality-groups",
        }.get(role, "synthseg-2.0")
        assert verify_weights(weights_of(whole, role)).checks
        assert weights.card["steps"] == (3 if role == "guided" else 2)
    assert set(STAGES) == set(ROLES)


def test_the_weights_of_a_chain_run_as_a_hierarchy(whole: Path) -> None:
    networks = {role: build_network(load_weights(whole / "weights" / f"toy-{role}.safetensors")) for role in STAGES}
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        robust = GroupsFirst(networks["tissues"], networks["denoiser"], networks["guided"])
        assert robust(image).shape == (1, 33, 16, 16, 16)
        cortex = torch.rand(1, 1, 16, 16, 16).round()
        assert networks["parcels"](torch.cat([image, 1 - cortex, cortex], 1)).shape == (1, 69, 16, 16, 16)
        groups = one_hot_argmax(torch.rand(1, 9, 16, 16, 16))
        assert networks["quality"](groups).shape == (1, 9)


def test_a_stage_is_made_from_the_weights_of_those_before_it(whole: Path) -> None:
    cards = {stage: load_weights(weights_of(whole, stage)).card for stage in STAGES}
    assert cards["tissues"]["started_from"]["sha256"] == cards["structures"]["sha256"]
    assert cards["structures"]["started_from"] is None
    for stage, roles in (("denoiser", ["tissues"]), ("quality", ["structures", "tissues", "guided"])):
        assert cards[stage]["inputs_from"] == {role: f"toy-{role} {cards[role]['sha256'][:12]}" for role in roles}
    assert cards["parcels"]["optimizer"]["learning_rate"] == 2e-3  # `changes`
    assert cards["quality"]["optimizer"]["learning_rate"] == 1e-3


def test_a_finished_chain_is_passed_over(whole: Path, yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    assert before
    result = run(yard / "toy.toml", whole, resume=True)
    assert result.finished
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == before
    said = capsys.readouterr().err
    assert len(re.findall(r"stage \d of 6, \w+: finished at step \d, passed over", said)) == 6
    assert result.weights == {stage: weights_of(whole, stage) for stage in STAGES}


# Stopped and resumed


def test_a_chain_stopped_again_and_again_ends_with_the_same_weights(
    yard: Path, whole: Path, tmp_path: Path, command: Command
) -> None:
    out, reached = tmp_path / "parts", []
    for minutes in [0] * 7 + [None]:
        more = ["--resume"] * bool(reached) + ["--max-minutes", minutes] * (minutes is not None)
        code, said, err = command("train", yard / "toy.toml", "-o", out, "--device", "cpu", "--threads", 1, *more)
        assert code == 0, err
        reached.append(said.splitlines()[0])
        assert ("chain stopped in stage" in err) == (minutes is not None)
    # one step a sitting; after a stage's last step the time is over before the next stage begins
    places = [("structures", 1), ("tissues", 0), ("tissues", 1), ("denoiser", 0), ("denoiser", 1), ("guided", 0)]
    stopped = "stopped early in stage {} (--resume goes on) at step {}"
    assert reached == [*(stopped.format(*place) for place in [*places, ("guided", 1)]), "finished at step 2"]
    for stage in STAGES:
        ours, theirs = load_weights(weights_of(out, stage)), load_weights(weights_of(whole, stage))
        assert_same_bits(ours.tensors, theirs.tensors)
        assert ours.card["sha256"] == theirs.card["sha256"]
        assert (out / "weights" / f"toy-{stage}.safetensors").read_bytes() == weights_of(out, stage).read_bytes()


def test_a_signal_in_a_stages_last_step_ends_the_chain_before_the_next(
    tmp_path: Path, yard: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = TissuesTask.prepare, []

    def prepare(self: TissuesTask, pair: Any, rngs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:  # the last step of the stage
            signal.raise_signal(signal.SIGTERM)
        return original(self, pair, rngs)

    monkeypatch.setattr(TissuesTask, "prepare", prepare)
    out = tmp_path / "run"
    assert main([str(yard / "toy.toml"), "-o", str(out), "--device", "cpu", "--threads", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any("stage 2 of 6, tissues: tissues.toml -> " in line for line in lines)
    assert lines[-1].endswith("chain stopped in stage denoiser at step 0; continue with --resume")
    assert load_weights(weights_of(out, "tissues")).card["steps"] == 2
    assert not (out / "denoiser").exists()


def test_a_wish_to_stop_reaches_the_one_around_and_the_one_begun_later() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as chain:
        with StopOnSignal() as first:
            signal.raise_signal(signal.SIGTERM)
        assert (first.asked, chain.asked) == (True, True)
        with StopOnSignal() as second:
            assert second.asked
    assert signal.getsignal(signal.SIGTERM) is before
    with StopOnSignal() as alone:
        assert not alone.asked


def test_weights_that_a_kill_kept_from_being_written_are_written_on_resumption(copy: Path) -> None:
    out = copy / "whole"
    expected = load_weights(weights_of(out, "denoiser")).card["sha256"]
    weights_of(out, "denoiser").unlink()  # the checkpoint of the last step is there
    assert run(copy / "toy.toml", out, resume=True).finished
    assert load_weights(weights_of(out, "denoiser")).card["sha256"] == expected


# Several processes


@pytest.mark.slow
def test_two_processes_train_a_chain_together(yard: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    for more in (["--max-minutes", "0"], ["--resume"]):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = str(server.getsockname()[1])
        path = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "synthseg.training", yard / "toy.toml", "-o", out, "--device", "cpu", *more]
        workers = [
            subprocess.Popen(
                command,
                env={
                    **os.environ,
                    "PYTHONPATH": path,
                    "OMP_NUM_THREADS": "1",
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    **place,
                },
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        try:
            said = [worker.communicate(timeout=600)[1] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        assert [worker.returncode for worker in workers] == [0, 0], said
        assert "stage" not in said[1]  # one process tells
        end = "stopped in stage structures at step 1" if "--resume" not in more else "chain finished"
        assert end in said[0].splitlines()[-1]
    for stage in STAGES:
        card = verify_weights(weights_of(out, stage)).checks and load_weights(weights_of(out, stage)).card
        assert card["samples"] == 2 * card["steps"]  # each process its own pair a step


# What has changed since


def test_a_stage_that_finished_by_another_recipe_is_told_with_file_and_key(copy: Path) -> None:
    edit(copy / "parts" / "denoiser.toml", "seed = 2", "seed = 7")
    message = r"denoiser.toml: optimizer.seed: found 7, but the stage finished with 2. Fix: set it back, or remove"
    with pytest.raises(ConfigError, match=message):
        run(copy / "toy.toml", copy / "whole", resume=True)
    edit(copy / "parts" / "denoiser.toml", "seed = 7", "seed = 2")
    edit(copy / "toy.toml", "2e-3", "3e-3")
    message = r"toy.toml: stages.parcels.optimizer.learning_rate: found 0.003, but the stage finished with 0.002"
    with pytest.raises(ConfigError, match=message):
        run(copy / "toy.toml", copy / "whole", resume=True)


def test_how_a_run_logs_may_change_and_more_steps_are_trained(copy: Path) -> None:
    edit(copy / "parts" / "quality.toml", "log_every = 1", "log_every = 2")
    assert run(copy / "toy.toml", copy / "whole", resume=True).finished
    edit(copy / "parts" / "quality.toml", "steps = 2", "steps = 3")
    result = run(copy / "toy.toml", copy / "whole", resume=True)
    assert (result.stage, result.step) == ("quality", 3)


def test_stages_are_not_left_on_weights_that_are_trained_further(copy: Path) -> None:
    edit(copy / "parts" / "tissues.toml", "steps = 2", "steps = 3")
    with pytest.raises(TrainingError, match=r"denoiser: found training begun with other weights of stage tissues"):
        run(copy / "toy.toml", copy / "whole", resume=True)
    assert load_weights(weights_of(copy / "whole", "tissues")).card["steps"] == 3
    for stage in ("denoiser", "guided", "quality"):
        shutil.rmtree(copy / "whole" / stage)
    assert run(copy / "toy.toml", copy / "whole", resume=True).finished


def test_a_stage_trained_again_to_the_same_bits_disturbs_nobody(copy: Path) -> None:
    shutil.rmtree(copy / "whole" / "tissues")
    assert run(copy / "toy.toml", copy / "whole", resume=True).finished


def test_a_stage_is_not_passed_over_when_the_chain_makes_it_from_other_weights(copy: Path) -> None:
    chain, out = copy / "toy.toml", copy / "whole"

    def refused(stage: str, message: str) -> None:
        with pytest.raises(
            TrainingError, match=rf"whole/{stage}: found training begun {message}.*remove .*/{stage} to"
        ):
            run(chain, out, resume=True)

    edit(chain, 'init = "stage:structures"', "")  # of the tissues
    refused("tissues", r"with weights for toy.toml: stages.tissues.init, which now names none")
    shutil.copy(weights_of(out, "parcels"), copy / "other.safetensors")
    edit(chain, 'name = "tissues"', 'name = "tissues"\ninit = "./other.safetensors"')
    refused("tissues", r"with other weights of '.*other.safetensors' than there are now")
    edit(chain, "./other.safetensors", "stage:structures")
    edit(chain, "changes = {", 'init = "stage:structures"\nchanges = {')
    refused("parcels", r"without weights for toy.toml: stages.parcels.init, which now names stage structures")
    edit(chain, 'init = "stage:structures"\nchanges = {', "changes = {")
    edit(chain, ', tissues = "stage:tissues", guided = "stage:guided" }', " }")
    refused("quality", r"with weights for quality.toml: task.weights.tissues, which now names none")
    edit(chain, 'structures = "stage:structures" }', 'tissues = "stage:tissues", guided = "stage:guided" }')
    refused("quality", r"with weights for quality.toml: task.weights.structures, which now names none")


def test_weights_from_elsewhere_may_move_but_not_be_replaced_under_their_name(copy: Path) -> None:
    chain, out, own = copy / "toy.toml", copy / "whole", copy / "own.safetensors"
    shutil.copy(weights_of(out, "structures"), own)
    edit(chain, 'init = "stage:structures"', 'init = "./own.safetensors"')
    edit(chain, 'structures = "stage:structures"', 'structures = "./own.safetensors"')
    assert run(chain, out, resume=True).finished  # the same bits
    shutil.rmtree(out / "structures")
    edit(copy / "parts" / "structures.toml", "seed = 0", "seed = 8")
    edit(chain, 'init = "stage:structures"', 'init = "./own.safetensors"')  # of the guided
    assert run(chain, out, resume=True).finished  # none is made from that stage any more
    shutil.copy(weights_of(out, "structures"), own)
    with pytest.raises(TrainingError, match=r"tissues: found training begun with other weights of '.*own.safetensors'"):
        run(chain, out, resume=True)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"weights": {"tissues": "0"}}, "a record of an earlier release, which does not list all weights"),
        ({"inputs": 3}, "a damaged record"),
        ([], "a damaged record"),
    ],
)
def test_a_record_that_does_not_say_what_a_stage_began_with_is_told(copy: Path, record: object, message: str) -> None:
    path = copy / "whole" / "denoiser" / "stage.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(TrainingError, match=rf"stage.json: found {message}.*Fix: remove .*denoiser to train .* or rem"):
        run(copy / "toy.toml", copy / "whole", resume=True)
    path.unlink()
    assert run(copy / "toy.toml", copy / "whole", resume=True).finished


def test_a_folder_in_use_and_weights_for_all_are_refused(yard: Path, whole: Path) -> None:
    with pytest.raises(TrainingError, match=r"checkpoints of an earlier run in structures, tissues, .*--resume"):
        run(yard / "toy.toml", whole)
    with pytest.raises(UsageError, match="--init: found a chain of several networks"):
        run(yard / "toy.toml", whole, resume=True, init="default")


# Files that are wrong


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
