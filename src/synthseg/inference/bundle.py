"""The networks of a run, by role: which of them a mode needs, and whether they fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from synthseg.errors import UsageError, WeightsError
from synthseg.inference.ensemble import FIRST, with_members
from synthseg.inference.model import IMAGE, Model, load_model
from synthseg.inference.modes import ADD_ONS, LOCATOR, add_on_weights, find_mode, locator_weights
from synthseg.inference.structures import CORTEX_VALUES, Structure
from synthseg.labels import load_protocol
from synthseg.networks.unet import UNet
from synthseg.weights.card import BRAIN, require_role
from synthseg.weights.original import FAMILIES
from synthseg.weights.store import roles_offered

AnyWeights = str | Path | Model
OneOrByRole = AnyWeights | Mapping[str, AnyWeights] | None
Weights = OneOrByRole | Sequence[AnyWeights]
MODES_OWN = (None, "default")  # weights that leave the choice to the mode


def gather(
    mode: str,
    weights: Weights = None,
    *,
    parcels: bool | AnyWeights = False,
    quality: bool | AnyWeights | None = False,
    protocol: str | Path | None = None,
    locator: bool | AnyWeights = True,
) -> dict[str, Model]:
    """Load the networks of a run.

    Args:
        mode: a name in ``modes.toml``.
        weights: in place of the mode's own: one of them, whose role says which it replaces, or several by role.
            None and "default" leave the mode's. By role, "locator" is one too. A family ("synthseg-2.0") or a Keras
            file of several networks stands for all the roles it has. Several in a list are networks for the same
            structures, to be merged (``ensemble.py``); the first says what the others must be.
        parcels, quality: True for those of the family, else for the weights that ``modes.toml`` names; or others;
            False without. None (quality only): with it where those weights are there and fit the others, else without.
        protocol: the label protocol the caller counts on (a name or a .tsv); None takes that of the weights.
        locator: what finds the brain first, of role "tissues": False for none, True for the weights that ``modes.toml``
            names (none for a network from memory that states a field of view: it finds the brain itself; none for
            another organ than the brain).
    Returns: role -> model, in the order in which they run, further networks for the structures last; "locator" only
        if the network of the structures is shown windows (``focus.py``) and S1 is not there to find the brain.
    Raises: WeightsError for weights that are missing, damaged, of a role the mode has no use for or that do not fit the
        others; ConfigError for an unknown mode; UsageError for an unknown role, several networks where the mode cannot
        merge any, or none where the mode has none.
    """
    if isinstance(weights, Mapping):
        weights = dict(weights)
        locator = weights.pop(LOCATOR, locator)
    first, others = _listed(weights)
    wanted, add_ons = _choose(mode, first)
    for role, asked in zip(ADD_ONS, (parcels, quality), strict=True):
        if asked is not False and asked is not None:
            wanted[role] = add_ons[role] if asked is True else asked
    models = {role: _of_role(given, role) for role, given in wanted.items()}
    if others:
        models = with_members(models, [_of_role(given, FIRST) for given in others])
    check_fit(models)
    if quality is None:
        models |= _quality_if_any(models, add_ons["quality"])
    if protocol is not None:
        _require_protocol(main_of(models), protocol)
    main = main_of(models)
    if locator is True:
        # The caller's own network that can look for itself may be for anything; the shipped locator knows human brains.
        looks_itself = main.field_of_view_mm is not None and not main.sha256
        locator = not looks_itself and main.organ == BRAIN and locator_weights()
    usable = main.field_of_view_mm is not None or crops_by_margin(main)
    if locator is False or not usable or locator_of(models) is not None:
        return models
    return {LOCATOR: _of_role(locator, "tissues"), **models}


def _quality_if_any(models: Mapping[str, Model], weights: AnyWeights) -> dict[str, Model]:
    """The network that predicts the quality of what these networks give; empty where there is none that does."""
    try:
        found = _of_role(weights, "quality")
        check_fit({**models, "quality": found})
    except WeightsError:
        return {}
    return {"quality": found}


def _listed(weights: Weights) -> tuple[OneOrByRole, tuple[AnyWeights, ...]]:
    """The first of a list of weights, and the others; what is no list has no others."""
    if weights is None or isinstance(weights, str | Path | Model | Mapping):
        return weights, ()
    first, *others = list(weights) or ["default"]
    return first, tuple(others)


def _choose(mode: str, weights: OneOrByRole) -> tuple[dict[str, AnyWeights], dict[str, AnyWeights]]:
    """Weights by role of a mode, and those of the add-ons if they are asked for.

    Raises: WeightsError, UsageError, ConfigError as for :func:`gather`.
    """
    wanted: dict[str, AnyWeights] = dict(find_mode(mode).weights.by_role())
    if not wanted:
        named = weights.get(FIRST) if isinstance(weights, Mapping) else weights
        if named in MODES_OWN:
            raise UsageError(f"mode {mode}", found="no weights", fix="name them: --weights NAME, or a file")
        wanted = {FIRST: named}
    add_ons: dict[str, AnyWeights] = {role: add_on_weights(role) for role in ADD_ONS}
    if isinstance(weights, Mapping):
        strange = sorted(set(weights) - set(wanted))
        if strange:
            found, fix = f"weights for {', '.join(strange)}", f"give some for {', '.join(wanted)}"
            raise UsageError(f"weights of mode {mode}", found=found, fix=fix)
        wanted |= weights
        families = {given for given in weights.values() if isinstance(given, str) and given in FAMILIES}
        if len(families) == 1:
            add_ons = dict.fromkeys(ADD_ONS, families.pop())
    elif isinstance(weights, str | Path) and weights not in MODES_OWN and (roles := roles_offered(weights)):
        _take_family(weights, roles, mode, wanted, add_ons)
    elif weights not in MODES_OWN:
        given = weights if isinstance(weights, Model) else load_model(weights, role=None)
        require_role(given.role, tuple(wanted), f"weights {given.name}", where=f"in mode {mode}")
        wanted[given.role] = given
    return wanted, add_ons


def _take_family(
    weights: str | Path,
    roles: tuple[str, ...],
    mode: str,
    wanted: dict[str, AnyWeights],
    add_ons: dict[str, AnyWeights],
) -> None:
    """Let the networks of a family, or of one Keras file, fill the roles of a mode and of the add-ons.

    Raises: WeightsError if a family cannot fill all of a mode's roles, or a file none.
    """
    family = weights in FAMILIES
    if not family and not set(roles) & set(wanted):
        require_role(", ".join(roles), tuple(wanted), f"weights {weights}", where=f"in mode {mode}")
    wanted |= {role: weights for role in wanted if family or role in roles}  # a role that it lacks is told on loading
    add_ons |= {role: weights for role in add_ons if role in roles}


def crops_by_margin(model: Model) -> bool:
    """Whether what a network says of the brain hardly depends on what is far from it: a UNet with batch norm.

    Of any other network without a field of view nothing is known: it may depend on positions.
    """
    network = model.network
    return model.field_of_view_mm is None and isinstance(network, UNet) and network.config.norm == "batch"


def locator_of(models: Mapping[str, Model]) -> Model | None:
    """The network that finds the brain first: the locator, else S1 of robust mode for networks with a field of view.

    The published S1 belongs to networks without: it works at their 1 mm and takes as long, which is no cheap look.
    """
    if LOCATOR in models:
        return models[LOCATOR]
    return models.get("tissues") if main_of(models).field_of_view_mm is not None else None


def main_of(models: Mapping[str, Model]) -> Model:
    """The network that gives the structures."""
    return models["guided"] if "guided" in models else models["structures"]


def multiple_of(models: Mapping[str, Model]) -> int:
    """Voxels that the sides of the working grid must be multiples of: the least that every UNet accepts."""
    apart = ("quality", LOCATOR)  # these have grids of their own
    return math.lcm(*(model.multiple for role, model in models.items() if role not in apart))


def structures_of(models: Mapping[str, Model]) -> tuple[Structure, ...]:
    """All structures of the results: those of the network that gives them, then the parcels of the cortex."""
    structures = main_of(models).channels.structures
    return (*structures, *parcel_structures(models["parcels"])) if "parcels" in models else structures


def parcel_structures(model: Model) -> tuple[Structure, ...]:
    """The parcels of a network of role "parcels", in order of its channels from 1 on, as parts of their cortex."""
    return tuple(
        Structure(s.value, s.name, s.color, s.side, s.partner, whole=CORTEX_VALUES[s.side])
        for s in model.channels.structures[1:]
    )


def check_fit(models: Mapping[str, Model]) -> None:
    """Raise WeightsError unless the networks can work together: one voxel size, and each takes what another gives."""
    main = main_of(models)
    for role, model in models.items():
        if role != LOCATOR and abs(model.spacing_mm - main.spacing_mm) > 1e-6:
            found = f"a network for voxels of {model.spacing_mm:g} mm beside {main.name} for {main.spacing_mm:g} mm"
            raise _misfit(model, found, "use weights trained at the same voxel size")
    if "guided" in models:
        _check_hierarchy(models["tissues"], models["denoiser"], models["guided"])
    if "parcels" in models:
        _check_parcels(models["parcels"], main)
    if "quality" in models:
        _check_quality(models["quality"], main)


def _check_hierarchy(tissues: Model, denoiser: Model, guided: Model) -> None:
    if not np.array_equal(tissues.channels.values, denoiser.channels.values):
        found = f"groups of {denoiser.protocol} for a network that sees those of {tissues.protocol} ({tissues.name})"
        raise _misfit(denoiser, found, "use weights trained with the same tissue groups")
    expected = IMAGE + len(denoiser.channels)
    if guided.in_channels != expected:
        found = f"{guided.in_channels} input channels, where an image and the groups of {denoiser.name} make {expected}"
        raise _misfit(guided, found, "use weights trained with the same tissue groups")


def _check_parcels(parcels: Model, main: Model) -> None:
    if not set(CORTEX_VALUES.values()) <= set(main.channels.values.tolist()):
        found = (
            f"parcels of the cortex for {main.name}, whose labels ({main.protocol}) have no cerebral cortex, 3 and 42"
        )
        raise _misfit(parcels, found, "leave the parcels out, or use weights of synthseg-2.0")
    sideless = [s.name for s in parcels.channels.structures[1:] if s.side not in CORTEX_VALUES]
    shared = set(parcels.channels.values[1:].tolist()) & set(main.channels.values.tolist())
    if sideless or shared:
        what = f"parcels without a side: {', '.join(sideless)}" if sideless else f"parcels numbered {sorted(shared)}"
        raise _misfit(parcels, what, "use a protocol with left and right parcels and values of their own")
    bare = [side for side in CORTEX_VALUES if all(s.side != side for s in parcels.channels.structures[1:])]
    if bare:
        found = f"no {' and no '.join(bare)} parcels ({parcels.protocol})"
        raise _misfit(parcels, found, "use a protocol with left and right parcels")


def _check_quality(quality: Model, main: Model) -> None:
    groups = set(main.channels.quality.tolist())
    if groups == {0}:
        found = f"quality control for {main.name}, whose labels ({main.protocol}) have no quality groups"
        raise _misfit(quality, found, "leave it out, or use weights of synthseg-2.0")
    unknown = sorted(groups - set(quality.channels.values.tolist()))
    if unknown:
        found = f"no quality group {', '.join(map(str, unknown))}, which {main.name} ({main.protocol}) has"
        raise _misfit(quality, found, "use weights trained with the same groups")


def _of_role(given: AnyWeights, role: str) -> Model:
    model = given if isinstance(given, Model) else load_model(given, role=role)
    require_role(model.role, (role,), f"weights {model.name}", where=f"as {role}")
    return model


def _require_protocol(model: Model, protocol: str | Path) -> None:
    """The protocol asked for must be the network's, by name and by its label values, channel by channel."""
    expected = load_protocol(protocol)
    namesake = model.protocol == expected.name
    if not namesake or not np.array_equal(model.channels.values, expected.target_values):
        other = "with other label values than" if namesake else f"not {expected.name!r} as"
        found = f"weights of another protocol: {model.protocol!r}{'' if namesake else ','} {other} asked for"
        fix = f"choose weights of {expected.name!r} (`synthseg weights list` shows each file's protocol)"
        raise _misfit(model, found, fix)


def _misfit(model: Model, found: str, fix: str) -> WeightsError:
    return WeightsError(f"weights {model.name}", found=found, fix=fix)
