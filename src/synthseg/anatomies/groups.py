"""Which labels make up the shapes that anatomies are compared by."""

from __future__ import annotations

from dataclasses import dataclass

from synthseg.errors import ConfigError
from synthseg.labels.protocol import LabelProtocol

REFERENCE_GROUPS = "2,3,4,5,6,7"  # the inner tissues of the feta protocol (reference A.4.1)
_TISSUES = ("", "white matter and nuclei", "grey matter", "fluid", "cerebellum")


@dataclass(frozen=True)
class ShapeGroup:
    """Labels that count as one shape."""

    name: str
    values: tuple[int, ...]


def shape_groups(protocol: LabelProtocol, text: str = "structures") -> tuple[ShapeGroup, ...]:
    """The shapes that a text stands for.

    Args:
        text: ``structures``: every target of the protocol, left and right as one, with all labels that become it
            (a choroid plexus counts as its ventricle). ``tissues``: the protocol's tissue groups. Or a list of label
            values such as ``2,3,4``, where ``+`` joins values and ``name=`` names a shape: ``cortex=3+42,4+43+14``.
    Raises: ConfigError for a value that is no label of the protocol or is given twice, and where no shape remains.
    """
    if text == "structures":
        return _of_targets(protocol)
    if text == "tissues":
        groups = []
        for number, name in enumerate(_TISSUES):
            values = tuple(label.value for label in protocol.labels if label.tissue == number and label.target)
            if number and values:
                groups.append(ShapeGroup(name, values))
        return _some(tuple(groups), protocol)
    return _of_list(protocol, text)


def _of_targets(protocol: LabelProtocol) -> tuple[ShapeGroup, ...]:
    """One shape for each target but the background, without sides, in ascending order of the left one's value."""
    left = protocol.merge_sides()
    members: dict[int, list[int]] = {}
    for label in protocol.labels:
        if label.target:
            members.setdefault(left.get(label.target, label.target), []).append(label.value)
    names = {label.value: label for label in protocol.labels}

    def name(value: int) -> str:
        label = names.get(value)
        return f"label {value}" if label is None else label.name.removeprefix("left ")

    groups = tuple(ShapeGroup(name(value), tuple(members[value])) for value in sorted(members))
    return _some(groups, protocol)


def _of_list(protocol: LabelProtocol, text: str) -> tuple[ShapeGroup, ...]:
    fix = 'write "structures", "tissues", or values such as 2,3,4 or cortex=3+42,ventricles=4+43'
    groups: list[ShapeGroup] = []
    names = {label.value: label.name for label in protocol.labels}
    for part in text.split(","):
        title, _, numbers = part.rpartition("=")
        words = [word.strip() for word in numbers.split("+")]
        if not all(word.isdecimal() for word in words):
            raise ConfigError("sampler: labels", found=repr(part), fix=fix)
        values = tuple(map(int, words))
        unknown = [value for value in values if value not in names or not value]
        if unknown:
            found = f"{unknown[0]}, which is no structure of {protocol.name}"
            fix = f"see `synthseg labels show {protocol.name}`, or name the maps' own protocol (--protocol)"
            raise ConfigError("sampler: labels", found=found, fix=fix)
        groups.append(ShapeGroup(title.strip() or " + ".join(names[value] for value in values), values))
    every = [value for group in groups for value in group.values]
    twice = [value for value in every if every.count(value) > 1]
    titles = [group.name for group in groups]
    again = [title for title in titles if titles.count(title) > 1]
    if twice or again:
        raise ConfigError("sampler: labels", found=f"{(twice or again)[0]} twice", fix="give each label and name once")
    return tuple(groups)


def _some(groups: tuple[ShapeGroup, ...], protocol: LabelProtocol) -> tuple[ShapeGroup, ...]:
    if not groups:
        fix = "list label values, or give a protocol with targets (and tissues)"
        raise ConfigError("sampler: labels", found=f"no such shape in the protocol {protocol.name}", fix=fix)
    return groups
