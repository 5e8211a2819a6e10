"""The optional stages together: what they draw, and how they are put between a draw and its labels and Gaussians.

The scanner's stages (field of view, noise, ghosts) act on images and targets and are applied by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from synthseg.generation.anatomy import entry_labels
from synthseg.generation.clusters import cluster_regions, draw_clusters
from synthseg.generation.deformation import Placement, place
from synthseg.generation.draws import Off, PairDraw
from synthseg.generation.inflation import draw_inflation, inflated
from synthseg.generation.lookup import Scene, gaussian_tables, read_tables
from synthseg.generation.morphology import draw_morphology, morphology_placement
from synthseg.generation.partial_volume import draw_partial_volume, offsets_mm
from synthseg.generation.scanner import draw_field_of_view, draw_ghosts, draw_noise
from synthseg.generation.surroundings import (
    add_patches,
    draw_surroundings,
    entries_with_gaps,
    missing_places,
    upsampled_fields,
)

if TYPE_CHECKING:
    from synthseg.generation.model import GenerativeModel


class Reading(NamedTuple):
    """A pair's labels, and each voxel's Gaussian."""

    labels: Tensor  # [B, X, Y, Z] int64 label indices
    means: Tensor  # [B, 1, X, Y, Z]
    stds: Tensor  # [B, 1, X, Y, Z]


def draw_options(model: GenerativeModel, batch: int, *, rng: torch.Generator) -> dict[str, Any]:
    """Draws of the optional stages that are on, in an order that new ones must not change."""
    config, grid, labels = model.config, model.config.grid, len(model.classes)
    stages: dict[str, Callable[[], Any]] = {
        "partial_volume": lambda: draw_partial_volume(config.partial_volume, batch, rng=rng),
        "clusters": lambda: draw_clusters(config.clusters, grid, labels, batch, rng=rng),
        "morphology": lambda: draw_morphology(config.morphology, batch, rng=rng),
        "surroundings": lambda: draw_surroundings(config.surroundings, config.mixture, grid, labels, batch, rng=rng),
        "field_of_view": lambda: draw_field_of_view(config.field_of_view, batch, rng=rng),
        "noise": lambda: draw_noise(config.noise, grid, batch, rng=rng),
        "ghosts": lambda: draw_ghosts(config.ghosts, batch, rng=rng),
        "inflation": lambda: draw_inflation(config.inflation, model.bank.protocol, batch, rng=rng),
    }
    return {name: drawn() for name, drawn in stages.items() if getattr(config, name).enabled}


def changes_reading(draw: PairDraw) -> bool:
    """Whether any option stands between the label map and the Gaussians."""
    stages = (draw.partial_volume, draw.clusters, draw.morphology, draw.surroundings, draw.inflation)
    return not all(isinstance(stage, Off) for stage in stages)


def place_with_options(model: GenerativeModel, draw: PairDraw) -> list[Placement]:
    """Where the voxels of the (mirrored) pair come from: parts to be summed."""
    config, anatomy, deformation = model.config, draw.anatomy, draw.deformation
    if isinstance(draw.morphology, Off):
        return [place(deformation, config.deformation, anatomy.corner_mm, config.grid, flip=anatomy.flip)]
    # A pull-back: a smaller factor shows a larger head.
    sized = deformation._replace(affine=deformation.affine / draw.morphology.size.view(-1, 1, 1))
    where = place(sized, config.deformation, anatomy.corner_mm, config.grid, flip=anatomy.flip)
    if not config.morphology.changes_tissues:
        return [where]
    change = morphology_placement(
        draw.morphology, config.morphology, where, model.bank, anatomy, model.tissues, config.grid
    )
    return [where, change]


def read_with_options(model: GenerativeModel, draw: PairDraw) -> Reading:
    """Labels and Gaussians of a draw with any of the options that :func:`changes_reading` names."""
    reading = _read(model, draw)
    if isinstance(draw.inflation, Off):
        return reading
    grown = inflated(reading.labels, draw.inflation, model.config.inflation)
    own = model.classes[draw.inflation.label][:, None]  # [B, 1]: the Gaussian of the label that grows
    means, stds = (
        torch.where(grown[:, None], table.gather(1, own).view(-1, 1, 1, 1, 1), values)
        for table, values in ((draw.mixture.means, reading.means), (draw.mixture.stds, reading.stds))
    )
    return Reading(torch.where(grown, draw.inflation.label.view(-1, 1, 1, 1), reading.labels), means, stds)


def _read(model: GenerativeModel, draw: PairDraw) -> Reading:
    """What :func:`read_with_options` reads before any label grows."""
    config, grid, anatomy = model.config, model.config.grid, draw.anatomy
    within, clusters, surroundings = draw.partial_volume, draw.clusters, draw.surroundings
    pasting = config.anatomy.lesion_probability > 0 and config.anatomy.lesion_paste_probability > 0
    where = place_with_options(model, draw)
    scene = Scene(model.bank, grid, anatomy, where, model.tables.lesion if pasting else None)

    entries = entry_labels(anatomy, model.tables)
    regions = None  # number of a voxel's table: of the labels' (what is missing), then of the Gaussians' (clusters too)
    if not isinstance(surroundings, Off):
        entries = entries_with_gaps(entries, surroundings, model.tables)
        fields = upsampled_fields(surroundings, grid)
        regions = missing_places(surroundings, fields[:, 0], anatomy, model.bank, grid).int()
    if isinstance(within, Off) and isinstance(clusters, Off):  # one reading serves all
        both = [entries, *gaussian_tables(entries, model.classes, draw.mixture)]
        labels, means, stds = read_tables(scene, both, regions=regions)
        means, stds = means[:, None], stds[:, None]
        if not isinstance(surroundings, Off):
            means, stds = add_patches(means, stds, labels == 0, fields[:, 1], surroundings)
        return Reading(labels, means, stds)
    (labels,) = read_tables(scene, [entries], regions=regions)

    gains = None
    if not isinstance(clusters, Off):
        gains, cluster = clusters.offsets, cluster_regions(clusters, grid)
        regions = cluster if regions is None else regions + 2 * cluster
    shifts = None if isinstance(within, Off) else offsets_mm(within, where[0])
    gaussians = gaussian_tables(entries, model.classes, draw.mixture, gains)
    means, stds = (each[:, None] for each in read_tables(scene, gaussians, offsets_mm=shifts, regions=regions))
    if not isinstance(surroundings, Off):
        means, stds = add_patches(means, stds, labels == 0, fields[:, 1], surroundings)
    return Reading(labels, means, stds)
