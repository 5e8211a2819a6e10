"""From a trained state to weights: the targets' protocol, the card, and starting from other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthseg.errors import LabelError, TrainingError
from synthseg.labels.protocol import Label, LabelProtocol, builtin_protocols, load_protocol
from synthseg.weights import Weights


def target_protocol(protocol: LabelProtocol) -> LabelProtocol:
    """The protocol of what a network trained on ``protocol`` puts out.

    A built-in one whose rows mean the same (value, name, side, partner and topology group) if there is one; else the
    rows of the targets themselves, in channel order. Partners are those of the channels: a target that both sides share
    has none.
    Raises: LabelError if a target value has no row of its own.
    """
    wanted = protocol.target_values.tolist()
    rows = {int(label.value): label for label in protocol.labels}
    missing = [value for value in wanted if value not in rows]
    if missing:
        raise LabelError(
            protocol.name, found=f"targets {missing} without a row", fix="add a row for every target value"
        )
    classes = sorted({rows[v].generation_class for v in wanted}), sorted({rows[v].contrast_class for v in wanted})
    partners = [wanted[channel] for channel in protocol.partner_channel]
    labels = [
        dataclasses.replace(
            rows[value],
            target=value,
            partner=partner,
            side="neutral" if partner == value else rows[value].side,
            generation_class=classes[0].index(rows[value].generation_class),
            contrast_class=classes[1].index(rows[value].contrast_class),
        )
        for value, partner in zip(wanted, partners, strict=True)
    ]
    for name in builtin_protocols():
        candidate = load_protocol(name)
        if candidate.name != protocol.name and _meanings(candidate.labels) == _meanings(labels):
            return candidate
    return LabelProtocol(f"{protocol.name}-targets", f"Targets of {protocol.name}", tuple(labels))


def _meanings(labels: Iterable[Label]) -> list[tuple[int, int, str, str, int, int]]:
    return [(row.value, row.target, row.name, row.side, row.partner, row.topology) for row in labels]


def provenance(weights: Weights) -> dict[str, Any]:
    """What a card says of the weights a run started from: name, hash and steps."""
    card = weights.card
    return {"name": weights.name, "sha256": card["sha256"], "steps": card.get("steps")}


_FIRST = "down.0.convs.0.weight"  # the convolution that sees the inputs


@dataclass(frozen=True)
class InitReport:
    """What starting weights gave a network."""

    taken: int  # tensors
    fresh: tuple[str, ...]  # tensors left at their random start
    channels: tuple[int, ...]  # label values whose output channel was carried over
    fresh_channels: tuple[int, ...] = ()  # label values whose output channel starts at random

    def sentence(self) -> str:
        """For the log."""
        text = f"{self.taken} tensors and {len(self.channels)} output channels taken"
        if self.fresh:
            text += f"; fresh: {', '.join(self.fresh)}"
        if self.fresh_channels:
            text += f"; fresh output channels of labels {', '.join(map(str, self.fresh_channels))}"
        return text


def comparable_values(theirs: LabelProtocol, ours: LabelProtocol) -> list[int]:
    """The label value of each of their channels, -1 where ours calls that value something else (a group, say)."""
    names = {label.value: label.name.lower() for label in ours.labels}
    own = {label.value: label.name.lower() for label in theirs.labels}
    return [value if names.get(value) == own[value] else -1 for value in theirs.target_values.tolist()]


def start_from(
    network: nn.Module, tensors: Mapping[str, Tensor], old_values: list[int], new_values: list[int]
) -> InitReport:
    """Copy what fits from other weights into a network, its head channel by channel by label value.

    Inputs that the network has beyond theirs begin with weights of zero: it starts as the function theirs computed.

    Args:
        old_values, new_values: label value of each output channel, before and after.
    Raises: TrainingError if not one convolution fits, i.e. the weights are of another kind of network.
    """
    state = network.state_dict()
    taken, fresh = 0, []
    shared = [value for value in new_values if value in old_values]
    convolutions = [name for name, tensor in state.items() if tensor.ndim == 5 and not name.startswith("head.")]
    if not any(name in tensors and tensors[name].shape == state[name].shape for name in convolutions):
        raise TrainingError(
            "starting weights",
            found="no convolution that fits the network",
            fix="give the recipe's [network] the features and kernel of the weights, or start without them",
        )
    block = _block(state, len(new_values))
    same_blocks = block is not None and block == _block(tensors, len(old_values))
    for name, tensor in state.items():
        source = tensors.get(name)
        if name.startswith("head.") and source is not None and source.shape[1:] == tensor.shape[1:]:
            rows = _head_rows(tensor, new_values, shared), _head_rows(source, old_values, shared)
            if len(rows[0]) == len(rows[1]):
                tensor[rows[0]] = source[rows[1]].to(tensor)
                taken += 1
            else:  # blocks of another size
                fresh.append(name)
        elif source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            taken += 1
        elif source is not None and name == _FIRST and same_blocks and _has_more_inputs(tensor, source):
            tensor[:, : source.shape[1]] = source.to(tensor)  # inputs come after the image, and count for nothing yet
            tensor[:, source.shape[1] :] = 0
            taken += 1
        else:
            fresh.append(name)
    network.load_state_dict(state)
    carried = tuple(shared) if "head.weight" in state and "head.weight" not in fresh else ()
    return InitReport(taken, tuple(fresh), carried, tuple(value for value in new_values if value not in carried))


def _block(tensors: Mapping[str, Tensor], channels: int) -> float | None:
    """Voxels of the blocks a network works on, read off its head; None without one."""
    return len(tensors["head.weight"]) / channels if "head.weight" in tensors else None


def _has_more_inputs(tensor: Tensor, source: Tensor) -> bool:
    same = source.ndim == tensor.ndim and source.shape[0] == tensor.shape[0] and source.shape[2:] == tensor.shape[2:]
    return same and source.shape[1] < tensor.shape[1]


def _head_rows(head: Tensor, values: list[int], wanted: list[int]) -> Tensor:
    """Rows of a head that belong to the wanted label values; a network on blocks of voxels has several a value."""
    rows = torch.arange(len(head)).view(len(values), -1)
    return rows[[values.index(value) for value in wanted]].flatten()
