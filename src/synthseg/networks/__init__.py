"""Networks as plain torch modules built from a config that travels in the weights' card. No I/O here."""

from synthseg.networks.encoder import Encoder, EncoderConfig, expected_dice
from synthseg.networks.unet import UNet, UNetConfig

__all__ = ["Encoder", "EncoderConfig", "UNet", "UNetConfig", "expected_dice"]
