"""Muon against a singular value decomposition and torch's Adam; batch norm frozen for the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from synthseg.errors import ConfigError
from synthseg.networks import UNet, UNetConfig
from synthseg.training.checkpoint import list_checkpoints, load_checkpoint
from synthseg.training.optimizers import Muon, make_optimizer, orthogonal
from synthseg.training.recipe import OptimizerConfig
from training_helpers import assert_same_bits, run, state_of, tiny_recipe

torch.set_num_threads(1)


@settings(max_examples=30)
@given(rows=st.integers(1, 24), columns=st.integers(1, 60), seed=st.integers(0, 1000))
def test_the_orthogonal_matrix_keeps_directions_and_evens_out_their_lengths(rows: int, columns: int, seed: int):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonal(matrix)
    inside = left.T @ result @ right.T
    lengths = inside.diagonal()
    torch.testing.assert_close(inside, torch.diag(lengths), rtol=0, atol=1e-6)
    # the quintic takes values above 0.02 of the norm to about [0.7, 1.2] in five rounds
    clear = values / values.norm() > 0.02
    assert (lengths[clear] > 0.6).all()
    assert (lengths[clear] < 1.25).all()


def test_muon_moves_a_matrix_by_an_orthogonal_step_of_adams_size():
    weight = nn.Parameter(torch.randn(8, 4, 3, 3, 3))
    before = weight.detach().clone()
    optimizer = Muon([weight], [], lr=0.01)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    step = (before - weight.detach()).flatten(1) / 0.01
    values = torch.linalg.svdvals(step / (0.2 * 108**0.5))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25
    assert float((step * weight.grad.flatten(1)).sum()) > 0  # down the gradient


def test_the_other_parameters_follow_torchs_adam():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    muon = Muon([], [ours], lr=0.05)
    adam = optim.Adam([theirs], lr=0.05, eps=1e-7)
    for _ in range(20):
        for parameter, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            (parameter - 0.3).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_muon_takes_the_inner_convolutions_only_and_every_parameter_once():
    network = UNet(UNetConfig(features=4, levels=2))
    optimizer = make_optimizer(OptimizerConfig(optimizer="muon"), network)
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert len(matrices) == sum(p.ndim == 5 for p in network.parameters()) - 2
    assert {id(p) for p in matrices + others} == {id(p) for p in network.parameters()}
    assert len(matrices) + len(others) == len(list(network.parameters()))
    outer = {id(network.down[0].convs[0].weight), id(network.head.weight)}
    assert outer <= {id(p) for p in others}


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_both_optimisers_learn_a_small_task(name: str):
    torch.manual_seed(0)
    network = UNet(UNetConfig(features=4, levels=2, out_channels=2))
    optimizer = make_optimizer(OptimizerConfig(optimizer=name, learning_rate=5e-3), network)
    image = torch.rand(1, 1, 8, 8, 8)
    target = (image[:, 0] > 0.5).long()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_muon_run_interrupted_and_resumed_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, optimizer={"optimizer": "muon", "ema_decay": 0.9})
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts", max_minutes=0)  # one step
    run(recipe, tmp_path / "parts", resume=True)
    assert_same_bits(state_of(tmp_path / "whole")[0], state_of(tmp_path / "parts")[0])


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale(tmp_path: Path):
    free = tiny_recipe(tmp_path, optimizer={"steps": 3})
    run(free, tmp_path / "run")
    before = state_of(tmp_path / "run")[0]
    run(tiny_recipe(tmp_path, optimizer={"steps": 6, "freeze_norm_step": 3}), tmp_path / "run", resume=True)
    after = state_of(tmp_path / "run")[0]
    statistics = [name for name in before if "running" in name and name.startswith("network.")]
    scales = [name for name in before if name.startswith("network.") and name.endswith("norm.weight")]
    assert statistics
    assert scales
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not any(torch.equal(before[name], after[name]) for name in scales)


def test_a_run_does_not_go_on_with_another_optimiser(tmp_path: Path):
    run(tiny_recipe(tmp_path, optimizer={"steps": 2}), tmp_path / "run")
    other = tiny_recipe(tmp_path, optimizer={"steps": 4, "optimizer": "muon"})
    with pytest.raises(ConfigError, match=r"optimizer\.optimizer: found muon, but adam"):
        run(other, tmp_path / "run", resume=True)


def test_a_checkpoint_of_one_machine_goes_on_with_the_kernels_of_another(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, optimizer={"steps": 2})
    run(recipe, tmp_path / "run", max_minutes=0)  # stopped: the checkpoint stays
    network = UNet(recipe.network)
    optimizer = optim.Adam(network.parameters(), lr=1.0, fused=True)
    load_checkpoint(list_checkpoints(tmp_path / "run")[-1], network, optimizer, None)
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.param_groups[0]["lr"] == recipe.optimizer.learning_rate
