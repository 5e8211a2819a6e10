"""Networks as plain torch modules built from a config that travels in the weights' card. No I/O here."""

from synthseg.networks.unet import UNet, UNetConfig

__all__ = ["UNet", "UNetConfig"]
