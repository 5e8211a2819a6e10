"""Shipped or own weights as files for other programs, with what those must know about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthseg.engine.export import Exported, export_onnx, export_openvino
from synthseg.errors import WeightsError
from synthseg.networks import UNet
from synthseg.weights.card import role_of
from synthseg.weights.files import Weights, load_weights
from synthseg.weights.network import build_network, protocol_of

FORMATS = {".onnx": export_onnx, ".xml": export_openvino}
# What the input holds, channel by channel; how a scan becomes the image is told in docs/segment.md.
INPUTS = {
    "structures": "image in [0, 1]",
    "tissues": "image in [0, 1]",
    "denoiser": "one-hot tissue groups",
    "guided": "image in [0, 1], one-hot tissue groups",
    "parcels": "image in [0, 1], not cortex, cortex",
}


def export_weights(
    name_or_path: str | Path,
    target: str | Path,
    shape: tuple[int, int, int] | None = None,
    *,
    role: str | None = None,
) -> tuple[Exported, dict[str, str]]:
    """Write the whole network, image to posteriors, as NAME.onnx or NAME.xml (OpenVINO), checked against torch.

    Args:
        shape: X, Y and Z of the input; None leaves them open.
        role: which network, as in ``load_weights``.
    Returns: what was written, and the facts written along (:func:`facts_of`).
    Raises: WeightsError for weights that are not a UNet's, UsageError for sides it cannot take, SynthsegError where
        packages are missing, OutputError for a file whose answers differ from torch's: it is not kept.
    """
    weights = load_weights(name_or_path, role)
    network = build_network(weights)
    if not isinstance(network, UNet):
        found = f"{weights.card['architecture']['kind']!r}, a network that gives scores, not posteriors"
        raise WeightsError(weights.path or weights.name, found=found, fix="export weights of another role than quality")
    facts = facts_of(weights, network)
    return FORMATS[Path(target).suffix](network, Path(target), facts, shape), facts


def facts_of(weights: Weights, network: UNet) -> dict[str, str]:
    """What a program must know to use the network: its labels (values by channel), voxel size, inputs, terms."""
    protocol, card = protocol_of(weights), weights.card
    names = {int(label.value): label.name for label in protocol.labels}
    values = [int(value) for value in protocol.target_values]
    facts: dict[str, Any] = {
        "name": weights.name,
        "role": role_of(card),
        "input": INPUTS[role_of(card)],
        "axes": "RAS+: X grows to the right, Y to the front, Z upwards",
        "spacing_mm": f"{card['spacing_mm']:g}",
        "multiple": network.config.multiple,
        "field_of_view_mm": card.get("field_of_view_mm"),
        "protocol": protocol.name,
        "values": values,
        "structures": [names[value] for value in values],
        "licence": card.get("licence"),
        "sha256": card["sha256"],
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items() if v is not None}
