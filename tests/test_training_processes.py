"""Real processes: signals, a bare machine, and several processes that train as one."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from synthseg.training.checkpoint import list_checkpoints
from synthseg.training.distributed import CrossProcessBatchNorm, share_batch_norm
from synthseg.training.validation import ValidationSet, channels_of
from synthseg.weights import load_weights
from training_helpers import head, run, save_bank, state_of, tiny_protocol, tiny_recipe

HERE = Path(__file__).resolve().parent
RECIPE = """
[data]
bank = "bank.safetensors"
validation = "validation.safetensors"
validate_every = 2
[generation.grid]
shape = [16, 16, 16]
[network]
features = 2
levels = 2
out_channels = 4
[optimizer]
steps = {steps}
learning_rate = 1e-2
loss = "dice_ce"
absent = "skip"
ema_decay = 0.9
[output]
name = "bare"
log_every = 1
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent / "src"), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def prepare(folder: Path, steps: int) -> Path:
    """A packed bank, a packed validation set and a recipe: what travels to a bare machine."""
    save_bank(folder)
    values = head((13, 18, 15))
    image, target = torch.rand(values.shape), torch.from_numpy(channels_of(values, tiny_protocol()))
    ValidationSet(("scan",), (image,), (target,), 1.0, (0, 2, 16, 41)).save(folder / "validation.safetensors")
    recipe = folder / "bare.toml"
    recipe.write_text(RECIPE.format(steps=steps), encoding="utf-8")
    return recipe


# A machine on which nothing but torch, numpy and safetensors is installed, as far as imports can tell.
BARE = textwrap.dedent(
    """
    import runpy, sys

    ABSENT = {"nibabel", "scipy", "cc3d", "typer", "click", "rich", "matplotlib", "nilearn", "tensorboard"}

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

        def __getattr__(self, name):
            return getattr(self.finder, name)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    for name in ABSENT:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{name} can be imported: the test tests nothing")
    sys.argv = ["synthseg.training", *sys.argv[1:]]
    runpy.run_module("synthseg.training", run_name="__main__", alter_sys=True)
    """
)


def test_training_needs_torch_numpy_and_safetensors_only(tmp_path: Path):
    recipe = prepare(tmp_path, steps=3)
    for more in ([], ["--resume"]):
        arguments = [
            str(recipe),
            "-o",
            str(tmp_path / "run"),
            "--max-minutes",
            "5",
            "--device",
            "cpu",
            "--threads",
            "1",
        ]
        done = subprocess.run(
            [sys.executable, "-c", BARE, *arguments, *more],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "finished at step 3" in done.stderr
    with (tmp_path / "run" / "log.csv").open(encoding="utf-8", newline="") as log:
        assert [row["step"] for row in csv.DictReader(log) if row["dice"]] == ["2", "3"]


def test_a_mistake_in_a_process_is_a_message_and_a_code(tmp_path: Path):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text('[data]\nbank = "b"\n[optimizer]\nstep = 3\n', encoding="utf-8")
    absent = tmp_path / "absent.toml"
    for path, more, word in ((recipe, [], "wrong.toml"), (absent, [], "absent.toml"), (recipe, ["-1"], "threads")):
        threads = ["--threads", *more] if more else []
        done = subprocess.run(
            [sys.executable, "-m", "synthseg.training", str(path), *threads],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert word in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_that_goes_on(tmp_path: Path, number: signal.Signals):
    recipe = prepare(tmp_path, steps=100_000)
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "synthseg.training", str(recipe), "-o", str(out), "--device", "cpu", "--threads", "1"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:  # wait until it trains
        said.append(line)
        if "step 3/" in line:
            process.send_signal(number)
            break
    said += process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 0
    assert "stopped; continue with --resume" in said[-1]
    newest = list_checkpoints(out)[-1]
    step = int(newest.name.removeprefix("step-"))
    assert load_weights(out / "bare.safetensors").card["steps"] == step >= 3
    from synthseg.training import load_recipe

    resumed = run(load_recipe(recipe), out, resume=True, max_minutes=0.0)
    assert resumed.step == step + 1
    steps = [line.split(",")[0] for line in (out / "log.csv").read_text().splitlines() if line.split(",")[1]]
    assert steps == ["step", *map(str, range(1, step + 2))]


# Several processes

WORKER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from training_helpers import cut, run
    from test_training_processes import shared_recipe

    folder, case, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    recipe = cut(shared_recipe(folder, case, world=2), int(sys.argv[4]))
    result = run(recipe, out, resume=True)
    print(result.step, result.weights)
    """
)
CASES: dict[str, dict[str, Any]] = {
    "plain": {"loss": "dice", "absent": "count"},
    "accumulated, clipped, averaged, resumed": {"accumulate": 2, "clip_norm": 0.5, "ema_decay": 0.9},
    "warm-up loss": {"wl2_steps": 4},
}


def shared_recipe(folder: Path, case: str, *, world: int) -> Any:
    """The same elements for one process (with a batch twice as large) as for two."""
    batch = 2 // world
    return tiny_recipe(
        folder,
        data={"validation": "validation.safetensors", "validate_every": 2},
        optimizer={**CASES[case], "batch": batch, "steps": 4, "learning_rate": 1e-3},
    )


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_two(folder: Path, case: str, out: Path, steps: int) -> list[str]:
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), case, str(out), str(steps)],
            env=environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], said
    return [out.strip() for out, _ in said]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path, case: str):
    prepare(tmp_path, steps=1)
    if "resumed" in case:
        run_two(tmp_path, case, tmp_path / "two", steps=2)
    said = run_two(tmp_path, case, tmp_path / "two", steps=4)  # with validation: a deadlock would meet its time limit
    run(shared_recipe(tmp_path, case, world=1), tmp_path / "one")
    two, one = state_of(tmp_path / "two"), state_of(tmp_path / "one")
    assert said == [f"4 {tmp_path / 'two' / 'synthseg.safetensors'}", "4 None"]  # one process writes
    assert two[1]["progress"]["samples"] == one[1]["progress"]["samples"]
    assert two[0].keys() == one[0].keys()
    for name, tensor in one[0].items():
        # float32 sums in another order: 2e-7 apart as measured; 7e-3 without batch norm across processes
        torch.testing.assert_close(two[0][name], tensor, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_batch_norm_across_one_process_is_batch_norm(tmp_path: Path):
    # gloo with a world of one, in this process: the formula, its gradient and its running statistics.
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = nn.BatchNorm3d(3, eps=1e-3, momentum=0.01)
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
        shared = nn.BatchNorm3d(3, eps=1e-3, momentum=0.01)
        shared.load_state_dict(plain.state_dict())
        share_batch_norm(shared)
        assert isinstance(shared, CrossProcessBatchNorm)
        x = torch.randn(2, 3, 4, 5, 6) * 2 + 1
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        weight = torch.randn_like(x)
        for module, given in zip((plain, shared), inputs, strict=True):
            (module(given) * weight).sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shared.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(shared.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shared.eval()(x), plain.eval()(x))
    finally:
        torch.distributed.destroy_process_group()
