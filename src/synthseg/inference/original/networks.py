"""The original's networks over one image: dense posteriors of the structures, those of the parcels slab by slab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from synthseg.errors import WeightsError
from synthseg.inference.bundle import main_of
from synthseg.inference.hierarchy import denoised, tissue_groups, with_groups
from synthseg.inference.model import CORTEX_INPUTS, Model
from synthseg.inference.needs import Needs
from synthseg.inference.original.prepare import MULTIPLE
from synthseg.inference.placement import Placement
from synthseg.inference.predict import Smoother, require_finite, stream_posteriors
from synthseg.inference.structures import CORTEX_VALUES
from synthseg.networks.hierarchy import one_hot

SIGMA_VOX = 0.5  # of the smoothing of posteriors
SPACING_MM = 1.0
_FLOAT, _INDEX, _SHORT = 4, 8, 2  # bytes


def require_originals_kind(models: Mapping[str, Model]) -> None:
    """Refuse networks that the original's steps are not made for.

    Raises: WeightsError for a network of another voxel size than 1 mm, one that states a field of view (but for quality
        control's window), one whose sides are no divisors of 32, or quality control that reads posteriors.
    """
    for role, model in models.items():
        found = None
        if abs(model.spacing_mm - SPACING_MM) > 1e-6:
            found = f"a network for voxels of {model.spacing_mm:g} mm"
        elif role != "quality" and model.field_of_view_mm is not None:
            found = "a network that states a field of view, where the original shows its own the whole scan"
        elif MULTIPLE % model.multiple:
            found = f"a network whose image has sides of multiples of {model.multiple}, where the original pads to 32"
        elif model.soft_inputs:
            found = "quality control that reads posteriors, where the original's reads labels"
        if found is not None:
            fix = "use the original's weights (synthseg-2.0 or synthseg-1.0), or leave --strict-original out"
            raise WeightsError(f"weights {model.name}", found=found, fix=fix)


def structure_posteriors(
    placement: Placement, image: Tensor, *, flip: bool, smooth: bool, needs: Needs, subject: str
) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors [X, Y, Z, C] float32 and their winners [X, Y, Z] uint8, of equals the lowest channel.

    Args:
        image: [1, 1, X, Y, Z]; with a guided network it goes through tissue groups and their denoiser first.
        flip: average with the mirrored image's posteriors, left and right exchanged.
        smooth: by 0.5 voxels, zeros beyond the image. After the average instead of before: both are linear.
    Raises: InvariantError for posteriors that are not numbers.
    Source: reference 6.4, "Default" and "Robust".
    """
    models = placement.models
    model = main_of(models)
    shape = (image.shape[2], image.shape[3], image.shape[4])
    with exact_products():
        inputs = image.to(placement.device)
        if "guided" in models:
            tissues, denoiser = models["tissues"], models["denoiser"]
            groups = tissue_groups(tissues, inputs, subject, placement.plan_of(tissues, shape, needs=needs))
            groups = denoised(denoiser, groups, subject, placement.plan_of(denoiser, shape, needs=needs))
            inputs = with_groups(inputs, groups, len(denoiser.channels))
            del groups
        posteriors = np.empty((*shape, len(model.channels)), np.float32)
        winners = np.empty(shape, np.uint8)
        plan = placement.plan_of(model, shape, passes=2 if flip else 1, needs=needs)
        slabs = stream_posteriors(model.runner, inputs, model.channels.partners, flip=flip, plan=plan)
        for start, slab in smoothed(slabs, model, SIGMA_VOX if smooth else 0.0, subject):
            planes = slice(start, start + len(slab))
            posteriors[planes] = slab.cpu().numpy()
            winners[planes] = slab.argmax(-1).cpu().numpy()
    return posteriors, winners


def parcel_posteriors(
    placement: Placement, image: Tensor, winners: np.ndarray, needs: Needs, subject: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Smoothed posteriors of the parcels, slab by slab in ascending order: (first plane, [n, Y, Z, C] float32).

    Args:
        image: [1, 1, X, Y, Z]; ``winners`` [X, Y, Z] are the channels of the structures before any clean-up.
    Source: reference 6.4, "Parcellation": cortex is where 3 or 42 wins; smoothed in every mode, never mirrored.
    """
    model = placement.models["parcels"]
    cortex = np.isin(main_of(placement.models).channels.values, list(CORTEX_VALUES.values()))
    with exact_products():
        inputs = image.to(placement.device)
        where = torch.from_numpy(cortex[winners].astype(np.int64)).to(inputs.device)
        inputs = torch.cat([inputs, one_hot(where[None], CORTEX_INPUTS)], dim=1)
        del where
        plan = placement.plan_of(model, tuple(image.shape[2:]), needs=needs)
        slabs = stream_posteriors(model.runner, inputs, model.channels.partners, flip=False, plan=plan)
        for start, slab in smoothed(slabs, model, SIGMA_VOX, subject):
            yield start, slab.cpu().numpy()


def smoothed(
    slabs: Iterator[tuple[int, Tensor]], model: Model, sigma_vox: float, subject: str
) -> Iterator[tuple[int, Tensor]]:
    """Slabs [n, Y, Z, C] smoothed along X, Y and Z, with zeros beyond the image: its rim loses mass.

    Raises: InvariantError for posteriors that are not numbers.
    """
    if sigma_vox == 0:
        for start, slab in slabs:
            yield start, require_finite(slab, model.name, subject)
        return
    smoother = Smoother(sigma_vox)
    for start, slab in slabs:
        ready = smoother.add(start, require_finite(slab, model.name, subject))
        if len(ready[1]):
            yield ready
    yield smoother.finish()


def needs_as_original(models: Mapping[str, Model], shape: tuple[int, ...]) -> Needs:
    """What is held beside the networks' passes over an image [X, Y, Z]: an estimate for their plans."""
    voxels = int(np.prod(shape))
    gathered = (_FLOAT * (len(main_of(models).channels) + 1) + 1) * voxels
    beside = 2 * _INDEX * voxels if "guided" in models else 0
    return Needs(gathered, beside, 0)


def exact_products() -> AbstractContextManager[None]:
    """Single precision in full on GPUs that would shorten the factors of convolutions to 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
