"""A label grown over its neighbours, in image and target alike: the fetal extension's (reference A.6.2).

The original hard-codes FeTA's values 1 to 7, which would corrupt other protocols; here the labels come from the table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from synthseg.errors import ConfigError
from synthseg.generation.config_stages import InflationPrior
from synthseg.generation.deformation import coin
from synthseg.labels.protocol import LabelProtocol


class InflationDraw(NamedTuple):
    """Which label of each element grows, and by how much."""

    label: Tensor  # [B] int64, index in the protocol
    edge: Tensor  # [B] int64, voxels of the growing cube; 1 changes nothing


def inflated_values(prior: InflationPrior, protocol: LabelProtocol) -> tuple[int, ...]:
    """The labels that may grow. Raises ConfigError for a given value that is no label, or the background."""
    known = set(protocol.values.tolist()) - {0}
    for value in prior.values:
        if value not in known:
            found = f"{value}, which is no label of {protocol.name} that could grow"
            fix = "give values of the protocol other than 0, or leave the key out for all labels with a target"
            raise ConfigError("generation.inflation.values", found=found, fix=fix)
    return prior.values or tuple(label.value for label in protocol.labels if label.target)


def draw_inflation(
    prior: InflationPrior, protocol: LabelProtocol, batch: int, *, rng: torch.Generator
) -> InflationDraw:
    """Draw a label and an edge for each element."""
    device = rng.device
    values = torch.tensor(inflated_values(prior, protocol))
    index = torch.as_tensor(protocol.index_of(values.numpy()), device=device)
    edges = torch.tensor(prior.edges, device=device)
    label = index[torch.randint(len(index), (batch,), generator=rng, device=device)]
    edge = edges[torch.randint(len(edges), (batch,), generator=rng, device=device)]
    return InflationDraw(label, edge.masked_fill(~coin(batch, prior.probability, rng=rng), 1))


def inflated(labels: Tensor, draw: InflationDraw, prior: InflationPrior) -> Tensor:
    """Where the drawn labels lie once they have grown.

    A cube of an even edge grows further towards lower indices: an edge of 2 reaches one voxel down, one of 4 two down
    and one up (reference A.6.2).

    Args:
        labels: [B, X, Y, Z] label indices, of the finished pair.
    Returns: [B, X, Y, Z] bool, nothing where the edge is 1.
    """
    shape = (-1, 1, 1, 1)
    mask = (labels == draw.label.view(shape)) & (draw.edge > 1).view(shape)
    found = mask
    for edge in sorted(set(prior.edges) - {1}):
        chosen = draw.edge == edge
        if labels.device.type == "cpu" and not bool(chosen.any()):
            continue  # a GPU grows them all rather than wait for the answer
        low, high = (edge - 1) // 2, edge // 2  # max pooling at x sees x - low to x + high: growth by high down, low up
        padded = functional.pad(mask[:, None].float(), (low, high) * 3)
        grown = functional.max_pool3d(padded, edge, stride=1)[:, 0] > 0
        found = torch.where(chosen.view(shape), grown, found)
    return found
