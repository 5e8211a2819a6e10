"""Several networks for the same structures in one run: what they must share, and their mean slab by slab.

Three rules make one result of them (``InferenceConfig.merge``):

- ``mean``: the mean of their posteriors, each network's logits divided by its temperature first, is smoothed and
  cleaned up once, as a single network's answer is. All networks are held side by side, and nothing of them but slabs.
- ``max`` and ``vote``: every network's answer is cleaned up on its own, one after another; what is left of each is
  merged (``merging.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from synthseg.engine.memory import Plan
from synthseg.errors import UsageError, WeightsError
from synthseg.inference.config import InferenceConfig
from synthseg.inference.model import Model
from synthseg.inference.predict import require_finite, stream_posteriors
from synthseg.networks.unet import UNet

FIRST = "structures"  # the first member's role; the others' are structures-2, structures-3, ...


def members_of(models: Mapping[str, Model]) -> dict[str, Model]:
    """The networks that give the structures, by role, in the order in which they were named: one, or an ensemble."""
    if "guided" in models:
        return {"guided": models["guided"]}
    return {role: model for role, model in models.items() if role == FIRST or role.startswith(f"{FIRST}-")}


def with_members(models: Mapping[str, Model], others: Sequence[Model]) -> dict[str, Model]:
    """The networks of a run with more networks for the same structures.

    All members get the same ``multiple``: one image must suit them all.
    Raises: UsageError where the mode does not find its structures with one network, or a network comes twice;
        WeightsError naming a member that does not fit the first.
    """
    if FIRST not in models:
        found = f"{1 + len(others)} networks, where {', '.join(models)} find the structures together"
        raise UsageError("weights", found=found, fix="merge networks in mode default or fast")
    members = [models[FIRST], *others]
    for number, model in enumerate(members):
        _check_new(model, members[:number])
    multiple = math.lcm(*(model.multiple for model in members))
    first, *rest = (replace(model, multiple=multiple) for model in members)
    return {**models, FIRST: first, **{f"{FIRST}-{number}": model for number, model in enumerate(rest, start=2)}}


def _check_new(model: Model, before: Sequence[Model]) -> None:
    """Raise WeightsError unless a member can be merged with those before it, UsageError if it is one of them."""
    for other in before:
        if model is other or (model.sha256 and model.sha256 == other.sha256):  # of tensors: whatever the file is called
            found = f"the same network twice: its tensors are those of {other.name}"
            raise UsageError(f"weights {model.name}", found=found, fix="name each network once")
    if not before:
        return
    first = before[0]
    same_labels = model.protocol == first.protocol and np.array_equal(model.channels.values, first.channels.values)
    if not same_labels:
        what = "with other label values" if model.protocol == first.protocol else f"not {first.protocol!r}"
        found = f"labels of {model.protocol!r}, {what} as those of {first.name}"
        raise _misfit(model, found, "merge networks of one label protocol")
    facts = {
        "voxels of {} mm": (f"{model.spacing_mm:g}", f"{first.spacing_mm:g}"),
        "scans of the {}": (model.organ, first.organ),
        "a field of view of {}": (_field(model), _field(first)),
        "a CT window of {}": (model.ct_window, first.ct_window),
        "{} norm": (_norm(model), _norm(first)),
    }
    for fact, (own, others) in facts.items():
        if own != others:
            found = f"{fact.format(own)}, where {first.name} has {fact.format(others)}"
            raise _misfit(model, found, "merge networks that were trained alike in this")


def _field(model: Model) -> str:
    field = model.field_of_view_mm
    return "any size" if field is None else " x ".join(f"{side:g}" for side in field) + " mm"


def _norm(model: Model) -> str:
    return model.network.config.norm if isinstance(model.network, UNet) else "an unknown"


def _misfit(model: Model, found: str, fix: str) -> WeightsError:
    return WeightsError(f"weights {model.name}", found=found, fix=fix)


def common_settings(models: Mapping[str, Model], config: InferenceConfig) -> InferenceConfig:
    """The settings as they hold for every network that gives the structures.

    Raises: UsageError for parcels or quality beside networks that are merged by another rule than the mean: they read
        what goes into the clean-up, which those rules have several of.
    """
    members = members_of(models)
    for model in members.values():
        config = model.settings(config)
    extra = [role for role in ("parcels", "quality") if role in models]
    if len(members) > 1 and config.merge != "mean" and extra:
        found = f"{' and '.join(extra)} asked for beside {len(members)} networks merged by {config.merge}"
        raise UsageError("merge", found=found, fix="merge by mean (--merge mean), or leave them out")
    return config


def temperature_notes(members: Sequence[Model]) -> tuple[str, ...]:
    """A note on the members whose temperature was never fitted, where others' was."""
    bare = [model.name for model in members if model.temperature is None]
    if not bare or len(bare) == len(members):
        return ()
    return (f"averaged without a fitted temperature: {', '.join(bare)} (`synthseg weights calibrate --temperature`)",)


def joint_plan(plans: Sequence[tuple[Model, Plan | None]]) -> Plan | None:
    """One plan for networks run side by side: the thinnest of their slabs, of whole blocks of every network.

    Args:
        plans: of each network, made for the passes of all; None for one that is not cut, which takes any slab.
    Returns: None if none of them is cut.
    """
    cut = [(model, plan) for model, plan in plans if plan is not None]
    if not cut:
        return None
    step = math.lcm(*(2 * model.network.config.patch for model, _ in cut if isinstance(model.network, UNet)))
    thin = [plan.slab for _, plan in cut if plan.slab is not None]
    slab = max(step, min(thin) // step * step) if thin else None
    return Plan(slab, any(plan.recompute for _, plan in cut), max(plan.bytes for _, plan in cut))


@torch.inference_mode()  # as a decorator, which leaves the mode while the caller has a slab
def stream_mean(
    members: Sequence[Model], inputs: Tensor, *, flip: bool, plan: Plan | None, subject: str
) -> Iterator[tuple[int, Tensor]]:
    """The mean of the members' posteriors, slab by slab, as :func:`stream_posteriors` gives a single network's.

    Args:
        members: of one protocol, on one device. With more than one, each at its temperature.
        subject: the scan, for errors.
    Raises: InvariantError naming the network that answers with NaN or infinity.
    """
    alone = len(members) == 1
    streams = [
        stream_posteriors(
            model.runner,
            inputs,
            model.channels.partners,
            flip=flip,
            plan=plan,
            temperature=1.0 if alone or model.temperature is None else model.temperature,
        )
        for model in members
    ]
    for first in streams[0]:
        start, total = first
        require_finite(total, members[0].name, subject)
        for model, stream in zip(members[1:], streams[1:], strict=True):
            _, slab = next(stream)
            total.add_(require_finite(slab, model.name, subject))
            del slab
        yield start, total if alone else total.div_(len(members))
        del first, total
