"""A network ready for use, with all that inference needs to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthseg.engine.backend import Backend
from synthseg.engine.ranges import Range, ranges_of_card
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import PlainBackend
from synthseg.errors import WeightsError
from synthseg.inference.config import InferenceConfig
from synthseg.inference.structures import Channels, channels_of
from synthseg.labels import LabelProtocol
from synthseg.weights.card import BRAIN, organ_of

# What each role's network is given (reference 4.2), as messages say it.
INPUTS = {
    "structures": "one image",
    "tissues": "one image",
    "denoiser": "one-hot tissue groups, as many as it returns",
    "guided": "an image and one-hot tissue groups",
    "parcels": "an image and where cortex is not and is",
    "quality": "as many groups of structures as it scores",
}
IMAGE = 1  # channels
CORTEX_INPUTS = 2  # not cortex, cortex
TISSUE_GROUPS = 5  # of the protocol tissue-groups


@dataclass(frozen=True)
class Model:
    """A network in eval mode and the facts of its card.

    ``network`` maps [1, in_channels, X, Y, Z] to logits [1, C, X, Y, Z] (role "quality": to [1, C] scores), sides
    multiples of ``multiple``, voxels of ``spacing_mm``; ``sha256`` is that of the weights file, empty for a network
    that came from memory. ``field_of_view_mm`` are the sides of the images it was trained on: larger scans are cut to
    the brain first; None for a network that takes any. ``role`` is what the network is for, one of
    :data:`synthseg.weights.ROLES`; with ``soft_inputs`` a quality network reads posteriors instead of one-hot labels.
    ``ranges`` are those of its activations, for int8, and ``ranges_problem`` says why those of its file cannot be read:
    other precisions do without. ``backend`` is what runs it (:meth:`on`). ``organ`` is what the scans show, ``flip``
    whether a mirrored scan is one that the network knows, ``ct_window`` its own window for CT in Hounsfield units
    (:meth:`settings`). ``temperature`` is what its logits are divided by before it is averaged with other networks;
    None was never fitted and counts as 1. ``trained_mm`` are the largest distance of slices and the largest voxel along
    all axes that its training simulated; None where the card does not say. ``typical`` is the Dice that a quality
    network predicts for clear images, by group; empty where its card does not say.
    """

    name: str
    network: nn.Module
    channels: Channels
    protocol: str
    spacing_mm: float
    multiple: int
    sha256: str = ""
    field_of_view_mm: tuple[float, float, float] | None = None
    role: str = "structures"
    in_channels: int = IMAGE
    soft_inputs: bool = False
    organ: str = BRAIN
    flip: bool = True
    ct_window: tuple[float, float] | None = None
    temperature: float | None = None
    trained_mm: tuple[float, float] | None = None
    typical: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, Range] | None = None
    ranges_problem: WeightsError | None = field(default=None, compare=False)
    backend: Backend = field(default_factory=PlainBackend, compare=False)

    @cached_property
    def runner(self) -> Runner:
        """The network as the backend runs it."""
        return Runner(self.network, self.backend)

    def settings(self, config: InferenceConfig) -> InferenceConfig:
        """The settings as they hold for this network.

        No mirror averaging where no mirrored image was ever seen. CT is clipped to the network's own window unless the
        settings name another than the brain's; without one, scans that show no brain are clipped on request only.
        """
        window, ct = config.ct_window, config.ct
        if window == InferenceConfig().ct_window:
            if self.ct_window is not None:
                window = self.ct_window
            elif self.organ != BRAIN and ct is None:
                ct = False
        return replace(config, flip=config.flip and self.flip, ct_window=window, ct=ct)

    @property
    def device(self) -> torch.device:
        """Where the network's inputs must lie."""
        return self.backend.device

    def on(self, backend: Backend) -> Model:
        """The same network, run by another backend, on its device (the module itself moves there)."""
        self.network.to(backend.device)
        return replace(self, backend=backend)

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        protocol: LabelProtocol,
        *,
        spacing_mm: float,
        multiple: int = 1,
        name: str = "network",
        role: str = "structures",
        in_channels: int | None = None,
        soft_inputs: bool = False,
        field_of_view_mm: tuple[float, float, float] | None = None,
        organ: str = BRAIN,
        flip: bool = True,
    ) -> Model:
        """Use a network of your own.

        Args:
            in_channels: None takes what the role asks for (a guided network: an image and five groups).
        Raises: WeightsError if the protocol cannot describe a network's channels, or they do not fit the role.
        """
        channels = channels_of(protocol)
        if in_channels is None:
            in_channels = _expected_inputs(role, len(channels)) or IMAGE + TISSUE_GROUPS
        model = cls(
            name=name,
            network=network.eval(),
            channels=channels,
            protocol=protocol.name,
            spacing_mm=float(spacing_mm),
            multiple=multiple,
            field_of_view_mm=field_of_view_mm,
            role=role,
            in_channels=in_channels,
            soft_inputs=soft_inputs,
            organ=organ,
            flip=flip,
        )
        _check_role(model, f"weights {name}")
        return model


def load_model(weights: str | Path, *, role: str | None = "structures") -> Model:
    """Load weights by name or path.

    Args:
        role: what the network must be for, which picks one of a family's networks ("synthseg-2.0"); None takes any.
    Raises: WeightsError if they are missing, damaged, of another role, or with other inputs than their role has.
    """
    from synthseg.weights import build_network, load_weights, protocol_of, role_of

    loaded = load_weights(weights, role)
    subject = loaded.path or f"weights {loaded.name}"
    card: dict[str, Any] = loaded.card
    channels = channels_of(protocol_of(loaded))
    network: Any = build_network(loaded)
    ranges, ranges_problem = _ranges(card, subject)
    model = Model(
        name=loaded.name,
        network=network.to(memory_format=torch.channels_last_3d).eval(),
        channels=channels,
        protocol=str(card["protocol"]["name"]),
        spacing_mm=float(card["spacing_mm"]),
        multiple=int(network.config.multiple),
        sha256=str(card["sha256"]),
        field_of_view_mm=_field_of_view(card.get("field_of_view_mm"), subject),
        role=role_of(card),
        in_channels=int(network.config.in_channels),
        soft_inputs=bool(card.get("soft_inputs", False)),
        organ=organ_of(card),
        flip=bool(card.get("flip", True)),
        ct_window=_ct_window(card),
        temperature=None if card.get("temperature") is None else float(card["temperature"]),
        trained_mm=_trained_mm(card),
        typical=_typical(card, channels, subject),
        ranges=ranges,
        ranges_problem=ranges_problem,
    )
    _check_role(model, subject)
    kind = "encoder" if model.role == "quality" else "unet"
    if card["architecture"]["kind"] != kind:
        found = f"{card['architecture']['kind']!r}, a network of another kind than role {model.role!r} has"
        raise WeightsError(subject, found=found, fix=f"use weights whose architecture is {kind!r}")
    return model


def _expected_inputs(role: str, outputs: int) -> int | None:
    """Input channels that a role has; None where another network decides (the number of groups that guide it)."""
    if role == "guided":
        return None
    if role in ("denoiser", "quality"):
        return outputs
    return IMAGE + CORTEX_INPUTS if role == "parcels" else IMAGE


def _check_role(model: Model, subject: object) -> None:
    """Raise WeightsError if the network's inputs are not those of its role."""
    if model.role not in INPUTS:
        found, fix = f"the role {model.role!r}", f"use one of {', '.join(INPUTS)}"
        raise WeightsError(str(subject), found=found, fix=fix)
    expected = _expected_inputs(model.role, len(model.channels))
    if expected is not None and model.in_channels != expected:
        found = f"a network with {model.in_channels} input channels, where role {model.role!r} has {expected}"
        fix = f"use weights whose input is {INPUTS[model.role]}, or state the role they have in their card"
        raise WeightsError(str(subject), found=found, fix=fix)
    if model.role == "quality" and len(model.channels) < 2:
        found = "a quality network whose protocol has no group but the background: there is nothing to score"
        raise WeightsError(str(subject), found=found, fix="use weights with a group for each structure that is scored")
    if model.soft_inputs and model.role != "quality":
        found = f"soft inputs for a network of role {model.role!r}, which reads one-hot labels"
        raise WeightsError(str(subject), found=found, fix="leave soft_inputs out of its card")


def _ranges(card: dict[str, Any], subject: str | Path) -> tuple[dict[str, Range] | None, WeightsError | None]:
    """The card's ranges for int8, or what is wrong with them, to be told when int8 is asked for."""
    try:
        return ranges_of_card(card, subject), None
    except WeightsError as error:
        return None, error


def _ct_window(card: dict[str, Any]) -> tuple[float, float] | None:
    stated = card.get("ct_window")
    return None if stated is None else (float(stated[0]), float(stated[1]))


def _trained_mm(card: dict[str, Any]) -> tuple[float, float] | None:
    """The coarsest acquisitions that the card's generative model simulates; None for cards without one."""
    try:
        acquisition = card["generation"]["acquisition"]
        found = float(acquisition["max_spacing_mm"]), float(acquisition["max_isotropic_mm"])
    except (KeyError, TypeError, ValueError):
        return None
    return found if min(found) > 0 else None


def _typical(card: dict[str, Any], channels: Channels, subject: object) -> dict[str, float]:
    """What a quality network predicts for clear images, as its card says. Raises WeightsError for other than Dice."""
    told = card.get("typical_quality")
    if told is None:
        return {}
    try:
        found = {str(name): float(value) for name, value in told["scores"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        found = {"": -1.0}
    if not set(found) <= {s.name for s in channels.structures[1:]} or not all(0 <= v <= 1 for v in found.values()):
        fix = "calibrate them again (`synthseg weights calibrate --quality`), or take the key out of their card"
        raise WeightsError(str(subject), found=f"typical_quality = {told!r:.200}, not a Dice for each group", fix=fix)
    return found


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
