"""Whether a draw belongs to a model: its shapes always, and its bank and config where its file says what they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from synthseg.configs import flatten
from synthseg.errors import TrainingError
from synthseg.generation.bank import LabelBank
from synthseg.generation.clusters import REGIONS, cluster_nodes
from synthseg.generation.config import GenerationConfig
from synthseg.generation.deformation import velocity_nodes
from synthseg.generation.draws import OPTIONAL, Off, PairDraw
from synthseg.generation.intensity import bias_nodes
from synthseg.generation.surroundings import surroundings_nodes
from synthseg.reading import require_file

if TYPE_CHECKING:
    from synthseg.generation.model import GenerativeModel

SHOWN_KEYS = 3  # of a config, in a message


def origin_of(config: GenerationConfig, bank: LabelBank) -> dict[str, Any]:
    """What a draw's file says about where it comes from: plain values, fit for JSON."""
    return {
        "protocol": bank.protocol.name,
        "maps": list(bank.names),
        "bank_sha256": bank.sha256,
        "config": flatten(config),
    }


def read_origin(path: str | Path) -> dict[str, Any] | None:
    """The origin in a draw's file; None where it does not say.

    Raises: TrainingError naming the file when it cannot be read.
    """
    require_file(path, error=TrainingError, fix="give a file that PairDraw.save wrote", as_text=True)
    try:
        with safe_open(path, framework="pt") as file:
            origin = json.loads((file.metadata() or {}).get("draw", "{}")).get("origin")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        found = f"no readable record of a draw ({error})"
        raise TrainingError(path, found=found, fix="give a file that PairDraw.save wrote") from error
    return origin if isinstance(origin, dict) else None


def require_origin(model: GenerativeModel, origin: Mapping[str, Any], *, subject: str | Path) -> None:
    """Refuse a draw of another bank or config: it would replay, but as another pair.

    Args:
        origin: as :func:`origin_of` gives it.
        subject: the draw's name for the message.
    Raises: TrainingError saying what differs.
    """
    here = model.origin
    if origin.get("bank_sha256") != here["bank_sha256"]:
        raise TrainingError(
            subject,
            found=_other_bank(origin, here),
            fix="give the label maps or the bank that it was made from, with the same protocol",
        )
    recorded, ours = origin.get("config", {}), here["config"]
    differing = [key for key in ours if key in recorded and recorded[key] != ours[key]]
    if differing:
        shown = ", ".join(f"{key} = {recorded[key]!r} (here {ours[key]!r})" for key in differing[:SHOWN_KEYS])
        more = f" and {len(differing) - SHOWN_KEYS} more" if len(differing) > SHOWN_KEYS else ""
        raise TrainingError(
            subject, found=f"a draw made with {shown}{more}", fix="give the recipe or preset that it was made with"
        )


def require_fit(model: GenerativeModel, draw: PairDraw, *, subject: str | Path = "draw", indices: bool = True) -> None:
    """Refuse a draw whose tensors are not those of a model's own draws.

    Args:
        indices: also look at the map indices' values, for which a GPU has to be waited for.
    Raises: TrainingError naming the tensor.
    """
    expected = _shapes(model, draw.anatomy.map_index.numel())
    for name, stage in draw._asdict().items():
        if name in OPTIONAL and isinstance(stage, Off) == getattr(model.config, name).enabled:
            presence = f"no {name} in the draw" if isinstance(stage, Off) else f"{name}, which is off here"
            raise TrainingError(subject, found=presence, fix=f"give the [generation.{name}] that it was made with")
        for key, tensor in stage._asdict().items():
            found = None
            if tuple(tensor.shape) != expected[name, key]:
                found = f"{name}.{key} of shape {list(tensor.shape)}, not {list(expected[name, key])} as this model's"
            elif tensor.device != model.bank.device:
                found = f"{name}.{key} on {tensor.device}, with a bank on {model.bank.device}"
            if found:
                raise TrainingError(subject, found=found, fix="give the config, label protocol and device it is of")
    if not indices:
        return
    for key in ("map_index", "donor_index"):
        values = getattr(draw.anatomy, key)
        if values.is_floating_point() or bool(((values < 0) | (values >= len(model.bank))).any()):
            raise TrainingError(
                subject,
                found=f"{key} {values.tolist()} for a bank of {len(model.bank)} maps",
                fix="give the bank it was drawn from",
            )


def _shapes(model: GenerativeModel, batch: int) -> dict[tuple[str, str], tuple[int, ...]]:
    config, grid, classes = model.config, model.config.grid, len(model.left_class)
    one, three = (batch,), (batch, 3)
    switches = ("map_index", "donor_index", "flip", "strip", "strip_csf", "lesions", "paste")
    return {
        **{("anatomy", key): one for key in switches},
        ("anatomy", "corner_mm"): three,
        ("deformation", "affine"): (batch, 3, 3),
        ("deformation", "translation_mm"): three,
        ("deformation", "velocity_mm"): (batch, 3, *velocity_nodes(config.deformation, grid)),
        ("mixture", "means"): (batch, classes),
        ("mixture", "stds"): (batch, classes),
        ("mixture", "noise"): (batch, 1, *grid.shape),
        ("bias", "log_gain"): (batch, 1, *bias_nodes(config.bias, grid)),
        ("gamma", "log_gamma"): one,
        **{("acquisition", key): three for key in ("spacing_mm", "thickness_mm", "jitter")},
        ("partial_volume", "offsets_vox"): (batch, config.partial_volume.positions, 3),
        **{("morphology", key): one for key in ("ventricles_mm", "sulci_mm", "size")},
        ("surroundings", "dropped"): (batch, len(model.classes)),
        ("surroundings", "normal"): three,
        ("surroundings", "distance_mm"): one,
        ("surroundings", "fields"): (batch, 2, *surroundings_nodes(config.surroundings, grid)),
        **{("surroundings", key): (batch, 2) for key in ("levels", "patch")},
        ("field_of_view", "cut"): (batch, 3, 2),
        ("noise", "std"): one,
        ("noise", "noise"): (batch, 1, *grid.shape),
        **{("ghosts", key): one for key in ("axis", "copies", "strength")},
        ("clusters", "fields"): (batch, 2, *cluster_nodes(config.clusters, grid)),
        ("clusters", "offsets"): (batch, REGIONS, len(model.classes)),
        **{("inflation", key): one for key in ("label", "edge")},
    }


def _other_bank(origin: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    maps, protocol = list(map(str, origin.get("maps", ()))), origin.get("protocol")
    if maps != here["maps"]:
        return f"a draw from other label maps ({_few(maps)}) than these ({_few(here['maps'])})"
    if protocol != here["protocol"]:
        return f"a draw with label protocol {protocol}, not {here['protocol']}"
    return "a draw from label maps of the same names, but with other contents or another label table"


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f", ... {len(names)} in all" if len(names) > 2 else "")
