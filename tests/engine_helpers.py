"""Networks whose every number matters, for the tests of the engine."""

import torch

from synthseg.networks import UNet, UNetConfig


def odd_network(config: UNetConfig, seed: int) -> UNet:
    """A UNet with random biases and norms: scales of either sign and zero, running statistics far from 0 and 1."""
    torch.manual_seed(seed)
    net = UNet(config).eval()
    for name, values in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith("bias") or "norm.weight" in name or "running_mean" in name:
            values.data.normal_()
        elif "running_var" in name:
            values.data.uniform_(0.5, 2)
        if "norm.weight" in name:
            values.data[0] = 0
    return net
