"""What a network of any field of view says of the brain does not depend on what lies beyond its window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from synthseg.inference import InferenceConfig, Model
from synthseg.inference.bundle import gather
from synthseg.inference.focus import focused
from synthseg.inference.postprocess import largest_component
from synthseg.inference.prepare import prepare
from synthseg.networks import UNet
from synthseg.networks.unet import InstanceNorm
from synthseg.volumes import Window, read_volume


def batch_norm_twin(network: nn.Module, image: Tensor) -> UNet:
    """The same weights with batch norm, whose running statistics are those of this image."""
    assert isinstance(network, UNet)
    twin = UNet(replace(network.config, norm="batch")).eval()
    twin.load_state_dict(network.state_dict(), strict=False)
    norms = dict(twin.named_modules())

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, given: tuple[Tensor]) -> None:
            values = given[0].double()
            norms[name].running_mean.copy_(values.mean((0, 2, 3, 4)))
            norms[name].running_var.copy_(values.var((0, 2, 3, 4), unbiased=False))

        return hook

    named = [(name, module) for name, module in network.named_modules() if isinstance(module, InstanceNorm)]
    hooks = [module.register_forward_pre_hook(remember(name)) for name, module in named]
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return twin


def look(model: Model, image: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.inference_mode():
        logits = model.network(image.contiguous(memory_format=torch.channels_last_3d))
        return of(torch.softmax(logits[0], 0).permute(1, 2, 3, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t1/swm_t1_head", "oasis/oasis_1000_t1"])
def test_the_answer_inside_the_brain_equals_that_of_the_whole_field(shared, name):  # type: ignore[no-untyped-def]
    models, config = gather("default"), InferenceConfig()
    prepared = prepare(
        read_volume(shared / "data" / "validation" / f"{name}.nii.gz"), spacing_mm=2.0, multiple=16, config=config
    )
    own = focused(prepared, models, config, look).prepared
    twin = batch_norm_twin(models["structures"].network, own.image)
    free = replace(models["structures"], network=twin, field_of_view_mm=None)
    shown = focused(prepared, {**models, "structures": free}, config, look).prepared
    assert shown.padded.shape < prepared.padded.shape
    whole, part = (look(free, p.image, lambda posteriors: posteriors) for p in (prepared, shown))
    brain = torch.from_numpy(largest_component(whole.argmax(-1).numpy() > 0))
    start = tuple(a - b for a, b in zip(shown.window.start, prepared.whole.start, strict=True))
    window = Window((start[0], start[1], start[2]), shown.window.shape, prepared.whole.shape)
    x, y, z = (slice(a, a + n) for a, n in zip(window.start, window.shape, strict=True))
    inside = brain[x, y, z]
    assert inside.sum() == brain.sum()  # all of it is in the window
    agree = (part.argmax(-1) == whole[x, y, z].argmax(-1))[inside].double().mean()
    assert agree >= 0.999
    assert (part - whole[x, y, z]).abs()[inside].max() < 0.1
