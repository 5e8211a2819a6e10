"""Sizes are read as people write them, and plans keep to their budget."""

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthseg.engine import memory
from synthseg.engine.lasting import give_back_freed_memory, lasting_like
from synthseg.engine.memory import Plan, available_bytes, parse_size, plan, resident_bytes, thinnest
from synthseg.errors import SynthsegError, UsageError
from synthseg.networks import UNetConfig

PAPER = UNetConfig()
SHIPPED = UNetConfig(features=16, norm="instance")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4G", 4 * 2**30), ("512M", 512 * 2**20), ("4GiB", 4 * 2**30), ("1.5g", 3 * 2**29), ("2 GB", 2**31),
        (".5T", 2**39), ("8k", 8192), ("1000", 1000), (12345, 12345), ("7b", 7), (" 3m ", 3 * 2**20),
    ],
)  # fmt: skip
def test_sizes_are_read_in_powers_of_1024(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-4G", "4X", "four", "4 G G", "0", "0.0000001k", "1e9", "4,5G", -3])
def test_what_is_no_size_is_named(text):
    with pytest.raises(UsageError, match="memory: found") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(
    config=st.sampled_from([PAPER, SHIPPED, UNetConfig(patch=2), UNetConfig(dropped_skips=2, kernel=5)]),
    sides=st.tuples(*[st.integers(1, 8)] * 3),
    passes=st.integers(1, 2),
)
@settings(max_examples=40)
def test_more_budget_never_means_more_work_and_plans_keep_within_it(config, sides, passes):
    shape = tuple(side * config.multiple for side in sides)
    least = thinnest(config, shape, passes=passes)
    best = plan(config, shape, passes=passes, budget_bytes=None)
    works = {way: work for work, way in memory._ways(config, shape, passes)}
    found = []
    for step in range(9):
        budget = least.bytes + step * (best.bytes - least.bytes) // 8
        found.append(plan(config, shape, passes=passes, budget_bytes=budget))
        assert found[-1].bytes <= budget
    assert all(works[a] >= works[b] for a, b in itertools.pairwise(found))
    assert works[found[-1]] == works[best]
    for way in (least, *found):
        assert way.slab is None or (way.slab % (2 * config.patch) == 0 and min(8, shape[0]) <= way.slab < shape[0])


def test_too_small_a_budget_says_what_is_needed():
    shape = (192, 192, 192)
    least = thinnest(PAPER, shape, passes=1).bytes
    with pytest.raises(SynthsegError, match=r"memory: found a budget of 10 MiB.*needs .* MiB"):
        plan(PAPER, shape, passes=1, budget_bytes=10 * 2**20)
    with pytest.raises(SynthsegError):
        plan(PAPER, shape, passes=1, budget_bytes=least - 1)
    assert plan(PAPER, shape, passes=1, budget_bytes=least).bytes == least


def test_features_are_kept_where_they_fit_and_small_images_run_whole():
    shape = (192, 192, 192)
    free = plan(PAPER, shape, passes=1, budget_bytes=None)
    assert free.slab is not None
    assert not free.recompute
    assert thinnest(PAPER, shape, passes=1).recompute
    assert plan(SHIPPED, (80, 96, 80), passes=2, budget_bytes=None).slab is None


def test_a_soft_limit_is_kept_where_that_costs_little():
    for shape, config in (((192, 224, 192), PAPER), ((160, 192, 160), PAPER), ((224, 256, 224), SHIPPED)):
        free = plan(config, shape, passes=2, budget_bytes=None)
        lean = plan(config, shape, passes=2, budget_bytes=None, soft_bytes=free.bytes - 1)
        works = {way: work for work, way in memory._ways(config, shape, 2)}
        whole = works[free] + memory._work_below(config)
        assert lean.bytes < free.bytes
        assert works[lean] - works[free] <= 0.2 * whole
        assert plan(config, shape, passes=2, budget_bytes=None, soft_bytes=2**20) == free
        assert plan(config, shape, passes=2, budget_bytes=lean.bytes, soft_bytes=2**40).bytes <= lean.bytes


def test_the_work_below_level_0_is_that_of_its_convolutions():
    config = UNetConfig(features=4, levels=2, convs_per_level=1, kernel=3)
    level_0 = 27 * 4 * 1 + 27 * 4 * 4 + 8 * 2 * 4 * 4  # a voxel: encoder, decoder, from level 1
    assert memory._work_below(config) == pytest.approx(27 * 4 * 8 / 8 / level_0)


def test_more_passes_and_larger_images_take_more():
    def need(shape, passes):
        return thinnest(PAPER, shape, passes=passes).bytes

    assert need((96, 96, 96), 1) < need((96, 96, 96), 2) < need((160, 192, 160), 2) < need((256, 256, 256), 2)


_PASSES = """
import re, sys
from pathlib import Path
import torch
from synthseg.engine.memory import plan, resident_bytes, thinnest
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import TorchBackend
from synthseg.networks import UNet, UNetConfig

network = UNet(UNetConfig(features=12, levels=4, norm=sys.argv[1])).eval()
shape = (96, 96, 96)
way = thinnest(network.config, shape, passes=2) if sys.argv[2] == "thin" else None
way = way or plan(network.config, shape, passes=2, budget_bytes=None)
image = torch.rand(1, 1, *shape)
before = resident_bytes()
runner = Runner(network, TorchBackend())
runs = [runner.begin(x, slab=way.slab, recompute=way.recompute) for x in (image, image.flip(2))]
slab = way.slab or shape[0]
for start in range(0, shape[0], slab):
    mirrored = runs[1].posteriors(shape[0] - start - slab, shape[0] - start)
    runs[0].posteriors(start, start + slab).add_(mirrored.flip(0))
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # not the parent's too
print(way.bytes, peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(("norm", "how"), [("batch", "fast"), ("instance", "thin")])
def test_passes_take_what_was_estimated(norm, how):
    said = subprocess.run([sys.executable, "-c", _PASSES, norm, how], capture_output=True, text=True, check=True)
    estimate, measured = map(int, said.stdout.split())
    assert 0.4 * estimate < measured < 1.1 * estimate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lasting_tensors_are_channels_last_and_return_their_memory(dtype):
    image = torch.rand(1, 2, 3, 4, 5).to(dtype)
    kept = lasting_like(image).copy_(image)
    assert torch.equal(kept, image)
    assert kept.is_contiguous(memory_format=torch.channels_last_3d)
    before = resident_bytes()
    large = lasting_like(torch.empty(1, 8, 128, 128, 128, dtype=dtype)).fill_(1)
    size = large.numel() * large.element_size()
    part = large[:, :, :2]  # a view keeps the pages
    del large
    assert resident_bytes() - before > 0.9 * size
    assert part.min() == 1
    del part
    give_back_freed_memory()
    assert resident_bytes() - before < 0.1 * size


def test_a_plan_is_plain_data():
    assert Plan(32, False, 10) == Plan(slab=32, recompute=False, bytes=10)


def test_the_process_is_seen_to_hold_what_it_holds():
    before = resident_bytes()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    grown = resident_bytes() - before
    assert 48 * 2**20 < grown < 96 * 2**20
    assert before > 2**20
    assert available_bytes() > 0
    del block
