"""A tiny bank, recipe and task: what the training tests share. One thread, so that sums have one order."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthseg.generation.bank import LabelBank
from synthseg.labels.label import Label
from synthseg.labels.protocol import LabelProtocol
from synthseg.training import Recipe, RunOptions, RunResult, recipe_from_dict, train
from synthseg.training.checkpoint import list_checkpoints, read_shards

torch.set_num_threads(1)

SIDE = 16


def tiny_protocol(name: str = "tiny") -> LabelProtocol:
    """Background, skull (no target), left and right matter, brain-stem: four output channels 0, 2, 16, 41."""

    def row(value: int, title: str, side: str, partner: int, gaussian: int, target: int) -> Label:
        return Label(value, title, side, partner, gaussian, min(gaussian, 3), target, 0, 0, (value % 256, 1, 2))

    return LabelProtocol(
        name,
        "five labels",
        (
            row(0, "background", "neutral", 0, 0, 0),
            row(16, "brain-stem", "neutral", 16, 1, 16),
            row(515, "bone", "neutral", 515, 2, 0),
            row(2, "left matter", "left", 41, 3, 2),
            row(41, "right matter", "right", 2, 4, 41),
        ),
    )


def head(size: tuple[int, int, int] = (20, 24, 22)) -> np.ndarray:
    """A box head of label values: bone around left and right matter, with a stem below."""
    x, y, z = size
    values = np.zeros(size, dtype=np.int32)
    values[2:-2, 2:-2, 2:-2] = 515
    values[3 : x // 2, 4:-4, 5:-3] = 2
    values[x // 2 : x - 3, 4:-4, 5:-3] = 41
    values[x // 2 - 2 : x // 2 + 2, y // 2 - 2 : y // 2 + 2, 3 : z // 2] = 16
    return values


def save_bank(folder: Path, protocol: LabelProtocol | None = None) -> Path:
    """Two maps in ``folder/bank.safetensors``."""
    maps, spacings = [head(), head((22, 20, 24))], [(1.0, 1.0, 1.0)] * 2
    return LabelBank.from_maps(maps, spacings, ["one", "two"], protocol or tiny_protocol()).save(
        folder / "bank.safetensors"
    )


def tiny_recipe(folder: Path, **changes: dict[str, Any]) -> Recipe:
    """A recipe for a 16^3 grid and a network of two levels; ``changes`` are keys by table."""
    if not (folder / "bank.safetensors").exists():
        save_bank(folder)
    values: dict[str, dict[str, Any]] = {
        "data": {"bank": "bank.safetensors"},
        "generation": {"grid": {"shape": [SIDE] * 3}},
        "network": {"features": 4, "levels": 2, "out_channels": 4},
        "optimizer": {"steps": 6, "learning_rate": 1e-2, "loss": "dice_ce", "absent": "skip", "seed": 5},
        "output": {"checkpoint_minutes": 1000.0, "log_every": 1},
    }
    for table, keys in changes.items():
        values[table] = {**values[table], **keys}
    return recipe_from_dict(values, where="recipe.toml", folder=str(folder))


def run(recipe: Recipe, out: Path, **options: Any) -> RunResult:
    """Train on the CPU."""
    task_of = options.pop("task_of", None)
    given = RunOptions(out=out, device="cpu", **options)
    return train(recipe, given) if task_of is None else train(recipe, given, task_of)


def cut(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe with its end moved: for schedules that do not look at the end, the same first steps."""
    return dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, steps=steps))


def state_of(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and index of a run's newest checkpoint."""
    return read_shards(list_checkpoints(out)[-1], format_name="synthseg-checkpoint-1")


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == []


class LinearTask:
    """A network without batch norm that learns fixed random pictures: element e of step s is always the same."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.seen: list[tuple[int, list[int]]] = []

    def build_network(self) -> nn.Module:
        return nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ELU(), nn.Conv3d(3, 2, 1))

    def batch(self, step: int, elements: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.seen.append((step, list(elements)))
        pairs = []
        for element in elements:
            rng = torch.Generator().manual_seed(1000 * step + element)
            pairs.append((torch.rand(1, 4, 4, 4, generator=rng), torch.rand(2, 4, 4, 4, generator=rng)))
        images, targets = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(targets)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:  # noqa: ARG002
        return (network(batch[0]) - batch[1]).square().mean()

    def validate(self, network: nn.Module) -> dict[str, float]:  # noqa: ARG002
        return {}

    @property
    def output_protocol(self) -> LabelProtocol:
        return tiny_protocol()

    def card(self, facts: dict[str, Any]) -> dict[str, Any]:
        rows = {"name": "tiny", "description": "", "rows": tiny_protocol().to_rows()}
        return {
            "name": "linear",
            "architecture": {"kind": "linear"},
            "spacing_mm": 1.0,
            "protocol": rows,
            "data": None,
            "licence": None,
            **facts,
        }


def quiet() -> io.StringIO:
    """A stream for logs."""
    return io.StringIO()
