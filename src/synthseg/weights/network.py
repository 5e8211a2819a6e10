"""From weights to a network that can be run, and to the labels its channels stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from synthseg.errors import ConfigError, LabelError, WeightsError
from synthseg.labels.protocol import LabelProtocol
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.weights.card import role_of
from synthseg.weights.files import Weights, load_weights

_CONFIGS: dict[str, type[UNetConfig] | type[EncoderConfig]] = {"unet": UNetConfig, "encoder": EncoderConfig}
_SHOWN = 5  # tensors named in an error before "and N more"


@dataclass(frozen=True)
class Verification:
    """What ``verify_weights`` looked at and found good."""

    name: str
    path: Path | None
    checks: tuple[str, ...]
    sha256: str


def build_network(weights: Weights) -> nn.Module:
    """The network of the card's architecture holding the weights' tensors, in evaluation mode, on the CPU.

    Every tensor must be used and every parameter and buffer filled.

    Raises: WeightsError for an unknown architecture, and for tensors missing, left over or of another shape.
    """
    config = _config_of(weights)
    with torch.random.fork_rng(devices=[]):  # the initial values are thrown away: do not advance the caller's stream
        network = UNet(config) if isinstance(config, UNetConfig) else Encoder(config)
    _require_fit(weights, network.state_dict())
    network.load_state_dict(weights.tensors, strict=True)
    return network.eval()


def protocol_of(weights: Weights) -> LabelProtocol:
    """The label protocol in the card. Raises WeightsError when its table is invalid or not one label a channel."""
    table = weights.card["protocol"]
    try:
        protocol = LabelProtocol.from_rows(table["name"], table.get("description", ""), table["rows"])
    except (LabelError, KeyError, TypeError, ValueError) as error:
        found = f"a card whose label table is invalid ({error})"
        raise WeightsError(_subject(weights), found=found, fix="take the file again, or save it again") from error
    channels = weights.card["architecture"].get("out_channels")
    if channels is not None and channels != len(protocol.target_values):
        raise WeightsError(
            _subject(weights),
            found=f"{channels} output channels for the {len(protocol.target_values)} labels of {protocol.name}",
            fix="save the weights with the protocol they were trained on",
        )
    return protocol


def verify_weights(name_or_path: str | Path, role: str | None = None) -> Verification:
    """Check everything that can be checked without a scan: file, card, hash, finite values, labels, architecture.

    Args:
        role: which network, as in ``load_weights``.
    Raises: WeightsError at the first thing that is wrong.
    """
    weights = load_weights(name_or_path, role)
    for name, tensor in weights.tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(_subject(weights), found=f"NaN or infinity in {name}", fix="use other weights")
    protocol = protocol_of(weights)
    network = build_network(weights)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    checks = (
        f"hash {weights.card['sha256'][:12]}...",
        f"{len(weights.tensors)} tensors, all finite",
        f"{weights.card['architecture']['kind']} with {parameters:,} parameters",
        f"role {role_of(weights.card)}",
        f"{len(protocol.target_values)} labels of {protocol.name}",
    )
    return Verification(weights.name, weights.path, checks, str(weights.card["sha256"]))


def _config_of(weights: Weights) -> UNetConfig | EncoderConfig:
    architecture = weights.card["architecture"]
    kind = _CONFIGS.get(architecture["kind"])
    if kind is None:
        raise WeightsError(
            _subject(weights),
            found=f"the architecture {architecture['kind']!r}",
            fix=f"this synthseg builds {' and '.join(map(repr, _CONFIGS))}: use a release that knows the other",
        )
    try:
        return kind.from_dict(architecture)
    except (ConfigError, TypeError) as error:
        found = f"an architecture that cannot be built ({error})"
        raise WeightsError(_subject(weights), found=found, fix="use weights written by this release") from error


def _require_fit(weights: Weights, expected: dict[str, torch.Tensor]) -> None:
    given = weights.tensors
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    misfits = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    groups = (("missing", missing), ("left over", extra), ("of another shape:", misfits))
    problems = [
        f"{_some(names)} {what}" if what[-1] != ":" else f"{what} {_some(names)}" for what, names in groups if names
    ]
    if problems:
        raise WeightsError(
            _subject(weights),
            found=f"tensors that do not fit the card's architecture: {'; '.join(problems)}",
            fix="save the tensors with the card of the network they came from",
        )


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _subject(weights: Weights) -> str:
    return str(weights.path) if weights.path else f"weights {weights.name!r}"
