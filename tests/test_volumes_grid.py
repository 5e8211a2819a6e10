"""Sampling on grids, against SciPy, closed forms and the reference's vectors (2.3, 11.3)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from synthseg.errors import ShapeError
from synthseg.volumes.grid import sample_linear, sample_nearest

SHAPE = (8, 9, 10)  # unequal sides catch swapped axes


def identity_grid(shape: tuple[int, ...], batch: int = 1) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij")
    return torch.stack(axes, -1).expand(batch, *shape, 3)


def random_positions(seed: int, count: int, *, beyond: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(SHAPE) - 1 + 2 * beyond
    return torch.rand(2, count, 1, 1, 3, generator=rng) * sizes - beyond


@given(shift=st.tuples(*[st.integers(-2, 2)] * 3))
def test_a_whole_voxel_shift_moves_voxels_exactly(shift: tuple[int, int, int]) -> None:
    # A shift catches mixed align_corners; the identity does not (errors cancel).
    x = torch.arange(8 * 9 * 10.0).reshape(1, 1, *SHAPE)
    coordinates = identity_grid(SHAPE) + torch.tensor(shift)
    inner = (..., *[slice(2, -2)] * 3)  # what padding cannot reach
    expected = x.roll([-s for s in shift], (2, 3, 4))
    torch.testing.assert_close(sample_linear(x, coordinates)[inner], expected[inner], rtol=0, atol=1e-3)
    nearest = sample_nearest(x[:, 0].to(torch.int16), coordinates)
    assert torch.equal(nearest[inner], expected[:, 0].to(torch.int16)[inner])


@pytest.mark.parametrize(("outside", "mode"), [("border", "nearest"), ("zeros", "constant")])
def test_linear_sampling_agrees_with_scipy(outside: str, mode: str) -> None:
    rng = torch.Generator().manual_seed(3)
    data = torch.rand(2, 3, *SHAPE, generator=rng)
    positions = random_positions(4, 500, beyond=2.5)
    sampled = sample_linear(data, positions, outside=outside)  # type: ignore[arg-type]
    assert sampled.shape == (2, 3, 500, 1, 1)
    for b in range(2):
        for c in range(3):
            # grid-constant interpolates with the zeros beyond the border; plain constant cuts off at it
            mode_name = "grid-constant" if mode == "constant" else mode
            expected = map_coordinates(
                data[b, c].numpy(), positions[b, :, 0, 0].T.numpy(), order=1, mode=mode_name, prefilter=False
            )
            np.testing.assert_allclose(sampled[b, c, :, 0, 0].numpy(), expected, atol=2e-5)


def test_linear_sampling_handles_axes_of_one_voxel() -> None:
    data = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2, 1)
    positions = torch.tensor([[0.0, 0.5, 0.0], [7.0, 1.0, -3.0]]).reshape(1, 2, 1, 1, 3)
    assert sample_linear(data, positions).flatten().tolist() == [2.0, 3.0]


def test_linear_sampling_of_bfloat16_loses_nothing_but_the_last_rounding() -> None:
    data = torch.rand(1, 1, 200, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    positions = identity_grid((200, 4, 4)) + 0.25
    sampled = sample_linear(data, positions)
    assert sampled.dtype == torch.bfloat16
    expected = sample_linear(data.float(), positions)
    torch.testing.assert_close(sampled.float(), expected, rtol=2**-8, atol=0)


def test_linear_sampling_passes_gradients_to_data_and_coordinates() -> None:
    data = torch.rand(1, 2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    coordinates = (identity_grid((3, 3, 3)).double() + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(sample_linear, (data, coordinates))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_nearest_sampling_rounds_clamps_and_keeps_the_type(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    data = torch.randint(0, 100, (2, *SHAPE), generator=rng).to(dtype)
    positions = random_positions(2, 400, beyond=3.0)
    sampled = sample_nearest(data, positions)
    assert sampled.dtype == dtype
    index = positions.round().long()
    for b in range(2):
        x, y, z = (index[b, :, 0, 0, a].clamp(0, SHAPE[a] - 1) for a in range(3))
        assert torch.equal(sampled[b, :, 0, 0], data[b, x, y, z])


def test_nearest_sampling_rounds_halves_to_even() -> None:
    data = torch.arange(6, dtype=torch.uint8).reshape(1, 6, 1, 1)
    positions = torch.zeros(1, 5, 1, 1, 3)
    positions[0, :, 0, 0, 0] = torch.tensor([-0.5, 0.5, 1.5, 2.5, 3.5])
    assert sample_nearest(data, positions).flatten().tolist() == [0, 0, 2, 2, 4]


def test_sampling_leaves_its_inputs_alone() -> None:
    data = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    coordinates = random_positions(0, 10, beyond=2.0)[:1]
    before = data.clone(), coordinates.clone()
    sample_linear(data, coordinates)
    sample_nearest(data[:, 0], coordinates)
    assert torch.equal(data, before[0])
    assert torch.equal(coordinates, before[1])


def test_batches_equal_singles() -> None:
    data = torch.rand(3, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    positions = random_positions(1, 50)[[0, 1, 0]]
    torch.testing.assert_close(
        sample_linear(data, positions), torch.cat([sample_linear(data[[b]], positions[[b]]) for b in range(3)])
    )


def test_misfits_are_named() -> None:
    data = torch.rand(1, 1, *SHAPE)
    with pytest.raises(ShapeError, match=r"coordinates: found .*\(1, 4, 3\).*voxel positions with B = 1"):
        sample_linear(data, torch.rand(1, 4, 3))
    with pytest.raises(ShapeError, match=r"data: found .*int64.*floating-point"):
        sample_linear(data.long(), identity_grid(SHAPE))
    with pytest.raises(ShapeError, match=r"data: found .*\[B, X, Y, Z\]"):
        sample_nearest(data, identity_grid(SHAPE))


def test_importing_the_grid_loads_no_file_format_library() -> None:
    code = "import sys, synthseg.volumes.grid; print(sorted({'nibabel', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
