"""Finished networks that make another task's inputs: loaded once, never trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError
from synthseg.networks.hierarchy import GroupsFirst
from synthseg.training.recipe import Recipe
from synthseg.weights import build_network, load_weights, protocol_of, role_of
from synthseg.weights.store import is_path


def load_frozen(recipe: Recipe, role: str, device: torch.device) -> nn.Module | None:
    """The recipe's network of a role, in evaluation mode without gradients; None where the recipe names none.

    Raises: WeightsError if it cannot be loaded; ConfigError if it is a network for
        something else, or of another voxel size than the recipe's.
    """
    named: str | None = getattr(recipe.task.weights, role)
    if named is None:
        return None
    weights = load_weights(resolve(recipe, named))
    found_role = role_of(weights.card)
    if found_role != role:
        fix = f"give weights whose role is {role} (`synthseg weights list` shows it)"
        raise ConfigError(f"task.weights.{role}", found=f"{named}, whose role is {found_role}", fix=fix)
    spacing, wanted = float(weights.card["spacing_mm"]), recipe.generation.grid.spacing_mm
    if abs(spacing - wanted) > 1e-6:
        found = f"{named}, which works at {spacing:g} mm"
        raise ConfigError(f"task.weights.{role}", found=found, fix=f"give weights of {wanted:g} mm, as the recipe's")
    network = build_network(weights).to(device)
    return network.requires_grad_(False).eval()


def require_frozen(recipe: Recipe, role: str, device: torch.device) -> nn.Module:
    """:func:`load_frozen`, for a role the task cannot do without. Raises ConfigError where the recipe names none."""
    network = load_frozen(recipe, role, device)
    if network is None:
        fix = "name the weights, e.g. the file an earlier recipe wrote (recipes/plus/chain.toml does it for you)"
        raise ConfigError(f"task.weights.{role}", found=f"none for a task of kind {recipe.task.kind}", fix=fix)
    return network


def frozen_names(recipe: Recipe) -> dict[str, str]:
    """What a card says of the networks that made the inputs: role -> name and hash."""
    names = {}
    for role in ("structures", "tissues", "denoiser", "guided"):
        named = getattr(recipe.task.weights, role)
        if named is not None:
            card = load_weights(resolve(recipe, named)).card
            names[role] = f"{card['name']} {card['sha256'][:12]}"
    return names


def resolve(recipe: Recipe, named: str) -> str | Path:
    """A path (anything that looks like one) from the recipe's folder; a name as it is."""
    return recipe.path(named) if is_path(named) else named


def segmenters(recipe: Recipe, device: torch.device) -> list[nn.Module]:
    """Every way the recipe's frozen networks segment structures: plain, and by S1, D and S2.

    Raises: ConfigError if there is none, or S2 without S1; both as for :func:`load_frozen`.
    """
    found = []
    plain = load_frozen(recipe, "structures", device)
    if plain is not None:
        found.append(plain)
    guided = load_frozen(recipe, "guided", device)
    if guided is not None:
        denoiser = load_frozen(recipe, "denoiser", device)
        found.append(GroupsFirst(require_frozen(recipe, "tissues", device), denoiser, guided).eval())
    if not found:
        require_frozen(recipe, "structures", device)
    return found


def segmented_values(recipe: Recipe) -> list[list[int]]:
    """Label values of the channels of each of :func:`segmenters`."""
    named = [recipe.task.weights.structures, recipe.task.weights.guided]
    loaded = [load_weights(resolve(recipe, name)) for name in named if name is not None]
    return [protocol_of(weights).target_values.tolist() for weights in loaded]


@torch.no_grad()
def forward(network: nn.Module, image: Tensor, *, reduced: bool) -> Tensor:
    """Logits in float32; ``reduced`` runs the network in bfloat16."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=reduced):
        scores: Tensor = network(image.contiguous(memory_format=torch.channels_last_3d))
    return scores.float()
