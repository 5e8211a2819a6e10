"""Steps left out on the device against steps that are never taken."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from synthseg.training.guard import StepGuard
from synthseg.training.optimizers import make_optimizer
from synthseg.training.recipe import OptimizerConfig

OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "fused adam": lambda network: optim.Adam(network.parameters(), lr=0.01, fused=True),
    "adam": lambda network: optim.Adam(network.parameters(), lr=0.01),
    "muon": lambda network: make_optimizer(OptimizerConfig(optimizer="muon", learning_rate=0.01), network),
}


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 1), nn.ELU(), nn.Conv3d(3, 2, 1))


def loss_of(network: nn.Module, step: int, bad: bool) -> Tensor:
    image = torch.randn(2, 1, 5, 5, 5, generator=torch.Generator().manual_seed(step))
    loss: Tensor = network(image * (math.inf if bad else 1.0)).square().mean()
    return loss


def trained(kind: str, spoilt: list[bool], *, guarded: bool) -> tuple[nn.Module, optim.Optimizer, StepGuard]:
    """A network after one step a flag; spoilt ones are guarded, or never taken at all."""
    network = small_network()
    optimizer, guard = OPTIMIZERS[kind](network), StepGuard(network, torch.device("cpu"))
    for step, bad in enumerate(spoilt):
        if bad and not guarded:
            continue
        optimizer.zero_grad(set_to_none=True)
        guard.remember()
        loss = loss_of(network, step, bad)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf)
        guard.step(optimizer, loss.detach(), ~(loss.isfinite() & norm.isfinite()))
    return network, optimizer, guard


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("spoilt", [[True, False, False], [False, True, True, False], [False, True]])
def test_a_step_left_out_leaves_no_trace(kind: str, spoilt: list[bool]) -> None:
    network, optimizer, _ = trained(kind, spoilt, guarded=True)
    expected, expected_optimizer, _ = trained(kind, spoilt, guarded=False)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    states, others = optimizer.state_dict()["state"], expected_optimizer.state_dict()["state"]
    assert states.keys() == others.keys()
    for key, state in others.items():
        for name, tensor in state.items():
            assert torch.equal(states[key][name], tensor), (key, name)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_good_steps_are_the_optimisers_own(kind: str) -> None:
    network, _, _ = trained(kind, [False] * 3, guarded=True)
    plain = small_network()
    optimizer = OPTIMIZERS[kind](plain)
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        loss_of(plain, step, False).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), math.inf)
        optimizer.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@given(rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4))
def test_counts_are_those_of_the_steps_since_they_were_read(rows: list[list[bool]]) -> None:
    network = nn.Linear(1, 1)
    guard = StepGuard(network, torch.device("cpu"))
    optimizer = optim.SGD(network.parameters(), lr=0.0)
    row, step = 0, 0
    for flags in rows:
        worst, losses = row, []
        for bad in flags:
            guard.step(optimizer, torch.tensor(math.nan if bad else float(step)), torch.tensor(bad))
            row = row + 1 if bad else 0
            worst = max(worst, row)
            losses += [] if bad else [float(step)]
            step += 1
        counts = guard.read()
        assert counts == (sum(losses), len(losses), sum(flags), worst)


def test_the_network_a_guard_keeps_is_the_one_given() -> None:
    network = small_network()
    other, guard = copy.deepcopy(network), StepGuard(network, torch.device("cpu"))
    guard.remember()
    loss_of(network, 0, True)
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    guard.step(optimizer, torch.tensor(math.nan), torch.tensor(True))
    for name, tensor in other.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
