"""A network ready for use, with all that inference needs to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthseg.errors import WeightsError
from synthseg.inference.structures import Channels, channels_of
from synthseg.labels import LabelProtocol, load_protocol


@dataclass(frozen=True)
class Model:
    """A network in eval mode and the facts of its card.

    ``network`` maps [1, 1, X, Y, Z] to logits [1, C, X, Y, Z], sides multiples of ``multiple``, voxels of
    ``spacing_mm``; ``sha256`` is that of the weights file, empty for a network that came from memory.
    ``field_of_view_mm`` are the sides of the images it was trained on: larger scans are cut to the brain first; None
    for a network that takes any.
    """

    name: str
    network: nn.Module
    channels: Channels
    protocol: str
    spacing_mm: float
    multiple: int
    sha256: str = ""
    field_of_view_mm: tuple[float, float, float] | None = None

    @classmethod
    def from_network(
        cls, network: nn.Module, protocol: LabelProtocol, *, spacing_mm: float, multiple: int = 1, name: str = "network"
    ) -> Model:
        """Use a network of your own. Raises: WeightsError if the protocol cannot describe a network's channels."""
        return cls(name, network.eval(), channels_of(protocol), protocol.name, float(spacing_mm), multiple)


def load_model(weights: str | Path, *, protocol: str | Path | None = None) -> Model:
    """Load weights by name or path.

    Args:
        protocol: the label protocol the caller counts on (a name or a .tsv); None takes the weights' own.
    Raises: WeightsError if they are missing, damaged, of another protocol, or not those of a network that segments a
        single image.
    """
    from synthseg.weights import build_network, load_weights, protocol_of, require_protocol

    loaded = load_weights(weights)
    if protocol is not None:
        require_protocol(loaded, load_protocol(protocol))
    subject = loaded.path or f"weights {loaded.name}"
    architecture: dict[str, Any] = loaded.card["architecture"]
    if architecture.get("in_channels", 1) != 1:
        found = f"a network with {architecture['in_channels']} input channels"
        raise WeightsError(subject, found=found, fix="use weights that segment one image, e.g. --weights default")
    channels = channels_of(protocol_of(loaded))
    network: Any = build_network(loaded)
    return Model(
        name=loaded.name,
        network=network.to(memory_format=torch.channels_last_3d).eval(),
        channels=channels,
        protocol=str(loaded.card["protocol"]["name"]),
        spacing_mm=float(loaded.card["spacing_mm"]),
        multiple=int(network.config.multiple),
        sha256=str(loaded.card["sha256"]),
        field_of_view_mm=_field_of_view(loaded.card.get("field_of_view_mm"), subject),
    )


def _field_of_view(stated: Any, subject: object) -> tuple[float, float, float] | None:
    """The card's field of view, if it states one. Raises WeightsError for anything but three positive lengths."""
    if stated is None:
        return None
    try:
        x, y, z = (float(side) for side in stated)
    except (TypeError, ValueError):
        x = y = z = 0.0
    if not min(x, y, z) > 0:
        found = f"a card with field_of_view_mm = {stated!r}, not three lengths in millimetres"
        raise WeightsError(str(subject), found=found, fix="save the weights again with synthseg.weights.save_weights")
    return x, y, z
