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

import pytest
import torch

from chain_helpers import STAGES, edit, make_yard, run, weights_of
from synthseg.errors import ConfigError, TrainingError, UsageError
from synthseg.networks import Encoder, UNet
from synthseg.networks.hierarchy import GroupsFirst, one_hot_argmax
from synthseg.training.__main__ import main
from synthseg.training.signals import StopOnSignal
from synthseg.training.tasks.groups import TissuesTask
from synthseg.weights import ROLES, build_network, load_weights, protocol_of, role_of, verify_weights
from training_helpers import assert_same_bits

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes" / "plus"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks, recipes and the chain; nothing in it is changed by the tests."""
    return make_yard(tmp_path_factory.mktemp("chain"))


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
