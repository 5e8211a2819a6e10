"""Learning rates against their closed forms, and the average of weights against its recursion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synthseg.training.recipe import OptimizerConfig
from synthseg.training.schedule import WeightAverage, learning_rate


@given(warmup=st.integers(1, 50), step=st.integers(0, 49))
def test_the_warm_up_is_a_line_that_ends_at_the_full_rate(warmup: int, step: int):
    config = OptimizerConfig(steps=100, learning_rate=0.5, warmup_steps=warmup)
    assert learning_rate(config, step) == pytest.approx(0.5 * min((step + 1) / warmup, 1.0), rel=1e-12)


def test_a_constant_schedule_stays():
    config = OptimizerConfig(steps=100, learning_rate=0.5)
    assert {learning_rate(config, step) for step in range(120)} == {0.5}


@given(warmup=st.integers(0, 40), step=st.integers(0, 150))
def test_the_cosine_falls_from_the_end_of_the_warm_up_to_zero(warmup: int, step: int):
    config = OptimizerConfig(steps=100, learning_rate=2.0, warmup_steps=warmup, schedule="cosine")
    if step >= warmup:
        angle = math.pi * min((step - warmup) / (100 - warmup), 1.0)
        assert learning_rate(config, step) == pytest.approx(2.0 * math.cos(angle / 2) ** 2, abs=1e-12)


@given(decay=st.integers(1, 100), step=st.integers(0, 99))
def test_the_decay_is_a_line_over_the_last_steps(decay: int, step: int):
    config = OptimizerConfig(steps=100, learning_rate=2.0, schedule="decay", decay_steps=decay)
    expected = 2.0 if step < 100 - decay else 2.0 * (100 - step) / decay
    assert learning_rate(config, step) == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_longer_than_the_run_is_no_division_by_zero():
    config = OptimizerConfig(steps=10, warmup_steps=10, schedule="cosine", learning_rate=1.0)
    assert learning_rate(config, 9) == 1.0
    assert learning_rate(config, 10) == 1.0


def test_the_average_follows_its_recursion():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)).to(memory_format=torch.channels_last_3d)
    average = WeightAverage(network, 0.7)
    expected = {name: tensor.double() for name, tensor in network.state_dict().items()}
    for n in range(30):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(3, 1, 2, 2, 2))  # moves the statistics and counts the batch
        average.update(network)
        decay = min(0.7, (1 + n) / (10 + n))
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    assert decay == 0.7  # both regimes were met
    count = expected.pop("1.num_batches_tracked")
    assert average.state["1.num_batches_tracked"].item() == 30 != count  # integers are copied, never averaged
    for name, tensor in expected.items():
        torch.testing.assert_close(average.state[name].double(), tensor, rtol=1e-5, atol=1e-6)


def test_the_average_does_not_share_memory_with_the_network():
    network = nn.BatchNorm3d(2)
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(7.0)
    assert average.state["weight"].tolist() == [1.0, 1.0]
